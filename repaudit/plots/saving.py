"""An analysis's figures as files: one picture per layer, or one panel per layer."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repaudit.names import LAYER, MODEL, SAMPLE, STEP, at_home
from repaudit.plots import canvas, curves, embeddings, maps, style
from repaudit.plots.lines import DISTANCES, varying
from repaudit.plots.pairs import last_step_of_most, pair_distances, plot_pairs
from repaudit.plots.panels import small_multiples, spread_figure
from repaudit.plots.points import labels_of
from repaudit.plots.scales import at_scale, scales, summary_at
from repaudit.plots.settling import plot_settling
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTIC_NAMES,
    DIAGNOSTICS,
    DISTANCE,
    DISTANCE_STRESS,
    EMBEDDING,
    FRAMES,
    GROUPS,
    MEASURE,
    MERGED,
    PAIRS,
    SIMILARITY,
    SPREAD,
    STRESS,
    SUMMARY,
    TOGETHER,
    TRAJECTORIES,
    TRAJECTORY,
    UNITS,
    group,
    known,
    names_of,
    of_layer,
    one_layer,
    scalar,
)
from repaudit.store.format.keys import safe_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Drawing = Callable[[], Figure]

MAIN: Final = (SPREAD, APPROACH, "settling", "together")
"""Figures of the whole study, those with which the report opens."""


def save_figures(
    results: xr.DataTree,
    folder: str | Path,
    *,
    which: Literal["main", "all", "none"] = "all",
    dpi: int = 200,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """Write the figures of an analysis as PNG files.

    For all layers: spread, comparison, approach, groups, settling, together, diagnostics and similarity-<measure>; per
    layer: pairs-<layer>, trajectories-<layer>, embedding-<layer>, frames-<layer> and units-<layer>. These are of the
    first scale; figures of a further one have its name at the end, such as spread-shape.png. What is not known is not
    drawn: with a single model there is no spread.png.

    Parameters
    ----------
    results
        Results of an analysis.
    folder
        Where the figures go; created if missing.
    which
        All of them, or of the main ones (:data:`MAIN`) those that there are, or none.
    dpi
        Dots per inch.
    progress
        Called with ("figures", done, total) as they are drawn.

    Returns
    -------
    list of Path
        The files written.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> spread = xr.Dataset({"spread": (("layer", "step"), [[0.2, 0.7]])}, coords={"layer": ["norm"], "step": [0, 10]})
    >>> results = xr.DataTree.from_dict({"spread": spread})
    >>> [file.name for file in save_figures(results, mkdtemp(), dpi=50)]
    ['spread.png']
    """
    target = at_home(folder)
    target.mkdir(parents=True, exist_ok=True)
    summary = _summary(results)
    drawings: dict[str, Drawing] = {}
    for scale in scales(results):
        chosen = at_scale(results, scale.index)
        for name, drawing in _at_scale(chosen, summary_at(summary, scale), first=not scale.index).items():
            if which == "none" or (which == "main" and name not in MAIN):
                continue
            # A layer may be called like another one with the name of a scale behind it.
            names = (f"{name}{'-' * more}{scale.suffix}" for more in count())
            drawings[next(key for key in names if key not in drawings)] = drawing
    files: list[Path] = []
    report = progress or (lambda _what, _done, _total: None)
    for name, drawing in drawings.items():
        report("figures", len(files), len(drawings))
        files.append(_save(drawing(), target / f"{name}.png", dpi))
    if drawings:
        report("figures", len(files), len(drawings))
    return files


def _at_scale(results: xr.DataTree, summary: Mapping[str, Any], *, first: bool) -> dict[str, Drawing]:
    """Return the figures of one scale; those that stand on activations belong to the first."""
    figures = _panels(results, summary) | _over_layers(results, summary)
    figures |= _similarities(group(results, SIMILARITY, SIMILARITY)) if first else {}
    for name, variable, draw in (
        (TRAJECTORIES, TRAJECTORY, embeddings.plot_trajectories),
        (MERGED, EMBEDDING, embeddings.plot_embedding),
        (UNITS, EMBEDDING, embeddings.plot_units),
    ):
        stem = "embedding" if name == MERGED else name
        dataset = group(results, name, variable)
        if dataset is not None and (first or name != UNITS):
            figures |= _layer_figures(dataset, variable, stem, draw)
    return figures | _frames_figures(group(results, FRAMES, MERGED)) | _pairs_figures(group(results, PAIRS, DISTANCE))


def _save(figure: Figure, file: Path, dpi: int) -> Path:
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; the report shows it correctly.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(file, dpi=dpi, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    return file


def _panels(results: xr.DataTree, summary: Mapping[str, Any]) -> dict[str, Drawing]:
    """Return the figures that have one panel per layer."""
    figures: dict[str, Drawing] = {}
    spread, comparison = group(results, SPREAD, SPREAD), group(results, COMPARISON)
    if spread is not None:
        figures["spread"] = partial(spread_figure, spread, summary.get("layers") or {})
    if comparison is not None and any(name in comparison and known(comparison[name]) for name in DISTANCES):
        figures["comparison"] = partial(
            small_multiples,
            comparison,
            lambda layer, ax: curves.plot_comparison(comparison, layer, ax, spread=spread),
        )
    approach, groups = group(results, APPROACH, APPROACH), group(results, GROUPS, SPREAD)
    if approach is not None:
        figures["approach"] = partial(
            small_multiples, approach, lambda layer, ax: curves.plot_approach(approach, ax, [layer])
        )
    if groups is not None:
        figures["groups"] = partial(small_multiples, groups, lambda layer, ax: curves.plot_groups(groups, layer, ax))
    return figures


def _over_layers(results: xr.DataTree, summary: Mapping[str, Any]) -> dict[str, Drawing]:
    """Return the figures that show all layers in one picture."""
    figures: dict[str, Drawing] = {}
    settling = summary.get("settling") or ()
    rows = sum(entry.get("settled") is not None or entry.get("below_start") is not None for entry in settling)
    if rows:
        size = (5.6, 0.6 + 0.22 * rows)
        figures["settling"] = partial(
            _one, size, lambda ax: plot_settling(settling, ax, end=max(summary.get("steps", ()), default=None))
        )
    trajectories = group(results, TRAJECTORIES, TOGETHER)
    if trajectories is not None and trajectories.sizes[LAYER] > 1:
        figures["together"] = partial(_one, (6.4, 5.4), lambda ax: embeddings.plot_together(trajectories, ax))
    diagnostics = group(results, DIAGNOSTICS)
    if diagnostics is not None:
        figures["diagnostics"] = partial(_diagnostics_figure, diagnostics)
    return figures


def _one(size: tuple[float, float], draw: Callable[[Axes], object]) -> Figure:
    """Return a figure of one panel."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    return figure


def _similarities(similarity: xr.Dataset | None) -> dict[str, Drawing]:
    figures: dict[str, Drawing] = {}
    if similarity is None:
        return figures
    for measure in map(str, similarity[MEASURE].values):
        draw = partial(_drawn, maps.plot_similarity, similarity, measure)
        figures[f"similarity-{safe_key(measure)}"] = partial(_one, (6.0, 5.2), draw)
    return figures


def _drawn(draw: Callable[..., Axes], dataset: xr.Dataset, name: str, ax: Axes) -> Axes:
    return draw(dataset, name, ax=ax)


def _pairs_figures(pairs: xr.Dataset | None) -> dict[str, Drawing]:
    """Return the distances of every two models, where there are more than two."""
    figures: dict[str, Drawing] = {}
    if pairs is None:
        return figures
    for layer in names_of(pairs, LAYER):
        step = last_step_of_most(pairs, layer)
        found = pair_distances(pairs, layer, step)
        if found is not None and len(found.models) > 2:
            size = min(9.0, 3.2 + 0.32 * len(found.models))
            draw = partial(_drawn, partial(plot_pairs, step=step), pairs, layer)
            figures[f"pairs-{safe_key(layer)}"] = partial(_one, (1.2 * size, size), draw)
    return figures


def _layer_figures(dataset: xr.Dataset, variable: str, stem: str, draw: Callable[..., Axes]) -> dict[str, Drawing]:
    return {
        f"{stem}-{safe_key(layer)}": partial(_layer_figure, dataset, layer, stem, draw)
        for layer in names_of(dataset, LAYER)
        if of_layer(dataset, layer, variable)
    }


def _layer_figure(dataset: xr.Dataset, layer: str, stem: str, draw: Callable[..., Axes]) -> Figure:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    ax = draw(dataset, layer, ax=figure.add_subplot())
    stress = scalar(one_layer(dataset, layer), DISTANCE_STRESS if stem == TRAJECTORIES else STRESS)
    words = "" if stress is None else f"   stress {stress:.2f}"
    ax.set_title(canvas.safe(layer) + words, loc="left", fontsize=10, color=canvas.INK)
    return figure


def _frames_figures(frames: xr.Dataset | None) -> dict[str, Drawing]:
    """Return up to five steps of each layer's merged operator, side by side."""
    figures: dict[str, Drawing] = {}
    if frames is None:
        return figures
    for layer in names_of(frames, LAYER):
        values = one_layer(frames, layer)[MERGED].transpose(STEP, ...)
        known_steps = [int(step) for step in frames[STEP].values[np.isfinite(values.values).any(axis=(1, 2))]]
        if len(known_steps) > 1:
            steps = [known_steps[k] for k in np.unique(np.linspace(0, len(known_steps) - 1, 5).astype(int))]
            figures[f"frames-{safe_key(layer)}"] = partial(_frames_figure, frames, layer, steps)
    return figures


def _frames_figure(frames: xr.Dataset, layer: str, steps: Sequence[int]) -> Figure:
    figure = Figure(figsize=(2.2 * len(steps), 2.6), layout="constrained")
    for ax, step in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        embeddings.plot_frame(frames, layer, step, ax).set_title("", loc="right")  # one title and one legend for all
        canvas.without_legend(ax)
    title = f"{canvas.safe(layer)}   all steps on one scale: samples on one dot are hardly told apart"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=canvas.INK)
    groups = style.label_groups(labels_of(frames), frames.sizes[SAMPLE])
    if len(groups) > 1:
        names = canvas.safes([one.name for one in groups], 34)
        canvas.legend_of_figure(figure, embeddings.keys(groups), names, "outside lower left")
    return figure


def _diagnostics_figure(diagnostics: xr.Dataset) -> Figure:
    variables = varying(diagnostics) or [name for name in DIAGNOSTIC_NAMES if name in diagnostics][:1]
    columns = min(3, len(variables)) or 1
    rows = math.ceil(len(variables) / columns) or 1
    figure = Figure(figsize=(3.0 * columns, 2.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, variable in zip(axes, variables, strict=False):
        curves.plot_diagnostics(diagnostics, ax=ax, variable=variable).set_title("", loc="right")
        canvas.without_legend(ax)
        ax.set_xlabel("")
    for ax in axes[len(variables) :]:
        ax.set_axis_off()
    layers, models = names_of(diagnostics, LAYER), names_of(diagnostics, MODEL)
    lines = [Line2D([], [], color=style.depth_color(i, len(layers)), linewidth=2) for i in range(len(layers))]
    handles = [*lines, *[canvas.key(index) for index in range(len(models))]]
    names = [*canvas.safes(layers, 34), *canvas.safes(models, 34)]
    columns = math.ceil(len(names) / 24)
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=7, ncols=columns)
    figure.supxlabel(style.StepAxis.of(diagnostics[STEP].values).title, fontsize=9, color=canvas.INK)
    return figure


def _summary(results: xr.DataTree) -> Mapping[str, Any]:
    """Return the summary in the results' attributes; empty if there is none."""
    summary = results.attrs.get(SUMMARY, "{}")
    document = json.loads(summary) if isinstance(summary, str) else summary
    return document if isinstance(document, Mapping) else {}
