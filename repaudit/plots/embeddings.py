"""Pictures of operators, samples and units as points: trajectories, embeddings, and how both move over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from repaudit.errors import AnalysisError
from repaudit.names import COMPONENT, LAYER, MODEL, SAMPLE, STEP, meant_layer
from repaudit.plots import canvas, style
from repaudit.plots.points import labels_of, path, two
from repaudit.plots.scales import Found, at_one_scale
from repaudit.results import (
    DISTANCE_STRESS,
    EMBEDDING,
    FRAMES,
    MERGED,
    OF_MODELS,
    TOGETHER,
    TOGETHER_DISTANCE_STRESS,
    TRAJECTORIES,
    TRAJECTORY,
    UNIT,
    UNITS,
    names_of,
    one_layer,
    scalar,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUGH = 0.2
"""Stress from which a picture is a rough one."""


def plot_trajectories(trajectories: Found, layer: str, ax: Axes | None = None, *, variable: str = TRAJECTORY) -> Axes:
    """Draw the trajectories of all models in one layer, coloured by step and marked by model.

    Parameters
    ----------
    trajectories
        Group ``trajectories`` of the results: ``variable`` on (layer, model, step, component).
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.
    variable
        ``"trajectory"`` (PHATE) or ``"mds"`` (classical scaling of the same distances).

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The layer is not in the results.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> points = (("layer", "model", "step", "component"), [[[[0.0, 0.0], [1.0, 2.0]]]])
    >>> coords = {"layer": ["norm"], "model": ["seed0"], "step": [0, 10]}
    >>> trajectories = xr.Dataset({"trajectory": points}, coords=coords)
    >>> plot_trajectories(trajectories, "norm", ax=Figure().add_subplot()).lines[0].get_ydata().tolist()
    [0.0, 2.0]
    """
    trajectories = at_one_scale(trajectories, TRAJECTORIES)
    ax = canvas.axes(ax)
    axis = style.StepAxis.of(trajectories[STEP].values)
    models = names_of(trajectories, MODEL)
    for index, model in enumerate(models):
        points = path(trajectories, layer, model, variable)
        x, y = two(points)
        marker = canvas.marker(index)
        ax.plot(x, y, color=canvas.FAINT, linewidth=1.0, zorder=1)
        size, edge = (8, 0.0) if axis.dense else (30, 0.5)
        colors = canvas.STEPS(axis.fraction(points[STEP].values))
        ax.scatter(x, y, c=colors, marker=marker, s=size, edgecolors="white", linewidths=edge, zorder=2)
        ax.scatter(
            x[-1:], y[-1:], marker=marker, s=90, facecolors="none", edgecolors=canvas.INK, linewidths=1.0, zorder=3
        )
    canvas.legend(ax, [canvas.key(index) for index in range(len(models))], models)
    canvas.bare(ax, "PHATE" if variable == TRAJECTORY else "MDS")
    stress = scalar(one_layer(trajectories, layer), DISTANCE_STRESS) if variable == TRAJECTORY else None
    _title(ax, f"{canvas.safe(meant_layer(layer, names_of(trajectories, LAYER)))}   ", stress)
    canvas.name_scale(ax, trajectories)
    canvas.step_colorbar(ax, axis)
    return ax


def plot_together(trajectories: Found, ax: Axes | None = None) -> Axes:
    """Draw the trajectories of all layers in one picture: colour is the layer, the marker the model, larger later.

    Parameters
    ----------
    trajectories
        Group ``trajectories`` of the results: ``together`` on (layer, model, step, component).
    ax
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> points = (("layer", "model", "step", "component"), [[[[0.0, 0.0], [1.0, 2.0]]]])
    >>> trajectories = xr.Dataset({"together": points}, coords={"layer": ["norm"], "model": ["seed0"], "step": [0, 10]})
    >>> len(plot_together(trajectories, ax=Figure().add_subplot()).lines)
    1
    """
    trajectories = at_one_scale(trajectories, TRAJECTORIES)
    ax = canvas.axes(ax)
    layers, models = names_of(trajectories, LAYER), names_of(trajectories, MODEL)
    axis = style.StepAxis.of(trajectories[STEP].values)
    for depth, layer in enumerate(layers):
        color = style.depth_color(depth, len(layers))
        for index, model in enumerate(models):
            points = path(trajectories, layer, model, TOGETHER)
            x, y = two(points)
            sizes = 4 + 26 * axis.growth(points[STEP].values)
            ax.plot(x, y, color=color, linewidth=0.8, alpha=0.5, zorder=1)
            ax.scatter(x, y, s=sizes, color=color, marker=canvas.marker(index), linewidths=0, zorder=2)
    few = range(len(layers)) if len(layers) <= 8 else np.unique(np.linspace(0, len(layers) - 1, 6).astype(int))
    lines = [Line2D([], [], color=style.depth_color(k, len(layers)), linewidth=2) for k in few]
    marks = [canvas.key(index) for index in range(len(models))] if len(models) > 1 else []
    canvas.legend(ax, [*lines, *marks], [*(layers[k] for k in few), *models[: len(marks)]])
    canvas.bare(ax, "PHATE")
    _title(ax, "", scalar(trajectories, TOGETHER_DISTANCE_STRESS))
    canvas.name_scale(ax, trajectories)
    return ax


def _title(ax: Axes, name: str, stress: float | None) -> None:
    """Say of what a picture is, and how far its distances are to be believed."""
    rough = ": a rough picture" if stress is not None and stress >= ROUGH else ""
    said = "" if stress is None else f"stress {stress:.2f}{rough}"
    ax.set_title(f"{name}{said}", loc="left", fontsize=9, color=canvas.INK)


def plot_embedding(merged: Found, layer: str, ax: Axes | None = None) -> Axes:
    """Draw the merged operator's embedding of the samples, coloured by label.

    Parameters
    ----------
    merged
        Group ``merged`` of the results: ``embedding`` on (layer, sample, component), coordinate ``label (sample)``.
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The layer is not in the results.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> points = (("layer", "sample", "component"), [[[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]])
    >>> merged = xr.Dataset({"embedding": points}, {"layer": ["norm"], "label": ("sample", ["ham", "spam", "ham"])})
    >>> [text.get_text() for text in plot_embedding(merged, "norm", ax=Figure().add_subplot()).get_legend().get_texts()]
    ['ham', 'spam']
    """
    merged = at_one_scale(merged, MERGED)
    ax = canvas.axes(ax)
    groups = _draw_samples(ax, one_layer(merged, layer)[EMBEDDING], labels_of(merged))
    handles = keys(groups)
    canvas.legend(ax, handles, [group.name for group in groups])
    canvas.bare(ax, "PHATE")
    _title(ax, canvas.safe(meant_layer(layer, names_of(merged, LAYER))), None)
    canvas.name_scale(ax, merged)
    return ax


def plot_frame(frames: Found, layer: str, step: int, ax: Axes | None = None, *, model: str | None = None) -> Axes:
    """Draw the samples at one step, in the frame that all steps and models of the layer share.

    Parameters
    ----------
    frames
        Group ``frames`` of the results: ``merged`` on (layer, step, sample, component) and, for one model,
        ``models`` on (layer, model, step, sample, component).
    layer, step
        Name of the layer, and one of the steps of this group.
    ax
        Where to draw; a new figure when None. Its limits hold the samples of every step.
    model
        Name of a model; the merged operator's samples when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The layer, the step or the model is not in the results.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> points = (("layer", "step", "sample", "component"), [[[[0.0, 0.0], [1.0, 2.0]]]])
    >>> frames = xr.Dataset({"merged": points}, coords={"layer": ["norm"], "step": [1000]})
    >>> plot_frame(frames, "norm", 1000, ax=Figure().add_subplot()).get_title(loc="left")
    'step 1,000'
    """
    frames = at_one_scale(frames, FRAMES)
    frame, steps = one_layer(frames, layer), [int(value) for value in frames[STEP].values]
    if step not in steps:
        raise AnalysisError(f"layer {layer!r}: expected one of the steps {steps}, found {step}")
    values = frame[MERGED]
    if model is not None:
        names = names_of(frame, MODEL)
        if model not in names:
            raise AnalysisError(f"layer {layer!r}: expected one of the models {names}, found {model!r}")
        values = frame[OF_MODELS].isel({MODEL: names.index(model)})
    ax = canvas.axes(ax)
    groups = _draw_samples(ax, values.isel({STEP: steps.index(step)}), labels_of(frames))
    canvas.legend(ax, keys(groups), [group.name for group in groups])
    everything = values.transpose(..., COMPONENT).values.reshape(-1, values.sizes[COMPONENT])[:, :2]
    everything = everything[np.isfinite(everything).all(axis=1)]
    if len(everything):
        ax.update_datalim(everything)
    canvas.bare(ax, "PHATE")
    ax.set_title(f"step {step:,}", loc="left", fontsize=8, color=canvas.INK)
    ax.set_title(canvas.safe(meant_layer(layer, names_of(frames, LAYER))), loc="right", fontsize=7, color=canvas.INK)
    return ax


def plot_units(units: Found, layer: str, ax: Axes | None = None, *, model: str | None = None) -> Axes:
    """Draw a layer's units over steps (M-PHATE), coloured by step, one line per unit.

    Parameters
    ----------
    units
        Group ``units`` of the results: ``embedding`` on (layer, model, step, unit, component).
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.
    model
        Name of the model; the first when None. Each model has its own frame.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The layer or the model is not in the results.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> points = (("layer", "model", "step", "unit", "component"), [[[[[0.0, 0.0]], [[1.0, 2.0]]]]])
    >>> units = xr.Dataset({"embedding": points}, coords={"layer": ["norm"], "model": ["seed0"], "step": [0, 10]})
    >>> len(plot_units(units, "norm", ax=Figure().add_subplot()).lines)
    1
    """
    units = at_one_scale(units, UNITS)
    models = names_of(units, MODEL)
    if model is not None and model not in models:
        raise AnalysisError(f"layer {layer!r}: expected one of the models {models}, found {model!r}")
    ax = canvas.axes(ax)
    index = 0 if model is None else models.index(model)
    axis = style.StepAxis.of(units[STEP].values)
    points = one_layer(units, layer)[EMBEDDING].isel({MODEL: index}).transpose(UNIT, STEP, COMPONENT)
    colors = canvas.STEPS(axis.fraction(points[STEP].values))
    for unit in range(points.sizes[UNIT]):
        x, y = two(points.isel({UNIT: unit}))
        ax.plot(x, y, color=canvas.FAINT, linewidth=0.5, zorder=1)
        ax.scatter(x, y, c=colors, s=6, linewidths=0, zorder=2)
    canvas.bare(ax, "M-PHATE")
    canvas.step_colorbar(ax, axis)
    return ax


def keys(groups: Sequence[style.LabelGroup]) -> list[Line2D]:
    """Return the entries of a legend for groups of samples."""
    markers: Any = style.MATPLOTLIB_MARKERS
    return [Line2D([], [], linestyle="", marker=markers[g.marker], color=g.color, markersize=5) for g in groups]


def _draw_samples(ax: Axes, points: xr.DataArray, labels: list[str] | None) -> list[style.LabelGroup]:
    x, y = two(points.transpose(SAMPLE, COMPONENT))
    groups = style.label_groups(labels, len(x))
    for group in groups:
        marker: Any = style.MATPLOTLIB_MARKERS[group.marker]
        ax.scatter(x[group.index], y[group.index], s=16, marker=marker, c=group.color, edgecolors="none", alpha=0.85)
    return groups
