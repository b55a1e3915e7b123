"""``tree.repaudit.plot``: the figures of an analysis by the name of a layer and a scale."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xarray as xr

from repaudit.accessor.kinds import is_results, is_store, neither
from repaudit.errors import AnalysisError
from repaudit.names import LAYER
from repaudit.results import (
    DISTANCE,
    EMBEDDING,
    MERGED,
    PAIRS,
    SPREAD,
    SUMMARY,
    TRAJECTORIES,
    TRAJECTORY,
    group,
    names_of,
    of_layer,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TreePlots:
    """Figures of the results of an analysis, drawn with matplotlib.

    Every method takes a ``scale``, by name such as ``"shape"`` or by its effective number of neighbours, the first of
    the analysis by default; and an ``ax`` to draw on, that of a new figure by default.

    See Also
    --------
    repaudit.plots : all figures, as functions.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def spread(self, layer: str | None = None, scale: float | str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the spread over steps, of all layers unless one is named; see :func:`repaudit.plots.plot_spread`.

        Raises
        ------
        AnalysisError
            The tree is not that of an analysis; it has no such layer or scale; the analysis had a single model.
        """
        from repaudit.plots import plot_spread

        return plot_spread(self._group(SPREAD, SPREAD, scale), ax, None if layer is None else [layer])

    def pairs(
        self,
        layer: str | None = None,
        scale: float | str | None = None,
        ax: Axes | None = None,
        *,
        step: int | None = None,
    ) -> Axes:
        """Draw the distance of every two models, by default in the last layer; see :func:`repaudit.plots.plot_pairs`.

        By default at the last of the steps that most models share, where the verdict ends.

        Raises
        ------
        AnalysisError
            The tree is not that of an analysis; it has no such layer, scale or step; the analysis had a single model.
        """
        from repaudit.plots import plot_pairs
        from repaudit.plots.pairs import last_step_of_most

        dataset = self._group(PAIRS, DISTANCE, scale)
        shown = _last(dataset, DISTANCE) if layer is None else layer
        return plot_pairs(dataset, shown, ax, step=last_step_of_most(dataset, shown) if step is None else step)

    def trajectories(self, layer: str | None = None, scale: float | str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the models' trajectories, by default in the last layer; see :func:`repaudit.plots.plot_trajectories`.

        Raises
        ------
        AnalysisError
            The tree is not that of an analysis; it has no such layer or scale.
        """
        from repaudit.plots import plot_trajectories

        dataset = self._group(TRAJECTORIES, TRAJECTORY, scale)
        return plot_trajectories(dataset, _last(dataset, TRAJECTORY) if layer is None else layer, ax)

    def embedding(self, layer: str | None = None, scale: float | str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the samples in P*, by default that of the last layer; see :func:`repaudit.plots.plot_embedding`.

        Raises
        ------
        AnalysisError
            The tree is not that of an analysis; it has no such layer or scale.
        """
        from repaudit.plots import plot_embedding

        dataset = self._group(MERGED, EMBEDDING, scale)
        return plot_embedding(dataset, _last(dataset, EMBEDDING) if layer is None else layer, ax)

    def settling(self, scale: float | str | None = None, ax: Axes | None = None) -> Axes:
        """Draw when each layer first was below its start, and settled; see :func:`repaudit.plots.plot_settling`.

        Raises
        ------
        AnalysisError
            The tree is not that of an analysis; it has no such scale.
        """
        from repaudit.plots import plot_settling
        from repaudit.plots.scales import scale_index, scales, summary_at

        self._refuse_others()
        summary = json.loads(self._tree.attrs[SUMMARY])
        found = summary_at(summary, scales(self._tree)[scale_index(self._tree, scale)])
        return plot_settling(found["settling"], ax, end=max(summary["steps"], default=None))

    def _group(self, name: str, variable: str, scale: float | str | None) -> xr.Dataset:
        """Return a group of the results at one scale."""
        from repaudit.plots.scales import at_scale, scale_index

        self._refuse_others()
        dataset = group(at_scale(self._tree, scale_index(self._tree, scale)), name, variable)
        if dataset is None:
            raise AnalysisError(
                f"these results know no {name}: it needs two models or more with a shared step, and "
                "their operators, not sketches of them"
            )
        return dataset

    def _refuse_others(self) -> None:
        if is_store(self._tree):
            raise AnalysisError(
                "expected the results of an analysis, found a store: analyze it first: results = ra.analyze(url), "
                "then results.repaudit.plot"
            )
        if not is_results(self._tree):
            raise neither(self._tree)


def _last(dataset: xr.Dataset, variable: str) -> str:
    """Return the last layer of which anything is known."""
    return [name for name in names_of(dataset, LAYER) if of_layer(dataset, name, variable)][-1]
