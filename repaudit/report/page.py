"""Writing the report: one self-contained HTML file that opens with the answer."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from repaudit.names import LAYER, SAMPLE, STEP, at_home
from repaudit.plots import style
from repaudit.plots.scales import Scale, at_scale, scales, summary_at
from repaudit.report import scale_words, words
from repaudit.report.figures import embeddings, frames, maps
from repaudit.report.figures.canvas import as_data, shared
from repaudit.report.layers import AtScale, Groups, LayerView, ScaleView, layer_views
from repaudit.results import TOGETHER, TOGETHER_DISTANCE_STRESS, TOGETHER_STRESS, known, scalar
from repaudit.store.storage.replacing import replacing

MANY_LAYERS: Final = 7
"""From this many layers on, the page opens with a map of them and shows one at a time."""


def write_report(results: xr.DataTree, summary: Mapping[str, Any], path: str | Path) -> Path:
    """Write the results as one self-contained HTML file.

    The file opens with the headline, what the scales mean, a sentence for each layer, and the order in which the layers
    settle; then come all layers together and their similarity; then, for each layer, the spread over steps at every
    scale with its interval, its band and the null line at 1, and, at the scale that the reader chooses, the distances
    of every two models and from the untrained networks and the inputs, the trajectories, the samples' embedding over
    steps, and the diagnostics; last the parameters, the fingerprint of the probe set, the versions, and what was left
    out. It contains plotly.js once and loads nothing from the network. For a single model, which has no spread,
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
    assets = _assets()
    every = [
        AtScale(scale, Groups.of(at_scale(results, scale.index)), summary_at(summary, scale))
        for scale in scales(results)
    ]
    groups, layers = every[0].groups, layer_views(every, summary)
    views = [view for layer in layers for view in layer.views]
    overview = _overview(every, layers)
    figures = {view.anchor: {kind: as_data(made) for kind, made in view.figures.items()} for view in views}
    figures, lists = shared(({"overview": overview} if overview else {}) | figures)
    similarity = None if groups.similarity is None else maps.similarity_data(groups.similarity)
    texts, pictures = _of_samples(every)
    template = _environment().get_template("report.html.jinja")
    html = template.render(
        summary=summary,
        layers=layers,
        meaning=scale_words.meaning([at.scale for at in every]),
        scales=[{"name": at.scale.name, "title": scale_words.title(at.scale)} for at in every],
        settling=_settling(every),
        overview=overview,
        similarity=similarity,
        data=_squeezed(
            {
                "figures": _by_kind(figures),  # like stands next to like: it is compressed better
                "lists": lists,
                "shared": {name: lines for at in every for name, lines in at.lines().items()},
                "texts": texts,
                "pictures": pictures,
                "frames": _frames(every, views),
                "similarity": similarity,
                "tables": {view.anchor: view.table for view in views if view.table},
            }
        ),
        repeated=_repeated(summary),
        findable=_findable(views, texts),
        together_stress={_numbered("together", at.scale): _together_stress(at.groups.trajectories) for at in every},
        many=len(layers) >= MANY_LAYERS,
        most_rows=words.MOST_ROWS,
        samples=groups.samples,
        span=words.span(summary),
        has_spread=any(at.groups.spread is not None for at in every),
        has_approach=any("approach" in view.figures for view in views),
        verdicts=style.VERDICT_WORDS,
        about=words.about(results, summary),
        script_sources=" ".join(_digest(assets[name]) for name in ("plotlyjs", "script")),
        **{name: Markup(text) for name, text in assets.items()},  # noqa: S704 - our own files and plotly's
    )
    target = at_home(path)
    with replacing(target) as stream:
        stream.write(html.encode())
    return target


def _overview(every: Sequence[AtScale], layers: Sequence[LayerView]) -> dict[str, Any]:
    """Draw the figures of all layers: maps of the spread if there are many, all trajectories, similarities."""
    figures = {}
    for at in every:
        spread, together = at.groups.spread, at.groups.trajectories
        if len(layers) >= MANY_LAYERS and spread is not None:
            figures[_numbered("map", at.scale)] = maps.overview_figure(spread)
        if together is not None and TOGETHER in together and together.sizes[LAYER] > 1 and known(together[TOGETHER]):
            figures[_numbered("together", at.scale)] = embeddings.together_figure(together)
    if every[0].groups.similarity is not None:
        figures["similarity"] = maps.similarity_figure(every[0].groups.similarity)
    return {kind: as_data(figure) for kind, figure in figures.items()}


def _numbered(kind: str, scale: Scale) -> str:
    """Return the name of a figure of all layers at one scale."""
    return f"{kind}-{scale.index}" if scale.index else kind


def _settling(every: Sequence[AtScale]) -> list[dict[str, Any]]:
    """Return the order in which the layers settle at each scale at which any does."""
    found = [(at, words.settling(at.summary)) for at in every]
    return [
        {
            "scale": scale_words.title(at.scale),
            "entries": entries,
            "others": len(at.summary["settling"]) - len(entries),
        }
        for at, entries in found
        if entries
    ]


@cache  # an analysis writes its report twice
def _assets() -> dict[str, str]:
    """Return the scripts and the style sheet of the page; none of them contains any of the results."""
    from plotly.offline import get_plotlyjs

    script, css = (_environment().get_template(f"report.{kind}").render() for kind in ("js", "css"))
    return {"plotlyjs": get_plotlyjs(), "script": script, "css": css}


def _by_kind(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for anchor, of_layer in figures.items():
        for kind, figure in of_layer.items():
            found.setdefault(kind, {})[anchor] = figure
    return found


def _squeezed(data: Mapping[str, Any]) -> str:
    """Return what the page's script reads: JSON, compressed, in base64."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _repeated(summary: Mapping[str, Any]) -> str:
    """Say that markers stand for several models, where there are more models than markers."""
    most = len(style.PLOTLY_SYMBOLS)
    return f" (repeated after {most} models: hover for the name)" if len(summary.get("models") or ()) > most else ""


def _findable(views: Sequence[ScaleView], texts: Sequence[Sequence[str]]) -> bool:
    """Whether the page has pictures of samples, and more than one sample to find there."""
    return any("embedding" in view.figures for view in views) and sum(map(len, texts)) > 1


@cache
def _digest(script: str) -> str:
    """Return the source by which the page's security policy allows this script only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
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


def _frames(every: Sequence[AtScale], views: Sequence[ScaleView]) -> dict[str, Any]:
    """Return the positions of every layer's samples, and which samples of each group of labels these are."""
    moving = {view.anchor: view.frames for view in views if view.frames is not None}
    datasets = [at.groups.frames for at in every if at.groups.frames is not None]
    if not datasets or not moving:
        return {}
    thinning = frames.Thinning.of(datasets[0], frames.MOST_NUMBERS // len(every))
    return {"pick": frames.picked(datasets[0], thinning), "layers": moving}


def _together_stress(trajectories: xr.Dataset | None) -> str:
    if trajectories is None or TOGETHER not in trajectories:
        return ""
    shown, steps = embeddings.together_shown(trajectories).sizes[STEP], trajectories.sizes[STEP]
    stress = words.stress(scalar(trajectories, TOGETHER_STRESS), scalar(trajectories, TOGETHER_DISTANCE_STRESS))
    return stress + (f" Shown: {shown} of {steps} steps." if shown < steps else "")


def _of_samples(every: Sequence[AtScale]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the texts and pictures to hover over, from the group that tells most about the samples."""
    datasets = [*(at.groups.merged for at in every), *(at.groups.frames for at in every)]
    samples = next((dataset for dataset in datasets if dataset is not None and SAMPLE in dataset.coords), None)
    return ([], []) if samples is None else (embeddings.sample_texts(samples), embeddings.sample_pictures(samples))
