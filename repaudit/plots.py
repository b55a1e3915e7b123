"""Figures of an analysis with matplotlib: every function takes an ``ax``, draws on it and returns it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repaudit import style
from repaudit.errors import AnalysisError
from repaudit.names import COMPONENT, LABEL, LAYER, MODEL, SAMPLE, STEP, encode_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_INK: Final = "#22262a"
_FAINT: Final = "#c8ccd0"
_STEPS: Final = LinearSegmentedColormap.from_list("repaudit_steps", list(style.STEP_COLORS))

DIAGNOSTICS: Final = {
    "effective_neighbors": "effective neighbours",
    "entropy": "diffusion spectral entropy",
    "components": "connected components",
    "isolated": "isolated samples",
    "duplicates": "duplicate samples",
    "collapsed": "collapsed operators",
    "floored": "bandwidths at the floor",
    "failed": "operators that failed",
}
"""Variables of the group ``diagnostics`` and the words for them, in the order in which they are shown."""


def names_of(dataset: xr.Dataset, dim: Hashable) -> list[str]:
    """Return the names along a dim; those of an unlabelled dim are its indices."""
    if dim not in dataset.dims:
        return []
    return [str(name) for name in dataset[dim].values]


def one_layer(dataset: xr.Dataset, layer: str) -> xr.Dataset:
    """Select a layer by name; an unknown one raises :class:`AnalysisError` with the names there are."""
    names = names_of(dataset, LAYER)
    if layer not in names:
        raise AnalysisError(f"expected one of the layers of these results ({', '.join(names)}), found {layer!r}")
    return dataset.isel({LAYER: names.index(layer)})


def curve(dataset: xr.Dataset, layer: str) -> dict[str, NDArray[np.float64]]:
    """Steps, spread and interval of one layer where the spread is known, each of shape (steps known,)."""
    one = one_layer(dataset, layer)
    value = np.asarray(one["spread"].values, dtype=float)
    known = np.isfinite(value)
    found = {"step": np.asarray(one[STEP].values)[known], "spread": value[known]}
    for name in ("low", "high"):
        bound = np.asarray(one[name].values, dtype=float)[known] if name in one else np.full(known.sum(), np.nan)
        found[name] = bound
    return found


def path(dataset: xr.Dataset, layer: str, model: str, variable: str = "trajectory") -> xr.DataArray:
    """Points (step, component) of one model's trajectory, without the steps that the model lacks."""
    one = one_layer(dataset, layer)[variable]
    index = names_of(dataset, MODEL).index(model)
    return one.isel({MODEL: index}).transpose(STEP, COMPONENT).dropna(STEP, how="any")


def has_spread(results: xr.DataTree) -> bool:
    """Tell whether any step of any layer has a spread: at least two models shared one."""
    return "spread" in results.children and bool(np.isfinite(results["spread"].to_dataset()["spread"].values).any())


def plot_spread(spread: xr.Dataset, ax: Axes | None = None, layers: Sequence[str] | None = None) -> Axes:
    """Draw the spread over steps, with its 95% band and the line of unrelated models at 1.

    Parameters
    ----------
    spread
        Group ``spread`` of the results: ``spread``, ``low`` and ``high`` on (layer, step).
    ax
        Where to draw; a new figure when None.
    layers
        Names of the layers to draw, all when None. Bands are drawn for up to four.

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
    ax = _axes(ax)
    names = list(layers) if layers is not None else names_of(spread, LAYER)
    handles = []
    for index, name in enumerate(names):
        color = style.depth_color(index, len(names))
        handles.append(_draw_curve(ax, curve(spread, name), color, band=len(names) <= 4, label=name))
    _spread_axes(ax, spread[STEP].values)
    _legend(ax, handles, names)
    return ax


def plot_trajectories(
    trajectories: xr.Dataset, layer: str, ax: Axes | None = None, *, variable: str = "trajectory"
) -> Axes:
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

    Raises
    ------
    AnalysisError
        The layer is not in the results.
    """
    ax = _axes(ax)
    axis = style.StepAxis.of(trajectories[STEP].values)
    models = names_of(trajectories, MODEL)
    for index, model in enumerate(models):
        points = path(trajectories, layer, model, variable)
        x, y = _two(points)
        marker = style.MATPLOTLIB_MARKERS[index % len(style.MATPLOTLIB_MARKERS)]
        fraction = axis.fraction(points[STEP].values)
        ax.plot(x, y, color=_FAINT, linewidth=1.0, zorder=1)
        size, edge = (8, 0.0) if axis.dense else (30, 0.5)
        ax.scatter(x, y, c=_STEPS(fraction), marker=marker, s=size, edgecolors="white", linewidths=edge, zorder=2)
        if len(x):
            ax.scatter(
                x[-1:], y[-1:], marker=marker, s=90, facecolors="none", edgecolors=_INK, linewidths=1.0, zorder=3
            )
    _legend(ax, [_marker(index) for index in range(len(models))], models)
    _bare(ax, "PHATE" if variable == "trajectory" else "MDS")
    _step_colorbar(ax, axis)
    return ax


def plot_embedding(merged: xr.Dataset, layer: str, ax: Axes | None = None) -> Axes:
    """Draw the merged operator's embedding of the samples, coloured by label.

    Parameters
    ----------
    merged
        Group ``merged`` of the results: ``embedding`` on (layer, sample, component), coordinate ``label (sample)``.
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.

    Raises
    ------
    AnalysisError
        The layer is not in the results.
    """
    ax = _axes(ax)
    points = one_layer(merged, layer)["embedding"].transpose(SAMPLE, COMPONENT)
    x, y = _two(points)
    groups = style.label_groups(labels_of(merged), len(x))
    for group in groups:
        marker = style.MATPLOTLIB_MARKERS[group.marker]
        ax.scatter(x[group.index], y[group.index], s=16, marker=marker, c=group.color, edgecolors="none", alpha=0.85)
    handles = [
        Line2D([], [], linestyle="", marker=style.MATPLOTLIB_MARKERS[g.marker], color=g.color, markersize=5)
        for g in groups
    ]
    _legend(ax, handles, [group.name for group in groups])
    _bare(ax, "PHATE")
    return ax


def plot_diagnostics(
    diagnostics: xr.Dataset, ax: Axes | None = None, *, variable: str = "effective_neighbors", layer: str | None = None
) -> Axes:
    """Draw one diagnostic of the operators over steps, a line for each model and layer, coloured by layer.

    Parameters
    ----------
    diagnostics
        Group ``diagnostics`` of the results: ``variable`` on (layer, model, step).
    ax
        Where to draw; a new figure when None.
    variable
        Which diagnostic.
    layer
        Name of one layer; all when None.

    Raises
    ------
    AnalysisError
        The variable or the layer is not in the results.
    """
    if variable not in diagnostics:
        raise AnalysisError(
            f"expected one of the diagnostics {sorted(map(str, diagnostics.data_vars))}, found {variable!r}"
        )
    ax = _axes(ax)
    everything, models = names_of(diagnostics, LAYER), names_of(diagnostics, MODEL)
    layers = everything if layer is None else [layer]
    steps = np.asarray(diagnostics[STEP].values)
    for name in layers:
        values = one_layer(diagnostics, name)[variable].transpose(MODEL, STEP).values.astype(float)
        color = style.depth_color(everything.index(name), len(everything))
        for index in range(len(models)):
            known = np.isfinite(values[index])
            marker = (
                style.MATPLOTLIB_MARKERS[index % len(style.MATPLOTLIB_MARKERS)] if known.sum() <= style.DENSE else ""
            )
            ax.plot(steps[known], values[index][known], color=color, linewidth=1.1, marker=marker, markersize=2.8)
    _step_axis(ax, steps)
    _despine(ax)
    ax.set_title(DIAGNOSTICS.get(variable, variable), loc="left", fontsize=9, color=_INK)
    return ax


def varying(diagnostics: xr.Dataset) -> list[str]:
    """Names of the diagnostics that differ between operators, in the order in which they are shown."""
    found = []
    for name in DIAGNOSTICS:
        values = np.asarray(diagnostics[name].values, dtype=float) if name in diagnostics else np.array([])
        known = values[np.isfinite(values)]
        if known.size and np.ptp(known) > 0:
            found.append(name)
    return found


def labels_of(merged: xr.Dataset) -> list[str] | None:
    """Labels of the samples, None where the probe set had none."""
    return [str(label) for label in merged[LABEL].values] if LABEL in merged.variables else None


def save_figures(results: xr.DataTree, folder: str | Path, *, dpi: int = 200) -> list[Path]:
    """Write spread.png, diagnostics.png, and trajectories-<layer>.png and embedding-<layer>.png for each layer.

    What the results do not hold is not drawn: with a single model there is no spread.png.

    Parameters
    ----------
    results
        Results of an analysis.
    folder
        Where the figures go; made when missing.
    dpi
        Dots per inch.

    Returns
    -------
    list of Path
        The files written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    if has_spread(results):
        figures["spread"] = _spread_figure(results["spread"].to_dataset(), _summary_layers(results))
    for group, stem, draw in (
        ("trajectories", "trajectories", plot_trajectories),
        ("merged", "embedding", plot_embedding),
    ):
        if group in results.children:
            figures |= _layer_figures(results[group].to_dataset(), stem, draw)
    if "diagnostics" in results.children:
        figures["diagnostics"] = _diagnostics_figure(results["diagnostics"].to_dataset())
    return [_save(figure, target / f"{name}.png", dpi) for name, figure in figures.items()]


def _save(figure: Figure, file: Path, dpi: int) -> Path:
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; the report shows it as it is.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(file, dpi=dpi, bbox_inches="tight", facecolor="white")
    return file


def _layer_figures(dataset: xr.Dataset, stem: str, draw: Callable[..., Axes]) -> dict[str, Figure]:
    figures = {}
    for layer in names_of(dataset, LAYER):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        ax = draw(dataset, layer, ax=figure.add_subplot())
        stress = f"   stress {float(one_layer(dataset, layer)['stress']):.2f}" if "stress" in dataset else ""
        ax.set_title(_safe(layer) + stress, loc="left", fontsize=10, color=_INK)
        figures[f"{stem}-{encode_name(layer)}"] = figure
    return figures


def _spread_figure(spread: xr.Dataset, verdicts: Mapping[str, Any]) -> Figure:
    """Small multiples, one a layer, every other layer in grey behind it."""
    layers = names_of(spread, LAYER)
    columns = min(len(layers), 3 if len(layers) <= 12 else 5)
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(max(5.0, 2.9 * columns), 2.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    curves = {layer: curve(spread, layer) for layer in layers}
    for ax, layer in zip(axes, layers, strict=False):
        for other in curves.values():
            ax.plot(other["step"], other["spread"], color=_FAINT, linewidth=0.7, zorder=1)
        verdict = str(verdicts.get(layer, {}).get("verdict") or "")
        color = style.VERDICTS.get(verdict, _INK)
        _draw_curve(ax, curves[layer], color, band=True, label=layer)
        _spread_axes(ax, spread[STEP].values, count=5, label=False)
        ax.set_title(_safe(layer, 34), loc="left", fontsize=9, color=_INK)
        ax.set_title(verdict, loc="right", fontsize=9, color=color)
    for ax in axes[len(layers) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(layers) - columns) : len(layers)]:
        ax.xaxis.set_tick_params(labelbottom=True)
    axes[0].set_ylim(0, max(1.1, *(1.03 * ax.dataLim.y1 for ax in axes[: len(layers)])))
    figure.supylabel("spread (1 = unrelated, 0 = identical)", fontsize=9, color=_INK)
    figure.supxlabel("step", fontsize=9, color=_INK)
    return figure


def _diagnostics_figure(diagnostics: xr.Dataset) -> Figure:
    variables = varying(diagnostics) or [name for name in DIAGNOSTICS if name in diagnostics][:1]
    columns = min(3, len(variables)) or 1
    rows = math.ceil(len(variables) / columns) or 1
    figure = Figure(figsize=(3.0 * columns, 2.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, variable in zip(axes, variables, strict=False):
        plot_diagnostics(diagnostics, ax=ax, variable=variable)
        ax.set_xlabel("")
    for ax in axes[len(variables) :]:
        ax.set_axis_off()
    layers, models = names_of(diagnostics, LAYER), names_of(diagnostics, MODEL)
    lines = [Line2D([], [], color=style.depth_color(i, len(layers)), linewidth=2) for i in range(len(layers))]
    handles = [*lines, *[_marker(index) for index in range(len(models))]]
    names = [_safe(name, 34) for name in (*layers, *models)]
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=7)
    figure.supxlabel("step", fontsize=9, color=_INK)
    return figure


def _summary_layers(results: xr.DataTree) -> Mapping[str, Any]:
    """What the summary in the results' attributes says of each layer; nothing where there is none."""
    summary = results.attrs.get("summary", "{}")
    found = json.loads(summary) if isinstance(summary, str) else summary
    layers = found.get("layers", {})
    return layers if isinstance(layers, Mapping) else {}


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _draw_curve(ax: Axes, found: dict[str, Any], color: str, *, band: bool, label: str) -> Line2D:
    if band and np.isfinite(found["low"]).any():
        ax.fill_between(found["step"], found["low"], found["high"], color=color, alpha=0.18, linewidth=0)
    marker = "" if len(found["step"]) > style.DENSE else "o"
    (line,) = ax.plot(found["step"], found["spread"], color=color, linewidth=1.6, marker=marker, markersize=2.6)
    line.set_gid(label)
    return line


def _spread_axes(ax: Axes, steps: Any, *, count: int = 7, label: bool = True) -> None:
    ax.axhline(1.0, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ax.set_ylim(0, max(1.1, 1.03 * ax.dataLim.y1))
    _step_axis(ax, steps, count)
    _despine(ax)
    ax.set_xlabel("step" if label else "")
    ax.set_ylabel("spread (1 = unrelated)" if label else "")


def _step_axis(ax: Axes, steps: Any, count: int = 7) -> None:
    axis = style.StepAxis.of(steps)
    if axis.log:
        ax.set_xscale("asinh", linear_width=axis.unit)
    ticks = axis.ticks(count)
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("step")


def _step_colorbar(ax: Axes, axis: style.StepAxis) -> None:
    """Colours from the first to the last step, spaced as the axis of steps is."""
    figure = ax.get_figure()
    if figure is None or len(axis.steps) < 2:
        return
    first, last = axis.position([axis.steps[0], axis.steps[-1]])
    bar = figure.colorbar(ScalarMappable(Normalize(first, last), _STEPS), ax=ax, fraction=0.03, pad=0.02, shrink=0.6)
    ticks = axis.ticks(6)
    bar.set_ticks(list(axis.position(ticks)), labels=[f"{tick:,}" for tick in ticks])
    bar.set_label("step", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)


def _marker(index: int) -> Line2D:
    marker = style.MATPLOTLIB_MARKERS[index % len(style.MATPLOTLIB_MARKERS)]
    return Line2D([], [], linestyle="", marker=marker, color=_INK, markersize=5)


def _legend(ax: Axes, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    if len(names) > 1:
        ax.legend(handles, [_safe(name, 34) for name in names], frameon=False, fontsize=7, loc="best")


def _two(points: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First two components; the second is 0 where there is but one."""
    values = np.asarray(points.values, dtype=float)
    return values[:, 0], values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))


def _bare(ax: Axes, method: str) -> None:
    """Leave an embedding with neither ticks nor frame: its units mean nothing, its proportions do."""
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_xlabel(f"{method} 1", fontsize=8, color=_INK)
    ax.set_ylabel(f"{method} 2", fontsize=8, color=_INK)


def _despine(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=_FAINT)
    ax.spines[["left", "bottom"]].set_color(_FAINT)


def _safe(name: str, limit: int = 60) -> str:
    """Return the name as matplotlib shows it literally: without mathematics, nor hidden by a leading underscore."""
    shown = style.visible(name, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
