"""Pictures of operators: PHATE of one operator's samples, PHATE and classical MDS of many operators' distances."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform

from repaudit.errors import OperatorError
from repaudit.measure.stack import Operator, dense
from repaudit.names import COMPONENT, SAMPLE

Array = NDArray[np.float64]

T_MAX: Final = 100
"""Longest diffusion time that the von Neumann entropy is looked at for."""
POTENTIAL_FLOOR: Final = 1e-7
"""Added to transition probabilities before the logarithm, as PHATE does."""
MDS_ITERATIONS: Final = 1000
SAME: Final = 1e-9
"""Operators closer than this share of the largest distance are one point."""
FEWEST_FOR_PHATE: Final = 5
"""Fewer points have no neighbourhoods: they are laid out by their distances alone."""
KNN: Final = 5


def phate_embedding(operator: Operator, n_components: int = 2, t: int | str = "auto", seed: int = 0) -> xr.DataArray:
    """PHATE coordinates of the samples of one diffusion operator.

    Metric MDS (SMACOF, started from classical MDS) of the distances between rows of the potential
    ``U = -log(P^t + 1e-7)``, built from P itself: neither renormalised nor made symmetric.

    Parameters
    ----------
    operator : operator (sample, neighbor)
    n_components : int
    t : int or "auto"
        Diffusion time; "auto" takes the knee of the von Neumann entropy of P^t over t = 1 to 100.
    seed : int
        Of the layout.

    Returns
    -------
    DataArray (sample, component)
        attrs: ``stress`` (Kruskal's stress-1 against the potential distances), ``t``, ``seed``, ``method``.

    Raises
    ------
    OperatorError
        Not a square, finite matrix of non-negative entries.
    ValueError
        `t` or `n_components` below 1.

    Examples
    --------
    >>> import numpy as np
    >>> ring = (np.roll(np.eye(12), 1, 0) + np.eye(12) + np.roll(np.eye(12), -1, 0)) / 3
    >>> phate_embedding(ring, t=2).sizes["sample"]
    12

    References
    ----------
    Moon et al. (2019), Visualizing structure and transitions in high-dimensional biological data, Nat. Biotechnol. 37.
    """
    matrix = dense(operator)
    if (matrix < 0).any():
        raise OperatorError("expected transition probabilities, found negative entries in the operator")
    time = _knee_time(matrix) if t == "auto" else t
    if not isinstance(time, int | np.integer) or time < 1:
        raise ValueError(f"expected t='auto' or a whole number of at least 1, found {t!r}")
    potential = -np.log(np.linalg.matrix_power(matrix, int(time)) + POTENTIAL_FLOOR)
    points, stress = _metric_mds(squareform(pdist(potential)), n_components, seed)
    return xr.DataArray(
        points, dims=(SAMPLE, COMPONENT), attrs={"stress": stress, "t": int(time), "seed": seed, "method": "phate"}
    )


def phate_trajectories(
    distances: ArrayLike, n_components: int = 2, seed: int = 0, *, dim: str = "operator"
) -> xr.DataArray:
    """PHATE coordinates of T operators from their distances: one point an operator, a trajectory for each model.

    The alpha-decay kernel stands on 5 neighbours, or as many more as it takes to connect all points (`knn` in attrs):
    between parts of a disconnected graph potential distances mean nothing. Identical operators count as one point.
    Fewer than 5 distinct points have no neighbourhoods to speak of: they are laid out by metric MDS of the distances
    themselves, and ``method`` says so.

    Parameters
    ----------
    distances : (T, T)
        Symmetric, zero on the diagonal, as :func:`repaudit.operator_distances` gives them.
    n_components : int
    seed : int
        Of the layout.
    dim : str
        Name of the dimension of length T.

    Returns
    -------
    DataArray (operator, component)
        attrs: ``stress`` (Kruskal's stress-1 against the distances that were laid out), ``t``, ``knn``, ``seed``,
        ``method`` ("phate" or "mds").

    Raises
    ------
    OperatorError
        Distances that are no square, symmetric, finite, non-negative matrix with a zero diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
    >>> phate_trajectories(line).shape
    (3, 2)

    References
    ----------
    Moon et al. (2019), Visualizing structure and transitions in high-dimensional biological data, Nat. Biotechnol. 37.
    """
    known = _distances(distances)
    distinct, which = _distinct(known)
    target, attrs = known[np.ix_(distinct, distinct)], {"t": 0, "knn": 0, "seed": seed, "method": "mds"}
    if len(distinct) >= FEWEST_FOR_PHATE:
        potential, time, knn = _phate_potential(target, seed)
        target, attrs = squareform(pdist(potential)), {"t": time, "knn": knn, "seed": seed, "method": "phate"}
    points, stress = _metric_mds(target, n_components, seed)
    return xr.DataArray(points[which], dims=(dim, COMPONENT), attrs={"stress": stress, **attrs})


def mds_embedding(distances: ArrayLike, n_components: int = 2, *, dim: str = "operator") -> xr.DataArray:
    """Classical MDS: the principal coordinates ``v_k sqrt(lambda_k)`` of ``-1/2 J D^2 J``, J the centring matrix.

    Exact for distances of points in `n_components` dimensions. The largest entry of every coordinate is positive, so
    that the picture does not depend on the eigensolver.

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
    known = _distances(distances)
    points = _classical_mds(known, n_components)
    attrs = {"stress": _stress(known, squareform(pdist(points))), "method": "classical mds"}
    return xr.DataArray(points, dims=(dim, COMPONENT), attrs=attrs)


def _knee_time(matrix: Array) -> int:
    """The knee of the von Neumann entropy ``-sum p log p`` of ``p = |lambda|^t / sum``, lambda the spectrum of P."""
    from phate.vne import find_knee_point

    size = np.abs(np.linalg.eigvals(matrix))
    powers = np.cumprod(np.broadcast_to(size, (T_MAX, len(size))), axis=0)
    shares = powers / powers.sum(1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logs).sum(1)
    return int(find_knee_point(entropy, np.arange(1, T_MAX + 1)))


def _phate_potential(distances: Array, seed: int) -> tuple[Array, int, int]:
    """PHATE's potential, diffusion time and neighbours, with the fewest neighbours that connect all points."""
    import phate

    knn = min(KNN, len(distances) - 2)
    while True:
        estimator = phate.PHATE(
            knn=knn,
            n_landmark=None,
            knn_dist="precomputed_distance",
            mds_solver="smacof",
            n_jobs=1,
            random_state=seed,
            verbose=0,
        )
        # A disconnected graph is what the loop is about, and (d / s)^40 may be infinite: its kernel is 0.
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.filterwarnings("ignore", message="Graph is disconnected", category=RuntimeWarning)
            estimator.fit(distances.copy())
        if estimator.graph.is_connected or knn >= len(distances) - 2:
            return np.asarray(estimator.diff_potential, dtype=np.float64), int(estimator.optimal_t), knn
        knn = min(2 * knn, len(distances) - 2)


def _distinct(distances: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the distinct points, and for every point which of them it is: copies have no neighbourhood."""
    same = distances <= SAME * distances.max(initial=0)
    return np.unique(same.argmax(1), return_inverse=True)


def _metric_mds(distances: Array, n_components: int, seed: int) -> tuple[Array, float]:
    """SMACOF from classical MDS, and its stress-1."""
    from sklearn.manifold import smacof

    start = _classical_mds(distances, n_components)
    if not distances.any():
        return start, 0.0
    points, _ = smacof(
        distances, n_components=n_components, init=start, n_init=1, max_iter=MDS_ITERATIONS, random_state=seed
    )
    return points, _stress(distances, squareform(pdist(points)))


def _classical_mds(distances: Array, n_components: int) -> Array:
    if n_components < 1:
        raise ValueError(f"expected at least one component, found {n_components}")
    squares = distances**2
    gram = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values[::-1][:n_components], vectors[:, ::-1][:, :n_components]
    points = np.zeros((len(distances), n_components))
    points[:, : len(values)] = vectors * np.sqrt(np.clip(values, 0, None))
    largest = np.abs(points).argmax(0)
    return points * np.where(points[largest, np.arange(n_components)] < 0, -1.0, 1.0)


def _stress(distances: Array, laid_out: Array) -> float:
    """Kruskal's stress-1, ``sqrt(sum (d - d')^2 / sum d'^2)`` over the pairs, d' in the picture: 0 is a perfect one."""
    scale = float((laid_out**2).sum())
    if scale == 0:
        return 0.0 if not distances.any() else 1.0
    return float(np.sqrt(((distances - laid_out) ** 2).sum() / scale))


def _distances(distances: ArrayLike) -> Array:
    known = np.asarray(distances, dtype=np.float64)
    if known.ndim != 2 or known.shape[0] != known.shape[1] or not len(known):
        raise OperatorError(f"expected distances of shape (T, T), found {known.shape}")
    if not np.isfinite(known).all():
        count = int((~np.isfinite(known)).sum())
        raise OperatorError(f"expected finite distances, found {count} that are not: leave those operators out")
    slack = 1e-9 * float(known.max(initial=0))
    if (known < 0).any() or np.abs(np.diag(known)).max() > slack or np.abs(known - known.T).max() > slack:
        raise OperatorError("expected distances that are non-negative and symmetric with a zero diagonal")
    symmetric = (known + known.T) / 2
    np.fill_diagonal(symmetric, 0)
    return symmetric
