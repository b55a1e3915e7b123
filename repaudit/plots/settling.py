"""The order in which layers settle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.plots import canvas
from repaudit.plots.scales import scales, summary_at
from repaudit.results import SUMMARY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_settling(
    settling: Sequence[Mapping[str, Any]] | xr.DataTree, ax: Axes | None = None, *, end: int | None = None
) -> Axes:
    """Draw when each layer was first significantly below its start (ring) and when it settled (dot), first on top.

    Layers with neither are counted in the title. A layer that first moves away from its start can settle, where it
    comes back, without or before being below it: its dot is then alone, or left of its ring.

    Parameters
    ----------
    settling
        ``settling`` of the summary: ``layer``, ``settled`` and ``below_start`` of each layer; both steps may be None.
        Or all results, of which the first scale is drawn.
    ax
        Where to draw; a new figure when None.
    end
        Last step of the analysis, up to which the axis goes; the last one that is drawn when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    TypeError
        Neither is given.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> settling = [{"layer": "norm", "settled": 40, "below_start": 10}]
    >>> [tick.get_text() for tick in plot_settling(settling, ax=Figure().add_subplot()).get_yticklabels()]
    ['norm']
    """
    if isinstance(settling, xr.DataTree) and SUMMARY not in settling.attrs:
        raise AnalysisError("settling: expected the results of an analysis, found a tree without its summary")
    if isinstance(settling, xr.DataTree):
        summary = summary_at(json.loads(settling.attrs.get(SUMMARY, "{}")), scales(settling)[0])
        settling, end = summary["settling"], max(summary.get("steps", ()), default=None) if end is None else end
    if not isinstance(settling, list | tuple) or not all(isinstance(entry, Mapping) for entry in settling):
        raise TypeError(
            "settling: expected the results of an analysis, or their summary['settling'], found "
            f"{type(settling).__name__}"
        )
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
    if shown and (others := len(settling) - len(shown)):
        title += f"    {others} more layer{'s' * (others > 1)}: neither"
    ax.set_title(title, loc="left", fontsize=8, color=canvas.INK)
    return ax
