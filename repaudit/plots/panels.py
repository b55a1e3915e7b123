"""Figures of one panel per layer, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr
from matplotlib.figure import Figure

from repaudit.names import LAYER, STEP
from repaudit.plots import canvas, curves, style
from repaudit.plots.lines import band_of, line_of
from repaudit.plots.scales import AT
from repaudit.results import names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def small_multiples(dataset: xr.Dataset, draw: Callable[[str, Axes], Axes]) -> Figure:
    """Draw one panel per layer, all on one scale, with one legend for all of them."""
    layers = names_of(dataset, LAYER)
    figure, axes = _grid(len(layers))
    label = ""
    for ax, layer, name in zip(axes, layers, canvas.safes(layers, 34), strict=False):
        label = draw(layer, ax).get_ylabel()
        ax.set(xlabel="", ylabel="")
        canvas.step_axis(ax, dataset[STEP].values, 5)
        ax.set_xlabel("")
        ax.set_title(name, loc="left", fontsize=9, color=canvas.INK)
        ax.set_title("", loc="right")
    axes[0].set_ylim(0, max(ax.get_ylim()[1] for ax in axes[: len(layers)]))
    legends = [shown for ax in axes[: len(layers)] if (shown := ax.get_legend()) is not None]
    if legends:
        fullest = max(legends, key=lambda shown: len(shown.get_texts()))  # not every layer has every line
        names = [text.get_text() for text in fullest.get_texts()]
        canvas.legend_of_figure(figure, fullest.legend_handles, names, "outside upper right")
    for ax in axes[: len(layers)]:
        canvas.without_legend(ax)
    figure.supylabel(label, fontsize=9, color=canvas.INK)
    figure.supxlabel(style.StepAxis.of(dataset[STEP].values).title, fontsize=9, color=canvas.INK)
    return figure


def _grid(panels: int) -> tuple[Figure, Any]:
    columns = min(panels, 3 if panels <= 12 else 5)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(max(4.2, 2.9 * columns), 2.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[panels:]:
        ax.set_axis_off()
    for ax in axes[max(0, panels - columns) : panels]:
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, axes


def spread_figure(spread: xr.Dataset, verdicts: Mapping[str, Any]) -> Figure:
    """Draw one panel per layer, with the other layers in grey behind it."""
    layers = names_of(spread, LAYER)
    figure, axes = _grid(len(layers))
    lines = {layer: line_of(spread, layer) for layer in layers}
    for ax, layer, name in zip(axes, layers, canvas.safes(layers, 34), strict=False):
        for other in lines.values():
            ax.plot(other.step, other.value, color=canvas.FAINT, linewidth=0.7, zorder=1)
        verdict = str(verdicts.get(layer, {}).get("verdict") or "")
        color = style.VERDICTS.get(verdict, canvas.INK)
        curves.draw_band(ax, band_of(spread, layer))
        curves.draw_curve(ax, lines[layer], color, band=True, label=layer)
        canvas.null_axes(ax, spread[STEP].values, count=5)
        ax.set_title(name, loc="left", fontsize=9, color=canvas.INK)
        ax.set_title(verdict, loc="right", fontsize=9, color=color)
    axes[0].set_ylim(0, max(1.1, *(1.03 * ax.dataLim.y1 for ax in axes[: len(layers)])))
    at = f" at {spread.attrs[AT]}" if spread.attrs.get(AT) else ""
    figure.supylabel(f"spread{at} (1 = unrelated, 0 = identical)", fontsize=9, color=canvas.INK)
    figure.supxlabel(style.StepAxis.of(spread[STEP].values).title, fontsize=9, color=canvas.INK)
    return figure
