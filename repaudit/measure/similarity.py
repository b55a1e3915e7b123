"""Similarity of two representations of the same samples, each measure with what unrelated ones would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from repaudit.errors import ActivationError
from repaudit.measure.null import null_inner

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """A similarity, 1 for representations alike, and its expected value under random relabelling of the samples."""

    value: float
    null: float
    measure: str


def similarity(
    X: Any, Y: Any, measure: str = "cka", *, k: int = 10, permutations: int = 50, seed: int = 0
) -> Similarity:
    """Similarity of two representations of the same samples.

    ============== =========================================================================================
    measure        value
    ============== =========================================================================================
    cka            linear CKA ``<K, L> / (|K| |L|)`` of centred Gram matrices ``K = Xc Xc'``
    cka_debiased   the same with the unbiased estimate of HSIC (diagonals left out); about 0 if unrelated
    cka_rbf        CKA of Gaussian kernels, bandwidth the median distance
    mutual_knn     mean share of a sample's `k` nearest neighbours that it has in both; chance is k / (N - 1)
    procrustes     ``|Xc' Yc|_* / (|Xc| |Yc|)``: the best agreement that an orthogonal map reaches
    rsa            Pearson's r of the Euclidean distances between samples
    ============== =========================================================================================

    All of them are blind to rotation and to overall scale. `null` is exact for cka, cka_debiased, cka_rbf, mutual_knn
    and rsa (closed form), and the mean over `permutations` random relabellings for procrustes, which has none. A
    measure that is not defined (a constant representation) is NaN.

    Parameters
    ----------
    X, Y : (sample, feature)
        Arrays, tensors or DataArrays; the numbers of features may differ.
    measure : str
    k : int
        Neighbours of mutual_knn.
    permutations, seed : int
        Of the null of procrustes.

    Raises
    ------
    ActivationError
        Different or too few samples, or entries that are not finite.
    ValueError
        An unknown measure, or `k` not between 1 and N - 1.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((50, 4))
    >>> round(similarity(X, 3 * X[:, ::-1], measure="cka").value, 6)
    1.0
    >>> round(similarity(X, X, measure="mutual_knn", k=7).null, 6)
    0.142857

    References
    ----------
    Kornblith et al. (2019), Similarity of neural network representations revisited. Song et al. (2012), Feature
    selection via dependence maximization (the unbiased HSIC). Huh et al. (2024), The Platonic representation
    hypothesis (mutual kNN). Williams et al. (2021), Generalized shape metrics. Kriegeskorte et al. (2008).
    """
    if measure not in _MEASURES:
        raise ValueError(f"expected a measure among {', '.join(_MEASURES)}, found {measure!r}")
    x, y = _samples(X, "X"), _samples(Y, "Y")
    if len(x) != len(y):
        raise ActivationError(f"expected the same samples in X and Y, found {len(x)} and {len(y)}")
    value, null = _MEASURES[measure](x, y, _Options(k, permutations, seed))
    return Similarity(value, null, measure)


def similarity_map(
    representations: Mapping[str, Any], measure: str = "cka", *, k: int = 10, permutations: int = 50, seed: int = 0
) -> xr.Dataset:
    """Similarity of every pair of representations, such as all layers of all models at one step.

    Parameters
    ----------
    representations : mapping of name, such as "seed0/model.layers.3", to (sample, feature)
        On the same samples.
    measure, k, permutations, seed
        As in :func:`similarity`.

    Returns
    -------
    Dataset
        ``similarity`` and ``null`` on (representation, other), symmetric; ``measure`` in attrs.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((2, 30, 4))
    >>> found = similarity_map({"seed0": X[0], "seed1": X[1]})
    >>> float(found["similarity"].sel(representation="seed0", other="seed0").round(6))
    1.0
    """
    names = list(representations)
    found = np.full((2, len(names), len(names)), math.nan)
    for i, j in combinations_with_replacement(range(len(names)), 2):
        first, second = representations[names[i]], representations[names[j]]
        pair = similarity(first, second, measure, k=k, permutations=permutations, seed=seed)
        found[:, i, j] = found[:, j, i] = pair.value, pair.null
    dims = ("representation", "other")
    variables = {"similarity": (dims, found[0]), "null": (dims, found[1])}
    return xr.Dataset(variables, coords={"representation": names, "other": names}, attrs={"measure": measure})


@dataclass(frozen=True)
class _Options:
    k: int
    permutations: int
    seed: int


Measure = Callable[[Array, Array, _Options], tuple[float, float]]


def effective_rank(X: Any) -> float:
    """Effective rank ``exp(-sum p log p)`` of ``p = sigma / sum sigma``, the singular values of the centred features.

    Between 1 and the number of features; NaN where all samples are alike (Roy and Vetterli, The effective rank, 2007).

    Examples
    --------
    >>> round(effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    sizes = np.linalg.svd(_centred(_samples(X, "X")), compute_uv=False)
    if not sizes.sum():
        return math.nan
    shares = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _samples(X: Any, name: str) -> Array:
    array = np.asarray(X.detach().cpu() if hasattr(X, "detach") else X, dtype=np.float64)
    if array.ndim != 2 or len(array) < 4:
        raise ActivationError(f"expected (sample, feature) with at least 4 samples, found {array.shape} in {name}")
    if not np.isfinite(array).all():
        row = int((~np.isfinite(array).all(1)).argmax())
        raise ActivationError(f"expected finite activations, found NaN or infinity in {name} at sample {row}")
    return array


def _centred(x: Array) -> Array:
    """Features of mean 0; exactly 0 where they vary by rounding alone."""
    centred: Array = x - x.mean(0)
    centred[:, np.ptp(x, axis=0) <= 1e-12 * np.abs(x).max(0)] = 0
    return centred


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _cosine_and_null(K: Array, L: Array) -> tuple[float, float]:
    """``<K, L> / (|K| |L|)`` and its mean over relabellings of one of them, which leave the norms alone."""
    norms = float(np.linalg.norm(K) * np.linalg.norm(L))
    expected = float(null_inner(np.trace(K), K.sum(), np.trace(L), L.sum(), len(K)))
    return _ratio(float(np.vdot(K, L)), norms), _ratio(expected, norms)


def _gram(x: Array) -> Array:
    centred = _centred(x)
    scale = np.abs(centred).max(initial=0) or 1.0
    gram: Array = (centred / scale) @ (centred / scale).T
    return gram


def _cka(x: Array, y: Array, _: _Options) -> tuple[float, float]:
    return _cosine_and_null(_gram(x), _gram(y))


def _cka_debiased(x: Array, y: Array, _: _Options) -> tuple[float, float]:
    return _cosine_and_null(_u_centred(_gram(x)), _u_centred(_gram(y)))


def _u_centred(K: Array) -> Array:
    """The matrix whose inner products are N (N - 3) times the unbiased HSIC: zero diagonal, rows that sum to zero."""
    n = len(K)
    off = K - np.diag(np.diag(K))
    rows = off.sum(1) / (n - 2)
    centred: Array = off - rows[:, None] - rows[None, :] + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def _cka_rbf(x: Array, y: Array, _: _Options) -> tuple[float, float]:
    return _cosine_and_null(_rbf(x), _rbf(y))


def _rbf(x: Array) -> Array:
    distances = cdist(x, x)
    bandwidth = float(np.median(distances[~np.eye(len(x), dtype=bool)]))
    if bandwidth == 0:
        return np.zeros_like(distances)
    kernel = np.exp(-((distances / bandwidth) ** 2) / 2)
    centred: Array = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return centred


def _mutual_knn(x: Array, y: Array, options: _Options) -> tuple[float, float]:
    others = len(x) - 1
    if not 1 <= options.k <= others:
        raise ValueError(f"expected k between 1 and the {others} other samples, found {options.k}")
    shared = _neighbours(x, options.k) & _neighbours(y, options.k)
    return float(shared.sum(1).mean() / options.k), options.k / others


def _neighbours(x: Array, k: int) -> NDArray[np.bool_]:
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    found = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(found, np.argsort(distances, axis=1, kind="stable")[:, :k], True, axis=1)
    return found


def _procrustes(x: Array, y: Array, options: _Options) -> tuple[float, float]:
    first, second = _centred(x), _centred(y)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    rng = np.random.default_rng(options.seed)
    drawn = [_nuclear(first, second[rng.permutation(len(y))]) for _ in range(options.permutations)]
    return _ratio(_nuclear(first, second), norms), _ratio(float(np.mean(drawn)), norms)


def _nuclear(first: Array, second: Array) -> float:
    return float(np.linalg.svd(first.T @ second, compute_uv=False).sum())


def _rsa(x: Array, y: Array, _: _Options) -> tuple[float, float]:
    first, second = _profile(x), _profile(y)
    return _ratio(float(np.vdot(first, second)), float(np.linalg.norm(first) * np.linalg.norm(second))), 0.0


def _profile(x: Array) -> Array:
    """Off-diagonal distances less their mean; 0 where they vary by rounding alone."""
    distances = cdist(x, x)
    off = ~np.eye(len(x), dtype=bool)
    centred: Array = distances[off] - distances[off].mean()
    if float(np.linalg.norm(centred)) <= 1e-9 * float(np.linalg.norm(distances)):
        return np.zeros_like(centred)
    return centred


_MEASURES: Final[dict[str, Measure]] = {
    "cka": _cka,
    "cka_debiased": _cka_debiased,
    "cka_rbf": _cka_rbf,
    "mutual_knn": _mutual_knn,
    "procrustes": _procrustes,
    "rsa": _rsa,
}
