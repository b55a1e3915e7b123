"""Points from distances: classical and metric scaling, how faithful a layout is, and one layout turned onto another."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.spatial.distance import cdist, pdist, squareform

from repaudit.errors import OperatorError
from repaudit.names import COMPONENT

Array = NDArray[np.float64]

MDS_ITERATIONS: Final = 1000
FRESH, STARTED = 1e-9, 1e-5
"""A layout is final when another iteration lowers its stress by less than this share; the second one holds for layouts
that start from another one: there are many of them, one per frame."""


def mds_embedding(distances: ArrayLike, n_components: int = 2, *, dim: str = "operator") -> xr.DataArray:
    """Lay out points by classical MDS: coordinates ``v_k sqrt(lambda_k)`` of ``-1/2 J D^2 J``, J the centring matrix.

    Exact for distances of points in `n_components` dimensions. The largest entry of every coordinate is positive: the
    picture does not depend on the eigensolver.

    Parameters
    ----------
    distances : (T, T)
        Symmetric, zero on the diagonal.
    n_components : int
    dim : str
        Name of the dimension of length T.

    Returns
    -------
    DataArray (operator, component)
        attrs: ``stress`` (Kruskal's stress-1), ``method``.

    Examples
    --------
    >>> import numpy as np
    >>> points = mds_embedding(np.array([[0.0, 2.0], [2.0, 0.0]]))
    >>> np.abs(points.values[:, 0]).tolist()
    [1.0, 1.0]

    References
    ----------
    Torgerson (1952), Multidimensional scaling: I. Theory and method, Psychometrika 17.
    """
    checked = checked_distances(distances)
    points = classical_mds(checked, n_components)
    attrs = {"stress": kruskal_stress(checked, squareform(pdist(points))), "method": "classical mds"}
    return xr.DataArray(points, dims=(dim, COMPONENT), attrs=attrs)


def procrustes_align(points: Array, target: Array) -> Array:
    """Turn, mirror and shift points (N, component) to be as near to `target` as possible, without changing distances.

    Examples
    --------
    >>> square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    >>> procrustes_align(square[:, ::-1] + 7, square).round(6).tolist()
    [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    """
    centred, middle = points - points.mean(0), target.mean(0)
    left, _, right = np.linalg.svd(centred.T @ (target - middle))
    aligned: Array = centred @ (left @ right) + middle
    return aligned


def metric_mds(distances: Array, n_components: int, *, start: Array | None = None) -> tuple[Array, float]:
    """Lay out points by least raw stress ``sum (d - d')^2``, and return them with their stress-1.

    L-BFGS from classical MDS, or from a given layout: it takes a fifth of the time of SMACOF, whose steps are those of
    plain gradient descent. A layout with all points in one place gives no direction to go from, and counts as none.

    References
    ----------
    Kruskal (1964), Nonmetric multidimensional scaling: a numerical method, Psychometrika 29.
    """
    start = None if start is None or not np.ptp(start, axis=0).any() else start
    first = classical_mds(distances, n_components) if start is None else start
    if not distances.any():
        return np.zeros_like(first), 0.0
    unit = float(distances.max())  # the line search expects steps of the size of one
    found = minimize(
        _stress_and_slope,
        (first / unit).ravel(),
        args=(distances / unit, np.empty_like(distances), np.empty_like(distances)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MDS_ITERATIONS, "ftol": FRESH if start is None else STARTED, "gtol": 0.0},
    )
    points: Array = found.x.reshape(first.shape) * unit
    return points, kruskal_stress(distances, squareform(pdist(points)))


def _stress_and_slope(flat: Array, distances: Array, laid_out: Array, errors: Array) -> tuple[float, Array]:
    """Return the mean squared error of a layout's distances, and its derivative; 0 of a pair in one place.

    The last two arrays are overwritten: new ones for every call would take as long as the sums.
    """
    points = flat.reshape(len(distances), -1)
    cdist(points, points, out=laid_out)
    np.subtract(laid_out, distances, out=errors)
    # einsum, as products this thin gain nothing from the threads of BLAS and wait for them
    value = float(np.einsum("ij,ij->", errors, errors))
    laid_out[laid_out == 0] = np.inf
    pulls = np.divide(errors, laid_out, out=errors)
    slope: Array = 4 * (pulls.sum(1)[:, None] * points - np.einsum("ij,cj->ic", pulls, points.T.copy()))
    return value / errors.size, slope.ravel() / errors.size


def classical_mds(distances: Array, n_components: int) -> Array:
    """Return the principal coordinates of distances (T, T), 0 beyond their rank; see :func:`mds_embedding`."""
    if n_components < 1:
        raise ValueError(f"expected at least one component, found {n_components}")
    squares = distances**2
    gram = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    last = len(gram) - 1
    values, vectors = eigh((gram + gram.T) / 2, subset_by_index=[max(0, last + 1 - n_components), last])
    values, vectors = values[::-1], vectors[:, ::-1]
    points = np.zeros((len(distances), n_components))
    points[:, : len(values)] = vectors * np.sqrt(np.clip(values, 0, None))
    largest = np.abs(points).argmax(0)
    return points * np.where(points[largest, np.arange(n_components)] < 0, -1.0, 1.0)


def kruskal_stress(distances: Array, laid_out: Array) -> float:
    """Return Kruskal's stress-1, ``sqrt(sum (d - d')^2 / sum d'^2)`` over pairs, d' in the picture: 0 is perfect."""
    scale = float((laid_out**2).sum())
    if scale == 0:
        return 0.0 if not distances.any() else 1.0
    return float(np.sqrt(((distances - laid_out) ** 2).sum() / scale))


def scaled_stress(distances: ArrayLike, points: ArrayLike) -> float:
    """Return the stress of a layout (T, component) against distances (T, T) at the best common scale: 0 is faithful.

    PHATE's stress is measured against its potential distances, which say little about the input for few operators.

    Examples
    --------
    >>> scaled_stress([[0, 2], [2, 0]], [[0.0], [7.0]])
    0.0
    """
    laid_out = pdist(np.asarray(points, dtype=np.float64))
    given = squareform(np.asarray(distances, dtype=np.float64), checks=False)
    scale = (laid_out @ given) / (laid_out @ laid_out) if laid_out.any() else 0.0
    return float(np.sqrt(((given - scale * laid_out) ** 2).sum() / (given**2).sum())) if given.any() else 0.0


def checked_distances(distances: ArrayLike) -> Array:
    """Return distances (T, T) in float64, exactly symmetric.

    Raises
    ------
    OperatorError
        They are not a square, symmetric, finite, non-negative matrix with a zero diagonal.
    """
    checked = np.asarray(distances, dtype=np.float64)
    if checked.ndim != 2 or checked.shape[0] != checked.shape[1] or not len(checked):
        raise OperatorError(f"expected distances of shape (T, T), found {checked.shape}")
    if not np.isfinite(checked).all():
        count = int((~np.isfinite(checked)).sum())
        raise OperatorError(f"expected finite distances, found {count} that are not: leave those operators out")
    slack = 1e-9 * float(checked.max(initial=0))
    if (checked < 0).any() or np.abs(np.diag(checked)).max() > slack or np.abs(checked - checked.T).max() > slack:
        raise OperatorError("expected distances that are non-negative and symmetric with a zero diagonal")
    symmetric = (checked + checked.T) / 2
    np.fill_diagonal(symmetric, 0)
    return symmetric
