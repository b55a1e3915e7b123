"""PHATE: of the samples of one operator, of several operators in one frame, of many operators by their distances."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

from repaudit.embed.mds import checked_distances, metric_mds, procrustes_align
from repaudit.embed.multislice import multislice_operator, standardised_units
from repaudit.embed.potential import IMPORTING, diffusion_time, potential_distances
from repaudit.errors import OperatorError
from repaudit.names import COMPONENT, FEATURE, SAMPLE, STEP
from repaudit.operators.stack import Operator, dense

Array = NDArray[np.float64]

SAME: Final = 1e-9
"""Operators closer than this share of the largest distance are one point."""
FEWEST_FOR_PHATE: Final = 5
"""Fewer points have no neighbourhoods: they are laid out by their distances only."""
KNN: Final = 5
_FILTERS: Final = Lock()
"""The filters of warnings belong to the process: who changes them for a while must be alone."""


def phate_embedding(operator: Operator, n_components: int = 2, t: int | str = "auto", seed: int = 0) -> xr.DataArray:
    """Compute PHATE coordinates of the samples of one diffusion operator.

    Metric MDS (started from classical MDS) of the distances between rows of the potential
    ``U = -log(P^t + 1e-7)``, built from P itself: neither renormalised nor made symmetric.

    Parameters
    ----------
    operator : operator (sample, neighbor)
    n_components : int
    t : int or "auto"
        Diffusion time; "auto" takes the knee of the von Neumann entropy of P^t over t = 1 to 100.
    seed : int
        Passed to phate and kept with the result; the layout itself draws nothing.

    Returns
    -------
    DataArray (sample, component)
        attrs: ``stress`` (Kruskal's stress-1 against the potential distances), ``t``, ``seed``, ``method``.

    Raises
    ------
    OperatorError
        The operator is not a square, finite matrix of non-negative entries.
    ValueError
        `t` or `n_components` below 1.

    Examples
    --------
    >>> import numpy as np
    >>> ring = (np.roll(np.eye(12), 1, 0) + np.eye(12) + np.roll(np.eye(12), -1, 0)) / 3
    >>> phate_embedding(ring, t=2).sizes["sample"]
    12

    See Also
    --------
    phate_trajectories : PHATE of many operators by their distances, one point per operator.
    DiffusionMerging : merges the operators of several models into one to embed.

    References
    ----------
    Moon et al. (2019), Visualizing structure and transitions in high-dimensional biological data, Nat. Biotechnol. 37.
    """
    points, stress, time = _phate_of_operator(operator, n_components, t)
    attrs = {"stress": stress, "t": time, "seed": seed, "method": "phate"}
    ids = getattr(operator, "samples", None)
    coords = {} if ids is None else {SAMPLE: np.asarray(ids)}
    return xr.DataArray(points, dims=(SAMPLE, COMPONENT), coords=coords, attrs=attrs)


def phate_frames(
    operators: Sequence[Operator],
    n_components: int = 2,
    t: int | str = "auto",
    seed: int = 0,
    *,
    dim: str = "frame",
    samples: Sequence[int] | None = None,
) -> xr.DataArray:
    """Compute PHATE coordinates of the samples at several steps in one frame, so that an animation does not jump.

    All frames share one diffusion time (with "auto" that of the last operator). Every layout starts from the
    previous one, and is then turned, mirrored and shifted onto it by orthogonal Procrustes, never scaled.

    Parameters
    ----------
    operators : sequence of T operators (sample, neighbor)
        On the same samples, in the order of steps; read one at a time.
    n_components, t, seed
        As in :func:`phate_embedding`.
    dim : str
        Name of the dimension of length T.
    samples : sequence of int, optional
        Indices of the samples to lay out, all by default: a layout of N samples takes time of the order of N². Their
        distances are those of walks over all samples.

    Returns
    -------
    DataArray (frame, sample, component)
        attrs: ``stress`` (one per frame), ``t``, ``seed``, ``method``.

    Raises
    ------
    OperatorError
        No operators, operators of different sizes, or not finite.

    References
    ----------
    Schonemann (1966), A generalized solution of the orthogonal Procrustes problem, Psychometrika 31.
    """
    if not len(operators):
        raise OperatorError("expected at least one operator, found none")
    time = diffusion_time(operators[len(operators) - 1], t)
    frames: list[Array] = []
    stresses = []
    for index in range(len(operators)):
        before = frames[-1] if frames else None
        distances = potential_distances(dense(operators[index]), time, samples)
        if before is not None and len(before) != len(distances):
            raise OperatorError(f"expected the same {len(before)} samples in operator {index}, found {len(distances)}")
        points, stress = metric_mds(distances, n_components, start=before)
        frames.append(points if before is None else procrustes_align(points, before))
        stresses.append(stress)
    attrs = {"stress": stresses, "t": time, "seed": seed, "method": "phate"}
    return xr.DataArray(np.stack(frames), dims=(dim, SAMPLE, COMPONENT), attrs=attrs)


def phate_onto(
    operators: Sequence[Operator], frames: xr.DataArray, seed: int = 0, *, samples: Sequence[int] | None = None
) -> xr.DataArray:
    """Compute PHATE coordinates of further operators, each on the layout of its step.

    As :func:`phate_frames`, at its diffusion time, but every layout starts from the frame of the same index and is
    turned onto it: the operators of one model in the frame of the merged ones.

    Parameters
    ----------
    operators : sequence of T operators (sample, neighbor)
    frames : DataArray (frame, sample, component)
        Result of :func:`phate_frames` for the same steps and samples.
    seed : int
    samples : sequence of int, optional

    Returns
    -------
    DataArray (frame, sample, component), with attrs as those of :func:`phate_frames`
    """
    points, stresses = [], []
    for operator, frame in zip(operators, frames.values, strict=True):
        distances = potential_distances(dense(operator), frames.attrs["t"], samples)
        laid_out, stress = metric_mds(distances, frame.shape[1], start=frame)
        points.append(procrustes_align(laid_out, frame))
        stresses.append(stress)
    return xr.DataArray(np.stack(points), dims=frames.dims, attrs={**frames.attrs, "stress": stresses, "seed": seed})


def unit_trajectories(
    activations: ArrayLike,
    n_components: int = 2,
    t: int | str = "auto",
    *,
    knn: int = 2,
    step_knn: int = 25,
    decay: float = 5.0,
    seed: int = 0,
) -> xr.DataArray:
    """Compute M-PHATE coordinates of one layer's units over steps: one point per (step, unit).

    PHATE of the multislice operator (:func:`repaudit.embed.multislice.multislice_operator`), which joins units of one
    step, and each unit with itself over the steps.

    Parameters
    ----------
    activations : (step, sample, feature)
        At most 5,000 points (steps x features); of more, choose some of the units.
    n_components, t, seed
        As in :func:`phate_embedding`.
    knn, step_knn : int
        Neighbours among the other units and the other steps; larger numbers are reduced.
    decay : float

    Returns
    -------
    DataArray (step, feature, component)
        attrs: ``stress``, ``t``, ``seed``, ``method``, and ``constant``, the number of points whose unit does not vary
        over the samples at that step (they are at the origin of the standardised activations).

    Raises
    ------
    ActivationError
        Fewer than two steps or units, entries that are not finite, or too many points.

    References
    ----------
    Gigante, Charles, Krishnaswamy and Mishne (2019), Visualizing the PHATE of neural networks, NeurIPS.
    """
    units, constant = standardised_units(activations)
    steps, features = units.shape[:2]
    operator = multislice_operator(units, knn=knn, step_knn=step_knn, decay=decay)
    points, stress, time = _phate_of_operator(operator, n_components, t)
    attrs = {"stress": stress, "t": time, "seed": seed, "method": "m-phate", "constant": constant}
    return xr.DataArray(points.reshape(steps, features, -1), dims=(STEP, FEATURE, COMPONENT), attrs=attrs)


def phate_trajectories(
    distances: ArrayLike, n_components: int = 2, seed: int = 0, *, dim: str = "operator"
) -> xr.DataArray:
    """Compute PHATE coordinates of T operators from their distances: one point per operator.

    The operators of one model, in the order of steps, are its trajectory. The alpha-decay kernel uses 5 neighbours, or
    as many as are needed to connect all points (`knn` in attrs): potential distances between the parts of a
    disconnected graph mean nothing. Identical operators count as one point. Fewer than 5 distinct points have no
    neighbourhoods: they are laid out by metric MDS of the distances themselves, and ``method`` says so.

    Parameters
    ----------
    distances : (T, T)
        Symmetric, zero on the diagonal, as :func:`repaudit.operator_distances` returns them.
    n_components : int
    seed : int
        Passed to phate and kept with the result; the layout itself draws nothing.
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
        The distances are not a square, symmetric, finite, non-negative matrix with a zero diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
    >>> phate_trajectories(line).shape
    (3, 2)

    See Also
    --------
    operator_distances : the distances to start from.
    phate_embedding : PHATE of the samples of one operator.

    References
    ----------
    Moon et al. (2019), Visualizing structure and transitions in high-dimensional biological data, Nat. Biotechnol. 37.
    """
    checked = checked_distances(distances)
    distinct, which = _distinct(checked)
    target, attrs = checked[np.ix_(distinct, distinct)], {"t": 0, "knn": 0, "seed": seed, "method": "mds"}
    if len(distinct) >= FEWEST_FOR_PHATE:
        potential, time, knn = _phate_potential(target, seed)
        target, attrs = squareform(pdist(potential)), {"t": time, "knn": knn, "seed": seed, "method": "phate"}
    points, stress = metric_mds(target, n_components)
    return xr.DataArray(points[which], dims=(dim, COMPONENT), attrs={"stress": stress, **attrs})


def _phate_of_operator(operator: Operator, n_components: int, t: int | str) -> tuple[Array, float, int]:
    time = diffusion_time(operator, t)
    points, stress = metric_mds(potential_distances(dense(operator), time), n_components)
    return points, stress, time


def _phate_potential(distances: Array, seed: int) -> tuple[Array, int, int]:
    """Return PHATE's potential, diffusion time and neighbours, with the fewest neighbours that connect all points."""
    with IMPORTING:
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
        # The loop handles disconnected graphs, and (d / s)^40 may be infinite: its kernel is 0.
        with _FILTERS, warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.filterwarnings("ignore", message="Graph is disconnected", category=RuntimeWarning)
            estimator.fit(distances.copy())
        if estimator.graph.is_connected or knn >= len(distances) - 2:
            return np.asarray(estimator.diff_potential, dtype=np.float64), int(estimator.optimal_t), knn
        knn = min(2 * knn, len(distances) - 2)


def _distinct(distances: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the distinct points, and which of them every point is: copies have no neighbourhood."""
    same = distances <= SAME * distances.max(initial=0)
    _, group = connected_components(csr_array(same), directed=False)  # what is as close as that to one of them, too
    _, first, which = np.unique(group, return_index=True, return_inverse=True)  # groups come in the order of points
    return first, which
