"""The report's figures with plotly: each function makes one figure of one layer, in theme-neutral colours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from repaudit import plots, style
from repaudit.names import COMPONENT, LAYER, MODEL, SAMPLE, STEP

_STEPS: Final = [[k / (len(style.STEP_COLORS) - 1), color] for k, color in enumerate(style.STEP_COLORS)]
Phase = Mapping[str, Any]
"""One entry of a layer's ``phases`` in the summary: ``from``, ``to`` and ``direction``."""


def spread_figure(spread: xr.Dataset, layer: str, phases: Sequence[Phase] = ()) -> go.Figure:
    """Draw one layer's spread over steps: 95% band tinted by phase, the null line at 1, the other layers in grey."""
    axis = style.StepAxis.of(spread[STEP].values)
    figure = _figure()
    _others(figure, axis, [plots.curve(spread, name) for name in plots.names_of(spread, LAYER) if name != layer])
    found = plots.curve(spread, layer)
    for phase in phases or [{"from": -np.inf, "to": np.inf, "direction": "flat"}]:
        _phase(figure, axis, found, phase)
    figure.add_scatter(
        x=axis.position(found["step"]), y=found["spread"], mode=_mode(axis), meta={"ink": True},
        line={"width": 2}, marker={"size": 5}, customdata=np.stack([found[k] for k in ("step", "low", "high")], axis=1),
        hovertemplate="step %{customdata[0]:,}<br>spread %{y:.3f}"
        "<br>95% %{customdata[1]:.3f} to %{customdata[2]:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=1, line={"width": 1, "dash": "dot", "color": "rgba(128,134,140,0.9)"})
    figure.add_annotation(x=1, xref="paper", y=1, text="unrelated", showarrow=False, xanchor="right", yanchor="bottom")
    top = max([1.1, *(found["high"][np.isfinite(found["high"])] * 1.05), *(found["spread"] * 1.1)])
    figure.update_yaxes(range=[0, float(top)], title="spread")
    return _step_axis(figure, axis)


def overview_figure(spread: xr.Dataset) -> go.Figure:
    """Draw the spread of every layer at every step as a map: steps to the right, layers downward."""
    axis = style.StepAxis.of(spread[STEP].values)
    layers = plots.names_of(spread, LAYER)
    values = spread["spread"].transpose(LAYER, STEP).values.astype(np.float32)
    order = np.argsort(np.asarray(spread[STEP].values), kind="stable")
    names = [literal(style.visible(name, 30)) for name in layers]
    hover = [
        [f"{name}<br>step {step:,}<br>spread {value:.3f}" for step, value in zip(axis.steps, row, strict=True)]
        for name, row in zip(names, values[:, order], strict=True)
    ]
    figure = _figure()
    figure.add_heatmap(
        x=axis.edges(), y=np.arange(len(layers) + 1) - 0.5, z=values[:, order], zmin=0, zmax=1, ygap=1,
        colorscale=[[k / 2, color] for k, color in enumerate(style.SPREAD_COLORS)], hovertext=hover, hoverinfo="text",
        hoverongaps=False, colorbar=_bar("spread", [0, 0.5, 1], ["0", "0.5", "1"]),
    )  # fmt: skip
    _step_axis(figure, axis)
    every = range(0, len(layers), max(1, round(len(layers) / 15)))
    figure.update_yaxes(autorange="reversed", tickvals=list(every), ticktext=[names[k] for k in every], title=None)
    figure.update_layout(margin={"l": 8})
    return figure


def trajectory_figure(trajectories: xr.Dataset, layer: str, variable: str = "trajectory") -> go.Figure:
    """Draw all models' trajectories in one layer: colour is the step, the marker the model, larger at its last step."""
    axis = style.StepAxis.of(trajectories[STEP].values)
    figure = _figure()
    models = plots.names_of(trajectories, MODEL)
    first, last = (float(end) for end in axis.position([min(axis.steps), max(axis.steps)]))
    for index, model in enumerate(models):
        symbol, name = style.PLOTLY_SYMBOLS[index % len(style.PLOTLY_SYMBOLS)], literal(style.visible(model, 40))
        points = plots.path(trajectories, layer, model, variable)
        steps = np.asarray(points[STEP].values)
        if not len(steps):
            continue
        x, y = _two(points)
        color = {"color": axis.position(steps), "cmin": first, "cmax": last, "colorscale": _STEPS}
        sizes = np.where(np.arange(len(steps)) == len(steps) - 1, 13, 5 if axis.dense else 8)
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", legendgroup=str(index), showlegend=False,
            line={"width": 1.2, "color": "rgba(128,134,140,0.55)"}, meta={"edge": True},
            marker={"size": sizes, "symbol": symbol, "line": {"width": 0.0 if axis.dense else 0.7}, **color},
            customdata=steps, hovertext=name, hovertemplate="%{hovertext}<br>step %{customdata:,}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, legendgroup=str(index),
            marker={"size": 8, "symbol": symbol, "color": "#80868c"},
        )  # fmt: skip
    _colorbar(figure, axis)
    return _bare(figure, legend=len(models) > 1)


def embedding_figure(merged: xr.Dataset, layer: str) -> go.Figure:
    """Draw the merged operator's embedding of the samples, coloured by label.

    In place of hover texts, which all layers share, a trace carries ``meta.group``, its place in :func:`sample_texts`.
    """
    points = plots.one_layer(merged, layer)["embedding"].transpose(SAMPLE, COMPONENT)
    x, y = _two(points)
    figure = _figure()
    groups = style.label_groups(plots.labels_of(merged), len(x))
    for number, group in enumerate(groups):
        figure.add_scatter(
            x=x[group.index], y=y[group.index], mode="markers", name=literal(style.visible(group.name, 40)),
            marker={"size": 6, "color": group.color, "symbol": style.PLOTLY_SYMBOLS[group.marker], "opacity": 0.85},
            hoverinfo="text", meta={"group": number},
        )  # fmt: skip
    return _bare(figure, legend=len(groups) > 1)


def sample_texts(merged: xr.Dataset) -> list[list[str]]:
    """Hover text of every sample, in the groups and the order in which :func:`embedding_figure` draws them."""
    ids = [str(sample) for sample in merged[SAMPLE].values]
    labels = plots.labels_of(merged)
    texts = [str(text) for text in merged["text"].values] if "text" in merged.variables else None
    hover = []
    for index, name in enumerate(ids):
        lines = [f"<b>{literal(style.visible(name, 64))}</b>"]
        if labels is not None and labels[index] not in name:
            lines.append(literal(style.visible(labels[index], 64)))
        if texts is not None:
            lines += [literal(line) for line in style.wrapped(texts[index])]
        hover.append("<br>".join(lines))
    return [[hover[k] for k in group.index] for group in style.label_groups(labels, len(ids))]


def diagnostic_figure(diagnostics: xr.Dataset, layer: str, variable: str) -> go.Figure:
    """Draw one diagnostic of one layer over steps, a line for each model."""
    axis = style.StepAxis.of(diagnostics[STEP].values)
    one = plots.one_layer(diagnostics, layer)[variable].transpose(MODEL, STEP)
    figure = _figure()
    for index, model in enumerate(plots.names_of(diagnostics, MODEL)):
        values = one.values[index].astype(float)
        known = np.isfinite(values)
        steps = diagnostics[STEP].values[known]
        figure.add_scatter(
            x=axis.position(steps), y=values[known], mode=_mode(axis), meta={"ink": True}, line={"width": 1.2},
            marker={"size": 5, "symbol": style.PLOTLY_SYMBOLS[index % len(style.PLOTLY_SYMBOLS)]},
            customdata=steps, hovertext=literal(style.visible(model, 40)),
            hovertemplate="%{hovertext}<br>step %{customdata:,}<br>%{y:.4g}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        title={
            "text": plots.DIAGNOSTICS.get(variable, literal(variable)),
            "x": 0,
            "xref": "paper",
            "y": 0.97,
            "yanchor": "top",
        },
        margin={"t": 28},
    )
    return _step_axis(figure, axis)


def literal(text: str) -> str:
    """Text that plotly shows as it is: it reads a small HTML in every text it draws."""
    return escape(text, quote=False)


def _figure() -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template=None, showlegend=False, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 48, "r": 12, "t": 12, "b": 40}, hovermode="closest",
    )  # fmt: skip
    return figure


def _mode(axis: style.StepAxis) -> str:
    return "lines" if axis.dense else "lines+markers"


def _others(figure: go.Figure, axis: style.StepAxis, curves: Sequence[Mapping[str, Any]]) -> None:
    """Draw the other layers' curves in one grey trace, a gap between each and the next."""
    if curves:
        x = np.concatenate([np.append(axis.position(found["step"]), np.nan) for found in curves])
        y = np.concatenate([np.append(found["spread"], np.nan) for found in curves])
        line = {"color": "rgba(128,134,140,0.35)", "width": 1}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _phase(figure: go.Figure, axis: style.StepAxis, found: Mapping[str, Any], phase: Phase) -> None:
    """Tint the interval's band over one phase with the colour of its direction."""
    direction = str(phase["direction"])
    during = (found["step"] >= phase["from"]) & (found["step"] <= phase["to"]) & np.isfinite(found["low"])
    if not during.any():
        return
    x = axis.position(found["step"][during])
    color = style.DIRECTIONS.get(direction, style.OTHER)
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]), y=np.concatenate([found["high"][during], found["low"][during][::-1]]),
        mode="lines", line={"width": 0}, fill="toself", fillcolor=style.translucent(color, 0.25), hoverinfo="skip",
    )  # fmt: skip
    if np.isfinite(float(phase["from"])):
        figure.add_annotation(
            x=float(x.mean()), y=0, yanchor="bottom", text=literal(direction), showarrow=False, font={"color": color}
        )


def _step_axis(figure: go.Figure, axis: style.StepAxis) -> go.Figure:
    ticks = axis.ticks()
    figure.update_xaxes(
        tickvals=axis.position(ticks),
        ticktext=[f"{tick:,}" for tick in ticks],
        title="step",
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(showgrid=False, zeroline=False, automargin=True, nticks=6)
    return figure


def _bare(figure: go.Figure, *, legend: bool) -> go.Figure:
    """Leave an embedding with neither ticks nor frame: its units mean nothing, its proportions do."""
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x", scaleratio=1)
    figure.update_layout(
        showlegend=legend, margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "yanchor": "top", "y": -0.02, "x": 0, "itemsizing": "constant"},
    )  # fmt: skip
    return figure


def _colorbar(figure: go.Figure, axis: style.StepAxis) -> None:
    """Colours from the first to the last step, spaced as the axis of steps is."""
    if len(axis.steps) < 2:
        return
    ticks = axis.ticks(6)
    first, last = (float(end) for end in axis.position([axis.steps[0], axis.steps[-1]]))
    bar = _bar("step", axis.position(ticks), [f"{tick:,}" for tick in ticks])
    marker = {"color": [first], "cmin": first, "cmax": last, "colorscale": _STEPS, "showscale": True, "colorbar": bar}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def _bar(title: str, values: Any, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "title": {"text": f"{title}<br> ", "side": "top"}, "thickness": 8, "len": 0.7, "outlinewidth": 0,
        "ticks": "", "xpad": 4, "tickvals": values, "ticktext": texts,
    }  # fmt: skip


def _two(points: xr.DataArray) -> tuple[Any, Any]:
    values = np.asarray(points.values, dtype=np.float32)
    return values[:, 0], values[:, 1] if values.shape[1] > 1 else np.zeros(len(values), np.float32)


def as_data(figure: go.Figure) -> Any:
    """Return the figure as plain data: arrays in plotly's own binary form, coordinates in single precision."""
    for trace in figure.data:
        for name in ("x", "y"):
            values = trace[name]
            if isinstance(values, np.ndarray) and values.dtype == np.float64:
                trace[name] = values.astype(np.float32)
    return json.loads(figure.to_json())
