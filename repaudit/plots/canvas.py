"""What all figures with matplotlib share: axes of steps, bare embeddings, legends, literal names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from unicodedata import east_asian_width

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from repaudit.plots import style
from repaudit.plots.scales import AT

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#22262a"
FAINT: Final = "#c8ccd0"
LETTERS: Final = 10
"""Letters of a legend that have room in an inch."""
ROW: Final = 0.16
"""Inches of a row of a legend."""
LINE: Final = 12
"""Points from one line of titles to the next."""
STEPS: Final = LinearSegmentedColormap.from_list("repaudit_steps", list(style.STEP_COLORS))
SIMILARITIES: Final = LinearSegmentedColormap.from_list("repaudit_similarities", list(style.SIMILARITY_COLORS))
SPREADS: Final = LinearSegmentedColormap.from_list("repaudit_spreads", list(style.SPREAD_COLORS))


def axes(ax: Axes | None) -> Axes:
    """Return the axes given, or those of a new figure of pyplot."""
    if ax is not None and not hasattr(ax, "get_figure"):
        raise TypeError(f"ax: expected axes of matplotlib, found {ax!r}")
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def null_axes(ax: Axes, steps: Any, *, count: int = 7, label: str = "") -> None:
    """Set up axes of a spread or a distance over steps: from 0, with the line of unrelated models at 1."""
    ax.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    ax.set_ylim(0, max(1.1, 1.03 * ax.dataLim.y1))
    step_axis(ax, steps, count)
    despine(ax)
    ax.set_xlabel(style.StepAxis.of(steps).title if label else "")
    ax.set_ylabel(label)


def step_axis(ax: Axes, steps: Any, count: int = 7) -> None:
    """Set the scale and the ticks of an axis of steps."""
    axis = style.StepAxis.of(steps)
    if axis.log:
        ax.set_xscale("asinh", linear_width=axis.unit)
    ticks = axis.ticks(count)
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(axis.title)


def step_colorbar(ax: Axes, axis: style.StepAxis) -> None:
    """Draw a colour bar from the first to the last step, spaced like the axis of steps."""
    figure = ax.get_figure()
    if figure is None or len(axis.steps) < 2:
        return
    first, last = axis.position([axis.steps[0], axis.steps[-1]])
    bar = figure.colorbar(ScalarMappable(Normalize(first, last), STEPS), ax=ax, fraction=0.03, pad=0.02, shrink=0.6)
    ticks = axis.ticks(6)
    bar.set_ticks(list(axis.position(ticks)), labels=[f"{tick:,}" for tick in ticks])
    bar.set_label(axis.title, fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)


def marker(index: int) -> Any:
    """Return the marker of the model `index`."""
    return style.MATPLOTLIB_MARKERS[index % len(style.MATPLOTLIB_MARKERS)]


def key(index: int, color: str = INK) -> Line2D:
    """Return the entry of a legend for the marker of the model `index`."""
    return Line2D([], [], linestyle="", marker=marker(index), color=color, markersize=5)


def legend(ax: Axes, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """Draw a legend below the axes if there is more than one name."""
    if len(names) > 1:
        shown = safes(names, 34)
        columns = min(4, columns_of(shown))
        ax.legend(
            handles, shown, title=_repeated(len(names)), title_fontsize=7, frameon=False, fontsize=7,
            handletextpad=0.4, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=columns,
            columnspacing=1.2,
        )  # fmt: skip


def columns_of(names: Sequence[str], inches: float = 6.4) -> int:
    """Return how many entries of a legend have room beside each other."""
    return max(1, min(len(names), int(LETTERS * inches) // (5 + max(map(_width, names)))))


def legend_of_figure(figure: Figure, handles: Sequence[Any], names: Sequence[str], where: str) -> None:
    """Draw one legend for all panels beside them, for whose rows the figure grows."""
    columns = columns_of(names, figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + ROW * (math.ceil(len(names) / columns) - 1))
    look: Any = {"loc": where, "ncols": columns, "frameon": False, "fontsize": 7}
    figure.legend(handles, names, **look)


def without_legend(ax: Axes) -> None:
    """Take the legend of one of several panels away."""
    shown = ax.get_legend()
    if shown is not None:
        shown.remove()


def _width(name: str) -> int:
    """Return about how many usual letters a name is wide."""
    return math.ceil(sum(2 if east_asian_width(char) in "WF" else 1.5 if char in "mwMW" else 1 for char in name))


def bare(ax: Axes, method: str) -> None:
    """Draw an embedding without ticks and frame: its proportions have a meaning, its units have none.

    The box follows the points, no flatter than 2:5 and no narrower than 2:3.
    """
    ax.set_aspect("equal", adjustable="box")
    box = ax.dataLim
    if np.isfinite(box.extents).all():
        width, height = max(box.width, box.height / 1.5, 1e-12), max(box.height, box.width / 2.5, 1e-12)
        (x, y), margin = (box.x0 + box.width / 2, box.y0 + box.height / 2), 0.55
        ax.set_xlim(x - margin * width, x + margin * width)
        ax.set_ylim(y - margin * height, y + margin * height)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    ax.text(
        1, 0, method, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, color=FAINT, zorder=0, clip_on=False
    )


def name_scale(ax: Axes, dataset: xr.Dataset) -> None:
    """Write the scale of what is drawn above it, on the right, where it is known, and above a title on the left."""
    title = ax.set_title(safe(str(dataset.attrs.get(AT, ""))), loc="right", fontsize=7, color=INK)
    figure = ax.get_figure(root=True)
    if figure is not None and ax.get_title(loc="left"):
        raised = ScaledTranslation(0, LINE / 72, figure.dpi_scale_trans)
        title.set_transform(ax.title.get_transform() + raised)


def despine(ax: Axes) -> None:
    """Keep two faint sides of the frame only."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=FAINT)
    ax.spines[["left", "bottom"]].set_color(FAINT)


def _repeated(models: int) -> str | None:
    """Say that markers stand for several models, where there are more models than markers."""
    most = len(style.MATPLOTLIB_MARKERS)
    return f"markers repeat after {most} models" if models > most else None


def safes(names: Sequence[str], limit: int) -> list[str]:
    """Return names as :func:`safe` does, shortened so that they stay different."""
    return [safe(name, limit) for name in style.shortened(names, limit)]


def safe(name: str, limit: int = 60) -> str:
    """Return the name so that matplotlib shows it literally: not as mathematics, not hidden by an underscore."""
    shown = style.visible(name, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
