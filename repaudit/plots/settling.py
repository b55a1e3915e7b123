"""The order in which layers settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repaudit.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_settling(settling: Sequence[Mapping[str, Any]], ax: Axes | None = None, *, end: int | None = None) -> Axes:
    """Draw when each layer was first significantly below its start (ring) and when it settled (dot), first on top.

    Parameters
    ----------
    settling
        ``settling`` of the summary: ``layer``, ``settled`` and ``below_start`` of each layer; both steps may be None.
    ax
        Where to draw; a new figure when None.
    end
        Last step of the analysis, up to which the axis goes; the last one that is drawn when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> settling = [{"layer": "norm", "settled": 40, "below_start": 10}]
    >>> [tick.get_text() for tick in plot_settling(settling, ax=Figure().add_subplot()).get_yticklabels()]
    ['norm']
    """
    ax = canvas.axes(ax)
    shown = [entry for entry in settling if entry.get("settled") is not None or entry.get("below_start") is not None]
    for row, entry in enumerate(shown):
        below, settled = entry.get("below_start"), entry.get("settled")
        if below is not None and settled is not None:
            ax.plot([below, settled], [row, row], color=canvas.FAINT, linewidth=1.4, zorder=1)
        # the ring is the wider one, so that both are seen where they are at one step
        for step, face, size in ((below, "white", 8), (settled, canvas.INK, 4)):
            if step is not None:
                ax.plot([step], [row], "o", markersize=size, color=canvas.INK, markerfacecolor=face, zorder=2)
    steps = {entry.get(which) for entry in shown for which in ("below_start", "settled")} | {0, end}
    known = sorted(step for step in steps if step is not None)
    canvas.step_axis(ax, known)
    if end is not None:
        ax.update_datalim([(known[0], 0), (known[-1], 0)])
        ax.autoscale_view(scaley=False)
    canvas.despine(ax)
    ax.set_yticks(range(len(shown)), canvas.safes([str(entry["layer"]) for entry in shown], 34))
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.spines["left"].set_visible(False)
    title = "ring: first below its start    dot: settled" if shown else "no layer has settled, or is below its start"
    ax.set_title(title, loc="left", fontsize=8, color=canvas.INK)
    return ax
