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


def spread_figure(spread: xr.Dataset, layer: str, phases: Sequence[Phase] = (), others: str = "") -> go.Figure:
    """Draw one layer's spread over steps, with the null line at 1.

    The 95% intervals are tinted by phase; behind them lies the band that holds over all steps at once, and what the
    page keeps under the name `others`, in grey: the curves of :func:`every_line`.
    """
    axis = style.StepAxis.of(spread[STEP].values)
    return _curve_figure(axis, line_of(spread, layer), phases, "spread", others, band_of(spread, layer))


def approach_figure(approach: xr.Dataset, layer: str, others: str = "") -> go.Figure:
    """Draw a single model's squared distance from its own last operator over steps, like the spread of several."""
    axis = style.StepAxis.of(approach[STEP].values)
    return _curve_figure(axis, line_of(approach, layer, APPROACH, model=0), (), "squared distance", others)


def every_line(dataset: xr.Dataset, variable: str, **where: int) -> dict[str, Any]:
    """Return the curves of all layers as one line with gaps, which the figures of all layers share."""
    axis = style.StepAxis.of(dataset[STEP].values)
    lines = [line_of(dataset, name, variable, **where) for name in names_of(dataset, LAYER)]
    x = np.concatenate([np.append(axis.position(line.step), np.nan) for line in lines])
    y = np.concatenate([np.append(line.value, np.nan) for line in lines])
    return {"x": canvas.plain(x), "y": canvas.plain(y)}


def _curve_figure(
    axis: style.StepAxis, line: Line, phases: Sequence[Phase], title: str, others: str, band: Line | None = None
) -> go.Figure:
    made = canvas.figure()
    phases = phases or [{"from": None, "to": None, "direction": "flat"}]
    of = (band is not None) + bool(others) + len(phases)
    if band is not None:
        canvas.band(made, of, style.OTHER, low=3, high=4)
    if others:
        grey = {"color": "rgba(128,134,140,0.35)", "width": 1}
        made.add_scatter(x=[None], y=[None], mode="lines", line=grey, hoverinfo="skip", meta={"shared": others})
    for phase in phases:
        _phase(made, axis, line, phase, of)
    canvas.curve(made, axis, line, title, wide=band, meta={"ink": True}, line={"width": 2}, marker={"size": 5})
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
        canvas.band(made, len(made.data) + 1, color)
        _line(made, axis, line, DISTANCES[name], color, style.PLOTLY_DASHES[name])
    if floor is not None:
        ends = axis.position([axis.steps[0], axis.steps[-1]])
        made.add_scatter(
            x=ends, y=[floor, floor], mode="lines", name="halves of the features",
            line={"width": 1, "color": style.OTHER},
            hovertemplate="halves of one model's features %{y:.3f}<extra></extra>",
        )  # fmt: skip
    canvas.legend(made, above=True)
    return canvas.null_axis(made, axis, max([1.1, *(1.06 * line.top for line in lines.values())]), "squared distance")


def groups_figure(groups: xr.Dataset, layer: str) -> go.Figure:
    """Draw the spread within each group of models, solid, and between every pair of groups, dashed."""
    axis, curves = style.StepAxis.of(groups[STEP].values), pairs(groups, layer)
    made = canvas.figure()
    for i, j, name, line in curves:
        color = style.group_color(i, j)
        if len(curves) <= 6:
            canvas.band(made, len(made.data) + 1, color)
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


def _line(made: go.Figure, axis: style.StepAxis, line: Line, name: str, color: str, dash: str) -> None:
    canvas.curve(
        made, axis, line, canvas.literal(name), name=canvas.literal(name), showlegend=True,
        line={"width": 2, "color": color, "dash": dash}, marker={"size": 5, "color": color},
    )  # fmt: skip


def _phase(made: go.Figure, axis: style.StepAxis, line: Line, phase: Phase, of: int) -> None:
    """Tint the interval's band over one phase with the colour of its direction."""
    direction, first, last = str(phase["direction"]), phase["from"], phase["to"]
    color = style.DIRECTIONS.get(direction, style.OTHER)
    if first is None:
        canvas.band(made, of, color)
        return
    canvas.band(made, of, color, **{"from": first, "to": last})
    known = (line.step >= first) & (line.step <= last) & np.isfinite(line.low) & np.isfinite(line.high)
    if known.sum() > 1:
        made.add_annotation(
            x=float(axis.position(line.step[known]).mean()), y=0, yanchor="bottom", text=canvas.literal(direction),
            showarrow=False, font={"color": color}, name=style.VERDICT_OF.get(direction),
        )  # fmt: skip
