"""The report: one HTML file that opens with the answer and needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from repaudit import interactive, plots, style
from repaudit.names import LAYER, MODEL, SAMPLE, STEP


@dataclass
class LayerView:
    """What the report says and shows of one layer; ``figures`` maps a kind of figure to its JSON."""

    name: str
    anchor: str
    verdict: str
    sentence: str
    numbers: dict[str, str]
    sparkline: Markup | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    table: list[dict[str, str]] = field(default_factory=list)
    stress: dict[str, str] = field(default_factory=dict)
    merged: str = "the merged operator"


MANY_LAYERS: Final = 7
"""From so many layers on, the page opens with a map of them and shows one at a time."""
MOST_ROWS: Final = 200
"""A table of more steps shows so many of them, evenly chosen, and says so."""

HEALTHY: Final = {
    "isolated": 0, "duplicates": 0, "collapsed": 0, "components": 1, "floored": 0, "failed": 0, "uniformity": 0.99,
}  # fmt: skip
"""What each diagnostic is at most where nothing is wrong with an operator."""


def write_report(results: xr.DataTree, summary: Mapping[str, Any], path: str | Path) -> Path:
    """Write the results as one self-contained HTML file.

    The file opens with the headline and a sentence for each layer; then come, for each layer, the spread over steps
    with its interval and the null line at 1, the trajectories, the merged operator's embedding and the diagnostics;
    last the parameters, the fingerprint of the probe set, the versions, and what was left out. It holds plotly.js once
    and asks nothing of the network. Of a single model, which has no spread, it shows the rest and says so.

    Parameters
    ----------
    results
        Results of an analysis: groups ``spread``, ``trajectories``, ``merged`` and ``diagnostics``, any of them absent.
    summary
        The content of ``summary.json``.
    path
        The file to write; one that exists is replaced, in one piece.

    Returns
    -------
    Path
        The file written.
    """
    environment = _environment()
    assets = _assets(environment)
    layers = _layers(results, summary)
    html = environment.get_template("report.html.jinja").render(
        summary=summary,
        layers=layers,
        figures=_overview(results, layers)
        | {
            view.anchor: {kind: interactive.as_data(figure) for kind, figure in view.figures.items()} for view in layers
        },
        texts=_texts(results),
        many=len(layers) >= MANY_LAYERS,
        most_rows=MOST_ROWS,
        samples=_samples(results),
        span=_span(summary),
        has_spread=plots.has_spread(results),
        verdicts=style.VERDICTS,
        about=_about(results, summary),
        script_sources=" ".join(_digest(assets[name]) for name in ("plotlyjs", "script")),
        **{name: Markup(text) for name, text in assets.items()},  # noqa: S704 - files of ours and of plotly's
    )
    return _replace(Path(path), html)


def _overview(results: xr.DataTree, layers: Sequence[LayerView]) -> dict[str, Any]:
    """Map of all layers, where there are too many to take in from their curves."""
    if len(layers) < MANY_LAYERS or not plots.has_spread(results):
        return {}
    return {"overview": {"map": interactive.as_data(interactive.overview_figure(results["spread"].to_dataset()))}}


def _assets(environment: Environment) -> dict[str, str]:
    """Scripts and style sheet that the page holds, none of them with anything of the results in it."""
    from plotly.offline import get_plotlyjs

    script, css = (environment.get_template(f"report.{kind}").render() for kind in ("js", "css"))
    return {"plotlyjs": get_plotlyjs(), "script": script, "css": css}


def _digest(script: str) -> str:
    """Return the source by which the page's security policy lets this script run, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("repaudit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = style.visible
    return environment


def _replace(target: Path, html: str) -> Path:
    """Write beside the file, then rename over it, so that no reader meets half a report."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as stream:
        stream.write(html)
    partial = Path(stream.name)
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)
    partial.replace(target)
    return target


def _dataset(results: xr.DataTree, group: str) -> xr.Dataset | None:
    return results[group].to_dataset() if group in results.children else None


def _layers(results: xr.DataTree, summary: Mapping[str, Any]) -> list[LayerView]:
    said: Mapping[str, Any] = summary.get("layers", {})
    names = list(dict.fromkeys([*said, *(name for group in results.children for name in _layer_names(results, group))]))
    views = []
    for index, name in enumerate(names):
        entry = said.get(name, {})
        view = LayerView(
            name,
            f"layer-{index}",
            str(entry.get("verdict") or "undecided"),
            _sentence(entry),
            _numbers(entry),
        )
        _add_spread(view, results, entry)
        _add_embeddings(view, results)
        _add_diagnostics(view, results)
        views.append(view)
    return views


def _layer_names(results: xr.DataTree, group: str) -> list[str]:
    return plots.names_of(results[group].to_dataset(), LAYER)


def _numbers(entry: Mapping[str, Any]) -> dict[str, str]:
    """Start, peak and end of a layer's spread, as far as they are known."""
    found = {}
    peak = entry.get("peak") or {}
    if _finite(entry.get("start")):
        found["start"] = f"{entry['start']:.2f}"
    if _finite(peak.get("value")):
        found["peak"] = f"{peak['value']:.2f} at step {peak['step']:,}"
    if _finite(entry.get("end")):
        found["end"] = f"{entry['end']:.2f}" + _interval(entry)
    return found


def _sentence(entry: Mapping[str, Any]) -> str:
    """Return the layer's sentence without the verdict, which stands before it in colour."""
    text = str(entry.get("sentence") or "").removeprefix(f"{entry.get('verdict')}: ")
    return text[:1].upper() + text[1:]


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return f" [{low:.2f}, {high:.2f}]" if _finite(low) and _finite(high) else ""


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _add_spread(view: LayerView, results: xr.DataTree, entry: Mapping[str, Any]) -> None:
    spread = _dataset(results, "spread")
    if spread is None or view.name not in plots.names_of(spread, LAYER):
        return
    found = plots.curve(spread, view.name)
    if not found["step"].size:
        return
    view.figures["spread"] = interactive.spread_figure(spread, view.name, entry.get("phases") or ())
    view.sparkline = sparkline(spread, view.name, style.VERDICTS.get(view.verdict, style.OTHER))
    view.table = list(_rows(plots.one_layer(spread, view.name)))


def _rows(one: xr.Dataset) -> Iterator[dict[str, str]]:
    """Table of the measures of one layer, a row for each step."""
    columns = ("spread", "low", "high", "spread_raw", "hellinger", "n_models")
    steps = one[STEP].values
    for k in np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_ROWS)).astype(int)):
        row = {"step": f"{int(steps[k]):,}"}
        for name in columns:
            if name in one and one[name].dims == (STEP,):
                row[name] = _number(one[name].values[k])
        yield row


def _number(value: Any) -> str:
    number = float(value)
    if not math.isfinite(number):
        return "–"
    return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"


def sparkline(spread: xr.Dataset, layer: str, color: str) -> Markup:
    """Small drawing of a layer's spread, band and null line, on one scale for all layers.

    Examples
    --------
    >>> values = {"spread": (("layer", "step"), [[0.2, 0.7, 0.1]])}
    >>> spread = xr.Dataset(values, coords={"layer": ["model.norm"], "step": [0, 10, 20]})
    >>> "<polyline" in sparkline(spread, "model.norm", "#0f7fc0")
    True
    """
    width, height = 160.0, 40.0
    found = plots.curve(spread, layer)
    axis = style.StepAxis.of(spread[STEP].values)
    bounds = [spread[name].values for name in ("spread", "high") if name in spread]
    top = max(1.1, float(np.nanmax([np.nanmax(np.nan_to_num(values, nan=0.0)) for values in bounds])))
    x = 3 + axis.fraction(found["step"]) * (width - 6)

    def points(name: str, *, back: bool = False) -> str:
        y = height - 2 - np.clip(found[name], 0, top) / top * (height - 4)
        pairs = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if math.isfinite(b)]
        return " ".join(reversed(pairs) if back else pairs)

    null, end = height - 2 - (height - 4) / top, points("spread").split()[-1].split(",")
    return Markup(  # noqa: S704 - numbers and a colour of our own, formatted here
        f'<svg class="spark" viewBox="0 0 {width:g} {height:g}" aria-hidden="true">'
        f'<line x1="0" x2="{width:g}" y1="{null:.1f}" y2="{null:.1f}" class="null"/>'
        f'<polygon points="{points("high")} {points("low", back=True)}" fill="{color}" opacity=".2"/>'
        f'<polyline points="{points("spread")}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        f'<circle cx="{end[0]}" cy="{end[1]}" r="2.4" fill="{color}"/></svg>'
    )


def _add_embeddings(view: LayerView, results: xr.DataTree) -> None:
    trajectories, merged = _dataset(results, "trajectories"), _dataset(results, "merged")
    if trajectories is not None and view.name in plots.names_of(trajectories, LAYER):
        for variable in ("trajectory", "mds"):
            if variable in trajectories and _known(plots.one_layer(trajectories, view.name)[variable]):
                view.figures[variable] = interactive.trajectory_figure(trajectories, view.name, variable)
        view.stress |= _stress(trajectories, view.name, "trajectory")
    if merged is not None and view.name in plots.names_of(merged, LAYER):
        if _known(plots.one_layer(merged, view.name)["embedding"]):
            view.figures["embedding"] = interactive.embedding_figure(merged, view.name)
            view.merged = _merged_words(plots.one_layer(merged, view.name))
        view.stress |= _stress(merged, view.name, "embedding")


def _merged_words(one: xr.Dataset) -> str:
    """Say of how many models, at which step, as far as the results tell."""
    count = int(one["merged_models"]) if "merged_models" in one else 0
    step = f" at step {int(one['merged_step']):,}" if "merged_step" in one else ""
    operator = "the model's operator" if count == 1 else f"the merged operator{f' of {count} models' if count else ''}"
    return f"{operator}{step} (PHATE){', by label' if 'label' in one.coords else ''}"


def _known(values: xr.DataArray) -> bool:
    return bool(np.isfinite(values.values).any())


def _stress(dataset: xr.Dataset, layer: str, figure: str) -> dict[str, str]:
    if "stress" not in dataset:
        return {}
    value = float(plots.one_layer(dataset, layer)["stress"])
    return {figure: f"{value:.2f}"} if math.isfinite(value) else {}


def _add_diagnostics(view: LayerView, results: xr.DataTree) -> None:
    """Curves of what varies, and words for every count that is not as it should be."""
    diagnostics = _dataset(results, "diagnostics")
    if diagnostics is None or view.name not in plots.names_of(diagnostics, LAYER):
        return
    one = plots.one_layer(diagnostics, view.name)
    view.diagnostics = {variable: plots.DIAGNOSTICS[variable] for variable in plots.varying(one)}
    for variable in view.diagnostics:
        view.figures[variable] = interactive.diagnostic_figure(diagnostics, view.name, variable)
    for variable in filter(one.__contains__, HEALTHY):
        view.findings += _finding(variable, one)
        view.checked.append(_diagnostic_words(variable))


def _diagnostic_words(variable: str) -> str:
    return {"components": "disconnected operators", "uniformity": f"uniformity above {HEALTHY['uniformity']:g}"}.get(
        variable, plots.DIAGNOSTICS.get(variable, variable)
    )


def _finding(variable: str, one: xr.Dataset) -> list[str]:
    """Say where a diagnostic exceeds what a healthy operator has."""
    values = one[variable].transpose(MODEL, STEP).values.astype(float)
    bad = np.isfinite(values) & (values > HEALTHY[variable])
    if not bad.any():
        return []
    models = [name for name, row in zip(plots.names_of(one, MODEL), bad, strict=True) if row.any()]
    steps = one[STEP].values[bad.any(axis=0)]
    worst = "" if variable in {"collapsed", "failed"} else f", at most {_number(values[bad].max())}"
    return [
        f"{_diagnostic_words(variable)}: in {bad.sum()} of {np.isfinite(values).sum()} operators{worst} "
        f"({', '.join(models)}; steps {int(steps.min()):,} to {int(steps.max()):,})"
    ]


def _samples(results: xr.DataTree) -> int:
    merged = _dataset(results, "merged")
    return int(merged.sizes.get(SAMPLE, 0)) if merged is not None else 0


def _span(summary: Mapping[str, Any]) -> str:
    """Say how many steps there are, and from which to which."""
    steps = summary.get("steps") or []
    if isinstance(steps, Mapping):
        steps = sorted({int(step) for found in steps.values() for step in found})
    if not steps:
        return ""
    return (
        f"{len(steps)} steps, {int(steps[0]):,} to {int(steps[-1]):,}" if len(steps) > 1 else f"step {int(steps[0]):,}"
    )


def _texts(results: xr.DataTree) -> list[list[str]]:
    merged = _dataset(results, "merged")
    return interactive.sample_texts(merged) if merged is not None else []


def _about(results: xr.DataTree, summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Sections of the page's end: what was left out, the parameters, the probe set, the versions."""
    attrs: dict[str, Any] = {str(name): value for name, value in results.attrs.items()}
    attrs |= {name: value for name, value in summary.items() if value is not None}
    titles = {
        "left_out": "Left out", "parameters": "Parameters", "fingerprint": "Fingerprint of the probe set",
        "versions": "Versions", "store": "Store",
    }  # fmt: skip
    return [(title, plain(_decoded(attrs[name]))) for name, title in titles.items() if name in attrs]


def _decoded(value: Any) -> Any:
    """Attributes on disk may hold their nested values as JSON."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def plain(value: Any) -> Any:
    """Nested mappings and sequences with every leaf as the text to show.

    Examples
    --------
    >>> plain({"knn": 15, "bandwidth": None, "layers": ["a"]})
    {'knn': '15', 'bandwidth': 'none', 'layers': ['a']}
    """
    if isinstance(value, Mapping):
        return {style.visible(str(name)): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return "none" if value is None else style.visible(str(value))
