"""Writing the report: one self-contained HTML file that opens with the answer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from repaudit.names import LAYER, SAMPLE
from repaudit.plots import style
from repaudit.report import words
from repaudit.report.figures import embeddings, frames, maps
from repaudit.report.figures.canvas import as_data
from repaudit.report.layers import Groups, LayerView, layer_views
from repaudit.results import TOGETHER, TOGETHER_DISTANCE_STRESS, TOGETHER_STRESS, known, scalar
from repaudit.store.storage.replacing import replacing

MANY_LAYERS: Final = 7
"""From this many layers on, the page opens with a map of them and shows one at a time."""


def write_report(results: xr.DataTree, summary: Mapping[str, Any], path: str | Path) -> Path:
    """Write the results as one self-contained HTML file.

    The file opens with the headline and a sentence for each layer, and the order in which the layers settle; then come
    all layers together and their similarity; then, for each layer, the spread over steps with its interval and the
    null line at 1, the distances from the untrained networks and the inputs, the trajectories, the samples' embedding
    over steps, and the diagnostics; last the parameters, the fingerprint of the probe set, the versions, and what was
    left out. It contains plotly.js once and loads nothing from the network. For a single model, which has no spread,
    it shows the approach to its own end.

    Parameters
    ----------
    results
        Results of an analysis; any of its groups may be absent.
    summary
        The content of ``summary.json``.
    path
        The file to write; an existing one is replaced atomically.

    Returns
    -------
    Path
        The file written.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> spread = xr.Dataset({"spread": (("layer", "step"), [[0.2, 0.7]])}, coords={"layer": ["norm"], "step": [0, 10]})
    >>> summary = {"headline": "2 models, 1 layer: 1 diverges."}
    >>> page = write_report(xr.DataTree.from_dict({"spread": spread}), summary, Path(mkdtemp(), "report.html"))
    >>> "<h1>2 models, 1 layer: 1 diverges.</h1>" in page.read_text()
    True
    """
    environment = _environment()
    assets = _assets(environment)
    groups = Groups.of(results)
    layers = layer_views(groups, summary)
    overview = _overview(groups, layers)
    figures = {view.anchor: {kind: as_data(made) for kind, made in view.figures.items()} for view in layers}
    html = environment.get_template("report.html.jinja").render(
        summary=summary,
        layers=layers,
        settling=words.settling(summary),
        figures=({"overview": overview} if overview else {}) | figures,
        overview=overview,
        texts=_texts(groups),
        frames=_frames(groups, layers),
        similarity=None if groups.similarity is None else maps.similarity_data(groups.similarity),
        together_stress=_together_stress(groups.trajectories),
        many=len(layers) >= MANY_LAYERS,
        most_rows=words.MOST_ROWS,
        samples=_samples(groups),
        span=words.span(summary),
        has_spread=groups.spread is not None,
        has_approach=any("approach" in view.figures for view in layers),
        verdicts=style.VERDICTS,
        about=words.about(results, summary),
        script_sources=" ".join(_digest(assets[name]) for name in ("plotlyjs", "script")),
        **{name: Markup(text) for name, text in assets.items()},  # noqa: S704 - our own files and plotly's
    )
    target = Path(path)
    with replacing(target) as stream:
        stream.write(html.encode())
    return target


def _overview(groups: Groups, layers: Sequence[LayerView]) -> dict[str, Any]:
    """Draw the figures of all layers: a map of the spread if there are many, all trajectories, similarities."""
    figures = {}
    if len(layers) >= MANY_LAYERS and groups.spread is not None:
        figures["map"] = maps.overview_figure(groups.spread)
    together = groups.trajectories
    if together is not None and TOGETHER in together and together.sizes[LAYER] > 1 and known(together[TOGETHER]):
        figures["together"] = embeddings.together_figure(together)
    if groups.similarity is not None:
        figures["similarity"] = maps.similarity_figure(groups.similarity)
    return {kind: as_data(figure) for kind, figure in figures.items()}


def _assets(environment: Environment) -> dict[str, str]:
    """Return the scripts and the style sheet of the page; none of them contains any of the results."""
    from plotly.offline import get_plotlyjs

    script, css = (environment.get_template(f"report.{kind}").render() for kind in ("js", "css"))
    return {"plotlyjs": get_plotlyjs(), "script": script, "css": css}


def _digest(script: str) -> str:
    """Return the source by which the page's security policy allows this script only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("repaudit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = style.visible
    environment.filters["numbered"] = lambda names: [(k, str(name)) for k, name in enumerate(names)]
    return environment


def _samples(groups: Groups) -> int:
    dataset = groups.merged if groups.merged is not None else groups.frames
    return int(dataset.sizes.get(SAMPLE, 0)) if dataset is not None else 0


def _frames(groups: Groups, layers: Sequence[LayerView]) -> dict[str, Any]:
    """Return the positions of every layer's samples, and which samples of each group of labels these are."""
    moving = {view.anchor: view.frames for view in layers if view.frames is not None}
    if groups.frames is None or not moving:
        return {}
    return {"pick": frames.picked(groups.frames, frames.Thinning.of(groups.frames)), "layers": moving}


def _together_stress(trajectories: xr.Dataset | None) -> str:
    if trajectories is None:
        return ""
    return words.stress(scalar(trajectories, TOGETHER_STRESS), scalar(trajectories, TOGETHER_DISTANCE_STRESS))


def _texts(groups: Groups) -> list[list[str]]:
    """Return the texts to hover over, from the group that tells most about the samples."""
    both = (groups.merged, groups.frames)
    samples = next((dataset for dataset in both if dataset is not None and SAMPLE in dataset.coords), None)
    return embeddings.sample_texts(samples) if samples is not None else []
