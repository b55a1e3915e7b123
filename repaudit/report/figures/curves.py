"""The report's curves over training steps, each figure of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from repaudit.names import LAYER, MODEL, STEP
from repaudit.plots import style
from repaudit.plots.lines import DISTANCES, Line, band_of, distances, line_of, pairs
from repaudit.report.figures import canvas
from repaudit.results import APPROACH, DIAGNOSTIC_NAMES, names_of, one_layer

Phase = Mapping[str, Any]
"""One entry of a layer's ``phases`` in the summary: ``from``, ``to`` and ``direction``."""


def spread_figure(spread: xr.Dataset, layer: str, phases: Sequence[Phase] = ()) -> go.Figure:
    """Draw one layer's spread over steps, with the null line at 1 and the other layers in grey.

    The 95% intervals are tinted by phase; behind them lies the band that holds over all steps at once.
    """
    lines = {name: line_of(spread, name) for name in names_of(spread, LAYER)}
    return _curve_figure(spread, lines, layer, phases, "spread", band_of(spread, layer))


def approach_figure(approach: xr.Dataset, layer: str) -> go.Figure:
    """Draw a single model's distance from its own last operator over steps, like the spread of several."""
    lines = {name: line_of(approach, name, APPROACH, model=0) for name in names_of(approach, LAYER)}
    return _curve_figure(approach, lines, layer, (), "distance")


def _curve_figure(
    dataset: xr.Dataset,
    lines: Mapping[str, Line],
    layer: str,
    phases: Sequence[Phase],
    title: str,
    band: Line | None = None,
) -> go.Figure:
    axis, line = style.StepAxis.of(dataset[STEP].values), lines[layer]
    made = canvas.figure()
    if band is not None:
        canvas.band(made, axis, band, style.OTHER, meta={"band": True})
    _others(made, axis, [other for name, other in lines.items() if name != layer])
    for phase in phases or [{"from": -np.inf, "to": np.inf, "direction": "flat"}]:
        _phase(made, axis, line, phase)
    made.add_scatter(
        x=axis.position(line.step), y=line.value, mode=canvas.mode(axis), meta={"ink": True},
        line={"width": 2}, marker={"size": 5}, **_told(line, title, band),
    )  # fmt: skip
    return canvas.null_axis(made, axis, max(1.1, *(1.06 * one.top for one in (line, band) if one is not None)), title)


def same_height(figures: Sequence[go.Figure]) -> None:
    """Give figures that stand side by side the same vertical axis: the tallest of them."""
    top = max((made.layout.yaxis.range[1] for made in figures), default=1.1)
    for made in figures:
        made.update_yaxes(range=[0, top])


def comparison_figure(comparison: xr.Dataset | None, spread: xr.Dataset | None, layer: str) -> go.Figure:
    """Draw how far a layer's models are from each other, from untrained networks and from the inputs, with bands."""
    lines, floor = distances(spread, comparison, layer)
    source = comparison if comparison is not None else spread
    if source is None:
        raise ValueError("expected a comparison or a spread, found neither")
    axis, names = style.StepAxis.of(source[STEP].values), names_of(source, LAYER)
    made = canvas.figure()
    for name, line in lines.items():
        color = style.COMPARISONS.get(name, style.depth_color(names.index(layer), len(names)))
        canvas.band(made, axis, line, color)
        _line(made, axis, line, DISTANCES[name], color, style.PLOTLY_DASHES[name])
    if floor is not None:
        ends = axis.position([axis.steps[0], axis.steps[-1]])
        made.add_scatter(
            x=ends, y=[floor, floor], mode="lines", name="halves of the features",
            line={"width": 1, "color": style.OTHER},
            hovertemplate="halves of one model's features %{y:.3f}<extra></extra>",
        )  # fmt: skip
    canvas.legend(made, above=True)
    return canvas.null_axis(made, axis, max([1.1, *(1.06 * line.top for line in lines.values())]), "distance")


def groups_figure(groups: xr.Dataset, layer: str) -> go.Figure:
    """Draw the spread within each group of models, solid, and between every pair of groups, dashed."""
    axis, curves = style.StepAxis.of(groups[STEP].values), pairs(groups, layer)
    made = canvas.figure()
    for i, j, name, line in curves:
        color = style.group_color(i, j)
        if len(curves) <= 6:
            canvas.band(made, axis, line, color)
        _line(made, axis, line, name, color, "solid" if i == j else "dash")
    canvas.legend(made, above=True)
    return canvas.null_axis(made, axis, max([1.1, *(1.06 * line.top for *_, line in curves)]), "spread")


def diagnostic_figure(diagnostics: xr.Dataset, layer: str, variable: str) -> go.Figure:
    """Draw one diagnostic of one layer over steps, one line per model."""
    axis = style.StepAxis.of(diagnostics[STEP].values)
    array = one_layer(diagnostics, layer)[variable].transpose(MODEL, STEP)
    made = canvas.figure()
    for index, model in enumerate(names_of(diagnostics, MODEL)):
        values = array.values[index].astype(float)
        finite = np.isfinite(values)
        steps = diagnostics[STEP].values[finite]
        made.add_scatter(
            x=axis.position(steps), y=values[finite], mode=canvas.mode(axis), meta={"ink": True}, line={"width": 1.2},
            marker={"size": 5, "symbol": canvas.symbol(index)}, customdata=steps,
            hovertext=[canvas.literal(model)] * len(steps),  # a text alone is shown as "-"
            hovertemplate="%{hovertext}<br>step %{customdata:,}<br>%{y:.4g}<extra></extra>",
        )  # fmt: skip
    text = DIAGNOSTIC_NAMES.get(variable, canvas.literal(variable))
    made.update_layout(title={"text": text, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"}, margin={"t": 28})
    return canvas.step_axis(made, axis)


def _told(line: Line, title: str, band: Line | None = None) -> dict[str, Any]:
    """Return what hovering over a curve shows: the step, the value, the interval and the band if they are known."""
    interval = "<br>95% %{customdata[1]:.3f} to %{customdata[2]:.3f}" if np.isfinite(line.low).any() else ""
    interval += "<br>all steps %{customdata[3]:.3f} to %{customdata[4]:.3f}" if band is not None else ""
    return {
        "customdata": np.stack([line.step, line.low, line.high, *((band.low, band.high) if band else ())], axis=1),
        "hovertemplate": f"{title}<br>step %{{customdata[0]:,}}<br>%{{y:.3f}}{interval}<extra></extra>",
    }


def _line(made: go.Figure, axis: style.StepAxis, line: Line, name: str, color: str, dash: str) -> None:
    made.add_scatter(
        x=axis.position(line.step), y=line.value, mode=canvas.mode(axis), name=canvas.literal(name), showlegend=True,
        line={"width": 2, "color": color, "dash": dash}, marker={"size": 5, "color": color},
        **_told(line, canvas.literal(name)),
    )  # fmt: skip


def _others(made: go.Figure, axis: style.StepAxis, lines: Sequence[Line]) -> None:
    """Draw the other layers' curves in one grey trace, with gaps between them."""
    if lines:
        x = np.concatenate([np.append(axis.position(line.step), np.nan) for line in lines])
        y = np.concatenate([np.append(line.value, np.nan) for line in lines])
        grey = {"color": "rgba(128,134,140,0.35)", "width": 1}
        made.add_scatter(x=x, y=y, mode="lines", line=grey, hoverinfo="skip")


def _phase(made: go.Figure, axis: style.StepAxis, line: Line, phase: Phase) -> None:
    """Tint the interval's band over one phase with the colour of its direction."""
    direction = str(phase["direction"])
    color = style.DIRECTIONS.get(direction, style.OTHER)
    x = canvas.band(made, axis, line, color, (line.step >= phase["from"]) & (line.step <= phase["to"]))
    if len(x) and np.isfinite(float(phase["from"])):
        made.add_annotation(
            x=float(x.mean()), y=0, yanchor="bottom", text=canvas.literal(direction), showarrow=False,
            font={"color": color},
        )  # fmt: skip
