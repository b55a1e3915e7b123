"""The report's pictures of operators, samples and units as points."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from repaudit.names import COMPONENT, FEATURE, LAYER, MODEL, OF_SAMPLE, POSITION, SAMPLE, STEP, TEXT, THUMBNAIL
from repaudit.plots import style
from repaudit.plots.points import labels_of, path
from repaudit.report.figures import canvas
from repaudit.results import EMBEDDING, TOGETHER, TRAJECTORY, UNIT, names_of, one_layer

MOST_POINTS: Final = 6_000
"""Points in the picture of all layers, and in four pictures of units: more are neither seen nor moved fluently."""
MOST_UNITS: Final = 90_000
"""Points in all pictures of units of one report: about 1 MB."""


def trajectory_figure(trajectories: xr.Dataset, layer: str, variable: str = TRAJECTORY) -> go.Figure:
    """Draw all models' trajectories in one layer: colour is the step, the marker the model, larger at its last step."""
    axis = style.StepAxis.of(trajectories[STEP].values)
    made = canvas.figure()
    models = names_of(trajectories, MODEL)
    for index, model in enumerate(models):
        points = path(trajectories, layer, model, variable)
        steps = np.asarray(points[STEP].values)
        if not len(steps):
            continue
        x, y = canvas.coordinates(points)
        sizes = np.where(np.arange(len(steps)) == len(steps) - 1, 13, 5 if axis.dense else 8)
        made.add_scatter(
            x=x, y=y, mode="lines+markers", legendgroup=str(index), showlegend=False,
            line={"width": 1.2, "color": canvas.GREY}, meta={"edge": True},
            marker={
                "size": sizes, "symbol": canvas.symbol(index), "line": {"width": 0.0 if axis.dense else 0.7},
                "color": axis.position(steps), **canvas.step_scale(axis),
            },
            customdata=steps, hovertext=[canvas.literal(model)] * len(steps),
            hovertemplate="%{hovertext}<br>step %{customdata:,}<extra></extra>",
        )  # fmt: skip
        _key(made, index, model)
    canvas.step_colorbar(made, axis)
    return canvas.bare(made, named=len(models) > 1)


def together_figure(trajectories: xr.Dataset) -> go.Figure:
    """Draw all layers' trajectories in one picture: colour is the layer, the marker the model, larger later."""
    trajectories = together_shown(trajectories)
    axis = style.StepAxis.of(trajectories[STEP].values)
    layers, models = names_of(trajectories, LAYER), names_of(trajectories, MODEL)
    made = canvas.figure()
    for depth, layer in enumerate(layers):
        parts = [canvas.coordinates(path(trajectories, layer, model, TOGETHER)) for model in models]
        x, y = (np.concatenate([np.append(part[k], np.float32(np.nan)) for part in parts]) for k in (0, 1))
        line = {"width": 1.2, "color": style.translucent(style.depth_color(depth, len(layers)), 0.5)}
        made.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    scale = _depth_scale(len(layers))
    for index, model in enumerate(models):
        paths = [path(trajectories, layer, model, TOGETHER) for layer in layers]
        steps = np.concatenate([points[STEP].values for points in paths])
        depth_of = np.repeat(np.arange(len(layers)), [points.sizes[STEP] for points in paths])
        x, y = (np.concatenate(parts) for parts in zip(*map(canvas.coordinates, paths), strict=True))
        made.add_scatter(
            x=x, y=y, mode="markers", showlegend=False, legendgroup=str(index),
            marker={
                "size": 3.5 + 6 * axis.growth(steps), "symbol": canvas.symbol(index), "color": depth_of,
                "line": {"width": 0.4}, **scale,
            },
            meta={"edge": True}, customdata=np.stack([steps, depth_of], axis=1),
            hovertext=[f"{canvas.literal(model)}<br>{canvas.literal(layers[k])}" for k in depth_of],
            hovertemplate="%{hovertext}<br>step %{customdata[0]:,}<extra></extra>",
        )  # fmt: skip
        _key(made, index, model)
    names = canvas.literals(layers, 22)
    few = np.unique(np.linspace(0, len(layers) - 1, min(8, len(layers))).round().astype(int))
    canvas.colorbar(made, scale, canvas.bar("layer", few, [names[k] for k in few]))
    return canvas.bare(made, named=len(models) > 1)


def together_shown(trajectories: xr.Dataset) -> xr.Dataset:
    """Return evenly chosen steps, the first and the last among them, so that the points of all layers are not many."""
    of_step = trajectories.sizes[LAYER] * trajectories.sizes[MODEL]
    return _fewer_steps(trajectories, max(2, MOST_POINTS // of_step))


def units_shown(units: xr.Dataset) -> xr.Dataset:
    """Return evenly chosen steps, the first and the last among them, so that the points of one figure are not many."""
    figures = units.sizes[LAYER] * units.sizes[MODEL]
    return _fewer_steps(units, max(6, min(MOST_POINTS // 4, MOST_UNITS // figures) // units.sizes[UNIT]))


def _fewer_steps(dataset: xr.Dataset, most: int) -> xr.Dataset:
    count = dataset.sizes[STEP]
    return dataset.isel({STEP: np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))})


def units_figure(units: xr.Dataset, layer: str, model: int) -> go.Figure:
    """Draw a layer's units over steps (M-PHATE), one line per unit, coloured by step."""
    units = units_shown(units)
    axis = style.StepAxis.of(units[STEP].values)
    dataset = one_layer(units, layer).isel({MODEL: model})
    points = dataset[EMBEDDING].transpose(UNIT, STEP, COMPONENT)
    feature = np.asarray(dataset[FEATURE].values if FEATURE in dataset else np.arange(points.sizes[UNIT]))
    made = canvas.figure()
    x, y = canvas.coordinates(points.stack(point=(UNIT, STEP)).transpose("point", COMPONENT))
    steps, features = np.tile(points[STEP].values, len(feature)), np.repeat(feature, points.sizes[STEP])
    gaps = np.arange(points.sizes[STEP], len(x), points.sizes[STEP])
    made.add_scatter(
        x=np.insert(x, gaps, np.nan), y=np.insert(y, gaps, np.nan), mode="lines+markers",
        line={"width": 0.7, "color": "rgba(128,134,140,0.35)"},
        marker={"size": 4, "color": np.insert(axis.position(steps), gaps, 0), **canvas.step_scale(axis)},
        meta={"told": [np.insert(features, gaps, 0), np.insert(steps, gaps, 0)]},
        hovertemplate="unit %{customdata[0]:.0f}<br>step %{customdata[1]:,}<extra></extra>",
    )  # fmt: skip
    canvas.step_colorbar(made, axis)
    return canvas.bare(made, named=False)


def embedding_figure(merged: xr.Dataset, layer: str) -> go.Figure:
    """Draw the merged operator's embedding of the samples, coloured by label.

    Instead of hover texts, which all layers share, a trace carries ``meta.group``, its index in :func:`sample_texts`.
    """
    points = one_layer(merged, layer)[EMBEDDING].transpose(SAMPLE, COMPONENT)
    return samples_figure(*canvas.coordinates(points), style.label_groups(labels_of(merged), len(points)))


def samples_figure(x: Any, y: Any, groups: list[style.LabelGroup]) -> go.Figure:
    """Draw samples in groups of labels, one trace per group."""
    made = canvas.figure()
    for number, group in enumerate(groups):
        made.add_scatter(
            x=x[group.index], y=y[group.index], mode="markers", name=canvas.literal(group.name),
            marker={"size": 6, "color": group.color, "symbol": style.PLOTLY_SYMBOLS[group.marker], "opacity": 0.85},
            hoverinfo="text", meta={"group": number},
        )  # fmt: skip
    return canvas.bare(made, named=len(groups) > 1)


def sample_texts(samples: xr.Dataset) -> list[list[str]]:
    """Return the hover text of every sample, in the groups and the order of :func:`embedding_figure`."""
    ids = [str(sample) for sample in samples[SAMPLE].values]
    labels = labels_of(samples)
    texts = [str(text) for text in samples[TEXT].values] if TEXT in samples.variables else None
    tokens = _token_places(samples)
    hover = []
    for index, name in enumerate(ids):
        lines = [f"<b>{canvas.literal(name, 64)}</b>"]
        if labels is not None and labels[index] not in name:
            lines.append(canvas.literal(labels[index], 64))
        if tokens is not None:
            lines.append(canvas.literal(tokens[index], 64))
        if texts is not None:
            lines += [canvas.literal(line, 80) for line in style.wrapped(texts[index])]
        hover.append("<br>".join(lines))
    return [[hover[k] for k in group.index] for group in style.label_groups(labels, len(ids))]


def sample_pictures(samples: xr.Dataset) -> list[list[str]]:
    """Return the thumbnail of every sample in the groups and the order of :func:`sample_texts`; empty without any."""
    if THUMBNAIL not in samples.variables:
        return []
    pictures = [str(picture) for picture in samples[THUMBNAIL].values]
    return [[pictures[k] for k in group.index] for group in style.label_groups(labels_of(samples), len(pictures))]


def _token_places(samples: xr.Dataset) -> list[str] | None:
    """Return where each token is, where the samples are tokens."""
    if OF_SAMPLE not in samples.variables or POSITION not in samples.variables:
        return None
    places = zip(samples[POSITION].values.tolist(), samples[OF_SAMPLE].values, strict=True)
    return [f"token {position} of {sample}" for position, sample in places]


def _key(made: go.Figure, index: int, model: str) -> None:
    """Add the entry of the legend for a model's marker."""
    made.add_scatter(
        x=[None], y=[None], mode="markers", name=canvas.literal(model), legendgroup=str(index),
        marker={"size": 8, "symbol": canvas.symbol(index), "color": "#80868c"},
    )  # fmt: skip


def _depth_scale(count: int) -> dict[str, Any]:
    colors = style.DEPTH_COLORS
    scale = [[k / (len(colors) - 1), color] for k, color in enumerate(colors)]
    return {"cmin": 0, "cmax": max(1, count - 1), "colorscale": scale}
