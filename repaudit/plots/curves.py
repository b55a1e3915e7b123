"""Curves over training steps: spread, distances from untrained networks and inputs, approach, groups, diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from repaudit.errors import AnalysisError
from repaudit.names import LAYER, MODEL, STEP
from repaudit.plots import canvas, style
from repaudit.plots.lines import DISTANCES, Line, band_of, distances, line_of, pairs
from repaudit.plots.scales import Found, at_one_scale
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTIC_NAMES,
    DIAGNOSTICS,
    EFFECTIVE_NEIGHBORS,
    GROUPS,
    SPREAD,
    names_of,
    one_layer,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spread(spread: Found, ax: Axes | None = None, layers: Sequence[str] | None = None) -> Axes:
    """Draw the spread over steps, with its 95% intervals and the line of unrelated models at 1.

    A single layer also has, in grey, the band that holds over all steps at once.

    Parameters
    ----------
    spread
        Group ``spread`` of the results at one scale: ``spread``, ``low``, ``high``, ``band_low`` and ``band_high`` on
        (layer, step); the bounds may be absent. Or all results, of which the first scale is drawn.
    ax
        Where to draw; a new figure when None.
    layers
        Names of the layers to draw, all when None. Bands are drawn for up to four.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        A layer is not in the results.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> values = {"spread": (("layer", "step"), [[0.2, 0.7, 0.1]])}
    >>> spread = xr.Dataset(values, coords={"layer": ["model.norm"], "step": [0, 10, 20]})
    >>> plot_spread(spread, ax=Figure().add_subplot()).get_ylabel()
    'spread (1 = unrelated)'
    """
    spread = at_one_scale(spread, SPREAD)
    ax = canvas.axes(ax)
    names = list(layers) if layers is not None else names_of(spread, LAYER)
    handles = []
    for index, name in enumerate(names):
        color = style.depth_color(index, len(names))
        draw_band(ax, band_of(spread, name) if len(names) == 1 else None)
        handles.append(draw_curve(ax, line_of(spread, name), color, band=len(names) <= 4, label=name))
    canvas.null_axes(ax, spread[STEP].values, label="spread (1 = unrelated)")
    if layers is not None and len(names) == 1:
        ax.set_title(canvas.safe(names[0]), loc="left", fontsize=9, color=canvas.INK)
    canvas.name_scale(ax, spread)
    _legend(ax, handles, names)
    return ax


def plot_comparison(comparison: Found, layer: str, ax: Axes | None = None, *, spread: Found | None = None) -> Axes:
    """Draw how far a layer's models are from each other, from the untrained networks and from the inputs.

    Parameters
    ----------
    comparison
        Group ``comparison`` of the results: ``from_untrained`` and ``from_inputs`` on (layer, step), each with its
        ``_low`` and ``_high``, and ``feature_halves`` on (layer,); any of them may be absent.
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.
    spread
        Group ``spread``, for the distance from each other.

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
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> values = {"from_inputs": (("layer", "step"), [[0.2, 0.7]]), "feature_halves": ("layer", [0.03])}
    >>> comparison = xr.Dataset(values, coords={"layer": ["norm"], "step": [0, 10]})
    >>> plot_comparison(comparison, "norm", ax=Figure().add_subplot()).get_ylabel()
    'squared distance (1 = unrelated)'
    """
    comparison = at_one_scale(comparison, COMPARISON)
    spread = None if spread is None else at_one_scale(spread, SPREAD)
    ax = canvas.axes(ax)
    layer = str(one_layer(comparison, layer)[LAYER].values)
    lines, floor = distances(spread, comparison, layer)
    handles = []
    for name, line in lines.items():
        color = style.COMPARISONS.get(name, canvas.INK)
        handle = draw_curve(ax, line, color, band=True, label=name)
        handle.set_linestyle(style.MATPLOTLIB_DASHES[name])
        handles.append(handle)
    names = [DISTANCES[name] for name in lines]
    if floor is not None:
        handles.append(ax.axhline(floor, color=style.OTHER, linewidth=1.0))
        names.append("halves of the features")
    canvas.null_axes(ax, comparison[STEP].values, label="squared distance (1 = unrelated)")
    ax.set_title(canvas.safe(layer), loc="left", fontsize=9, color=canvas.INK)
    canvas.name_scale(ax, comparison)
    _legend(ax, handles, names)
    return ax


def plot_approach(
    approach: Found, ax: Axes | None = None, layers: Sequence[str] | None = None, *, model: str | None = None
) -> Axes:
    """Draw how a single model approaches its own end: its distance from its last operator, 0 there.

    Parameters
    ----------
    approach
        Group ``approach`` of the results: ``approach``, ``low`` and ``high`` on (layer, model, step).
    ax
        Where to draw; a new figure when None.
    layers
        Names of the layers to draw, all when None. Bands are drawn for up to four.
    model
        Name of the model, the first when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        A layer or the model is not in the results.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> values = {"approach": (("layer", "model", "step"), [[[0.9, 0.4, 0.0]]])}
    >>> approach = xr.Dataset(values, coords={"layer": ["norm"], "model": ["seed0"], "step": [0, 10, 20]})
    >>> plot_approach(approach, ax=Figure().add_subplot()).lines[0].get_ydata().tolist()
    [0.9, 0.4, 0.0]
    """
    approach = at_one_scale(approach, APPROACH)
    ax = canvas.axes(ax)
    models = names_of(approach, MODEL)
    if model is not None and model not in models:
        raise AnalysisError(f"expected one of the models of these results ({', '.join(models)}), found {model!r}")
    index = 0 if model is None else models.index(model)
    names, everything = list(layers) if layers is not None else names_of(approach, LAYER), names_of(approach, LAYER)
    handles = []
    for name in names:
        line = line_of(approach, name, APPROACH, model=index)
        color = style.depth_color(everything.index(name), len(everything))
        handles.append(draw_curve(ax, line, color, band=len(names) <= 4, label=name))
    canvas.null_axes(ax, approach[STEP].values, label="squared distance from its own end")
    _legend(ax, handles, names)
    return ax


def plot_groups(groups: Found, layer: str, ax: Axes | None = None) -> Axes:
    """Draw the spread within each group of models (solid) and between every pair of groups (dashed).

    Parameters
    ----------
    groups
        Group ``groups`` of the results: ``spread``, ``low`` and ``high`` on (layer, step, group, other).
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None. Bands are drawn for up to six curves.

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
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> values = {"spread": (("layer", "step", "group", "other"), [[[[0.1, 0.6], [0.6, 0.2]]]])}
    >>> names = {"group": ["small", "large"], "other": ["small", "large"]}
    >>> groups = xr.Dataset(values, coords={"layer": ["norm"], "step": [0], **names})
    >>> [text.get_text() for text in plot_groups(groups, "norm", ax=Figure().add_subplot()).get_legend().get_texts()]
    ['small', 'large', 'small | large']
    """
    groups = at_one_scale(groups, GROUPS)
    ax = canvas.axes(ax)
    curves = pairs(groups, layer)
    handles = []
    for i, j, name, line in curves:
        handle = draw_curve(ax, line, style.group_color(i, j), band=len(curves) <= 6, label=name)
        handle.set_linestyle("-" if i == j else (0, (4, 2)))
        handles.append(handle)
    canvas.null_axes(ax, groups[STEP].values, label="spread (1 = unrelated)")
    _legend(ax, handles, [name for _, _, name, _ in curves])
    return ax


def plot_diagnostics(
    diagnostics: Found, ax: Axes | None = None, *, variable: str = EFFECTIVE_NEIGHBORS, layer: str | None = None
) -> Axes:
    """Draw one diagnostic of the operators over steps, one line per model and layer, coloured by layer.

    Parameters
    ----------
    diagnostics
        Group ``diagnostics`` of the results: ``variable`` on (layer, model, step).
    ax
        Where to draw; a new figure when None.
    variable
        Name of the diagnostic.
    layer
        Name of one layer; all when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The variable or the layer is not in the results.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> values = {"entropy": (("layer", "model", "step"), [[[4.0, 3.0]]])}
    >>> diagnostics = xr.Dataset(values, coords={"layer": ["norm"], "model": ["seed0"], "step": [0, 10]})
    >>> plot_diagnostics(diagnostics, ax=Figure().add_subplot(), variable="entropy").get_title(loc="left")
    'diffusion spectral entropy'
    """
    diagnostics = at_one_scale(diagnostics, DIAGNOSTICS)
    if variable not in diagnostics:
        raise AnalysisError(
            f"expected one of the diagnostics {sorted(map(str, diagnostics.data_vars))}, found {variable!r}"
        )
    ax = canvas.axes(ax)
    everything, models = names_of(diagnostics, LAYER), names_of(diagnostics, MODEL)
    layers = everything if layer is None else [layer]
    steps = np.asarray(diagnostics[STEP].values)
    for name in layers:
        values = one_layer(diagnostics, name)[variable].transpose(MODEL, STEP).values.astype(float)
        color = style.depth_color(everything.index(name), len(everything))
        for index in range(len(models)):
            finite = np.isfinite(values[index])
            marker = canvas.marker(index) if finite.sum() <= style.DENSE else ""
            ax.plot(steps[finite], values[index][finite], color=color, linewidth=1.1, marker=marker, markersize=2.8)
    canvas.step_axis(ax, steps)
    canvas.despine(ax)
    ax.set_title(DIAGNOSTIC_NAMES.get(variable, variable), loc="left", fontsize=9, color=canvas.INK)
    canvas.name_scale(ax, diagnostics)
    colors = [style.depth_color(everything.index(name), len(everything)) for name in layers]
    lines = [Line2D([], [], color=color, linewidth=2) for color in colors]
    canvas.legend(ax, [*lines, *(canvas.key(index) for index in range(len(models)))], [*layers, *models])
    return ax


def draw_curve(ax: Axes, line: Line, color: str, *, band: bool, label: str) -> Line2D:
    """Draw a curve and, where its bounds are known, its band."""
    if band and np.isfinite(line.low).any():
        ax.fill_between(line.step, line.low, line.high, color=color, alpha=0.18, linewidth=0)
        if len(line.step) == 1:  # a band over one step has no width
            ax.vlines(line.step, line.low, line.high, color=color, alpha=0.6, linewidth=1.2)
    marker = "" if len(line.step) > style.DENSE else "o"
    (drawn,) = ax.plot(line.step, line.value, color=color, linewidth=1.6, marker=marker, markersize=2.6)
    drawn.set_gid(label)
    return drawn


def draw_band(ax: Axes, band: Line | None) -> None:
    """Draw the band that holds over all steps at once, where it is known, behind a curve."""
    if band is not None:
        ax.fill_between(band.step, band.low, band.high, color=canvas.FAINT, alpha=0.45, linewidth=0, zorder=0.5)


def _legend(ax: Axes, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    if len(names) > 1:
        ax.legend(handles, canvas.safes(names, 34), frameon=False, fontsize=7, loc="best")
