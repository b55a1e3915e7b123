"""Heat map of the distances of every two models of a layer, with like models next to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from repaudit.errors import AnalysisError
from repaudit.measure.curve import of_most_models
from repaudit.names import LAYER, MODEL, STEP, meant_layer
from repaudit.plots import canvas
from repaudit.plots.scales import Found, at_one_scale
from repaudit.results import DISTANCE, HIGH, LOW, OTHER, PAIRS, PVALUE_HOLM, names_of, one_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MOST_WRITTEN = 16
"""A map of more models has no numbers in its cells."""


@dataclass(frozen=True)
class PairDistances:
    """Distances of a layer's models at one step, their intervals and adjusted p-values, in the order to draw."""

    step: int
    models: tuple[str, ...]
    distance: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    pvalue: NDArray[np.float64]

    @property
    def drawn(self) -> NDArray[np.float64]:
        """The distances (model, model) without those of a model from itself."""
        return np.where(np.eye(len(self.models), dtype=bool), np.nan, self.distance)


def plot_pairs(pairs: Found, layer: str, ax: Axes | None = None, *, step: int | None = None) -> Axes:
    """Draw the distance of every two models of a layer as a map: 0 is identical, 1 is unrelated.

    The models are in the order of the leaves of a hierarchical clustering (average linkage) of their distances.

    Parameters
    ----------
    pairs
        Group ``pairs`` of the results at one scale: ``distance`` on (layer, step, model, other); ``low``, ``high`` and
        ``pvalue_holm`` are not drawn.
    layer
        Name of the layer.
    ax
        Where to draw; a new figure when None.
    step
        One of the steps of this group; the last at which distances of this layer are known when None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The layer or the step is not in the results, or no distance of the layer is known there.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> values = [[0.0, 0.9, 0.2], [0.9, 0.0, 0.8], [0.2, 0.8, 0.0]]
    >>> names = ["seed0", "seed1", "seed2"]
    >>> coords = {"layer": ["norm"], "step": [10], "model": names, "other": names}
    >>> pairs = xr.Dataset({"distance": (("layer", "step", "model", "other"), [[values]])}, coords=coords)
    >>> ax = plot_pairs(pairs, "norm", ax=Figure().add_subplot())
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['seed1', 'seed0', 'seed2']
    """
    pairs = at_one_scale(pairs, PAIRS)
    found = pair_distances(pairs, layer, step)
    if found is None:
        at = "at any step" if step is None else f"at step {step}"
        raise AnalysisError(f"expected two models with a distance in layer {layer!r}, found none {at}")
    ax = canvas.axes(ax)
    image = ax.imshow(found.drawn, cmap=canvas.SPREADS, vmin=0, vmax=1)
    names = canvas.safes(found.models, 26)
    ax.set_xticks(range(len(names)), names, rotation=30 if len(names) <= MOST_WRITTEN else 90, ha="right")
    ax.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(found.drawn):
        if np.isfinite(value) and len(names) <= MOST_WRITTEN:
            ink = "white" if abs(value - 0.5) > 0.38 else canvas.INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    ax.tick_params(labelsize=7, length=0)
    ax.spines[:].set_visible(False)
    name = meant_layer(layer, names_of(pairs, LAYER))
    canvas.name_scale(ax, pairs)
    ax.set_title(f"{canvas.safe(name)}   step {found.step:,}", loc="left", fontsize=9, color=canvas.INK)
    figure = ax.get_figure()
    if figure is not None:
        bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02, shrink=0.6)
        bar.set_label("distance", fontsize=8)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.outline.set_visible(False)
    return ax


def last_step_of_most(pairs: xr.Dataset, layer: str) -> int | None:
    """Return the last of the steps that most models share, where a verdict ends; None where no distance is known."""
    distance = one_layer(pairs, layer).transpose(STEP, MODEL, OTHER, ...)[DISTANCE]
    known = np.isfinite(np.asarray(distance.values, dtype=float)) & ~np.eye(distance.sizes[MODEL], dtype=bool)
    counts = known.any(axis=2).sum(axis=1)
    steps = distance[STEP].values[counts > 0]
    return int(steps[of_most_models(counts[counts > 0])].max()) if len(steps) else None


def pair_distances(pairs: xr.Dataset, layer: str, step: int | None = None) -> PairDistances | None:
    """Return what is known of every two models of a layer at one step, the last with values when None.

    Models without any distance at this step are left out; None if fewer than two models remain.
    """
    dataset = one_layer(pairs, layer).transpose(STEP, MODEL, OTHER, ...)
    steps = [int(value) for value in dataset[STEP].values]
    if step is not None and step not in steps:
        raise AnalysisError(f"expected one of the steps {steps}, found {step}")
    distance = np.asarray(dataset[DISTANCE].values, dtype=float)
    off = ~np.eye(distance.shape[1], dtype=bool)
    paired = (np.isfinite(distance) & off).any(axis=2)
    known = [k for k in range(len(steps)) if paired[k].any() and step in (None, steps[k])]
    if not known:
        return None
    at = max(known, key=lambda k: steps[k])
    models = np.flatnonzero(paired[at])
    order = models[_clustered(distance[at][np.ix_(models, models)])]

    def values(name: str) -> NDArray[np.float64]:
        if name not in dataset:
            return np.full((len(order), len(order)), np.nan)
        return np.asarray(dataset[name].values[at], dtype=float)[np.ix_(order, order)]

    names = names_of(dataset, MODEL)
    arrays = (values(name) for name in (DISTANCE, LOW, HIGH, PVALUE_HOLM))
    return PairDistances(steps[at], tuple(names[k] for k in order), *arrays)


def _clustered(distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order of the leaves of average linkage; a distance that is not known counts as the largest."""
    filled = np.where(np.isfinite(distance), distance, np.nanmax(distance))
    condensed = squareform(filled, checks=False)
    return np.asarray(leaves_list(linkage(condensed, "average")), dtype=np.int64)
