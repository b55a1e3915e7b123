"""Heat maps: the similarity of every pair of representations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import MODEL, STEP
from repaudit.plots import canvas
from repaudit.plots.points import Blocks, arrange
from repaudit.plots.scales import Found, at_one_scale
from repaudit.results import MEASURE, OTHER, REPRESENTATION, SIMILARITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MEASURES = {
    "cka": "linear CKA",
    "cka_debiased": "linear CKA, debiased",
    "cka_rbf": "RBF CKA",
    "mutual_knn": "mutual nearest neighbours",
    "procrustes": "Procrustes",
    "rsa": "RSA",
}
"""Measures of similarity and the words for them."""


def plot_similarity(
    similarity: Found, measure: str, step: int | None = None, ax: Axes | None = None, *, by: Blocks = MODEL
) -> Axes:
    """Draw the similarity of every pair of representations as a map: 1 means alike.

    Parameters
    ----------
    similarity
        Group ``similarity`` of the results: ``similarity`` on (measure, step, representation, other), coordinates
        ``model`` and ``layer`` of the representations.
    measure
        Name of the measure.
    step
        One of the steps of this group; the last when None.
    ax
        Where to draw; a new figure when None.
    by
        ``"model"``: blocks of one model, its layers in order; ``"layer"``: blocks of one layer.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    AnalysisError
        The measure or the step is not in the results.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> values = {"similarity": (("measure", "step", "representation", "other"), [[[[1.0, 0.4], [0.4, 1.0]]]])}
    >>> names = {"model": ("representation", ["seed0", "seed1"]), "layer": ("representation", ["norm", "norm"])}
    >>> similarity = xr.Dataset(values, coords={"measure": ["cka"], "step": [0], **names})
    >>> plot_similarity(similarity, "cka", ax=Figure().add_subplot()).get_title(loc="left")
    'linear CKA'
    """
    similarity = at_one_scale(similarity, SIMILARITY)
    values = similarity_matrix(similarity, measure, step)
    ax = canvas.axes(ax)
    order = arrange(similarity, by)
    count = len(order.index)
    image = ax.imshow(values[np.ix_(order.index, order.index)], cmap=canvas.SIMILARITIES, vmin=0, vmax=1)
    for _, start, _ in order.blocks[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=1.2)
        ax.axvline(start - 0.5, color="white", linewidth=1.2)
    middles = [(start + end - 1) / 2 for _, start, end in order.blocks]
    blocks = [name for name, _, _ in order.blocks]
    ax.set_xticks(middles, canvas.safes(blocks, 24), rotation=90 if count > 60 else 30)
    if count <= 24:
        rows = blocks if len(blocks) == count else order.inner  # of one layer, or one model: the blocks differ
        ax.set_yticks(range(count), canvas.safes(rows, 34))
    else:
        ax.set_yticks(middles, canvas.safes(blocks, 34))
    ax.tick_params(labelsize=7, length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(MEASURES.get(measure, canvas.safe(measure)), loc="left", fontsize=9, color=canvas.INK)
    steps = similarity[STEP].values
    ax.set_title(f"step {int(steps[-1] if step is None else step):,}", loc="right", fontsize=7, color=canvas.INK)
    figure = ax.get_figure()
    if figure is not None:
        bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.02, shrink=0.6)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.outline.set_visible(False)
    return ax


def similarity_matrix(similarity: xr.Dataset, measure: str, step: int | None = None) -> NDArray[np.float64]:
    """Return the similarities (representation, other) by one measure at one step, the last when None."""
    measures = [str(name) for name in similarity[MEASURE].values]
    steps = [int(value) for value in similarity[STEP].values]
    if measure not in measures or (step is not None and step not in steps):
        raise AnalysisError(
            f"expected one of the measures {measures} at one of the steps {steps}, found {measure!r}"
            + (f" at {step}" if step is not None else "")
        )
    at = len(steps) - 1 if step is None else steps.index(step)
    values = similarity[SIMILARITY].isel({MEASURE: measures.index(measure), STEP: at})
    return np.asarray(values.transpose(REPRESENTATION, OTHER).values, dtype=float)
