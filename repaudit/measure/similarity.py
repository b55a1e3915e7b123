"""Similarity of two representations of the same samples: several measures, each with its value by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from repaudit.errors import ActivationError
from repaudit.measure.gram import bytes_of
from repaudit.measure.null import null_inner
from repaudit.measure.procrustes import procrustes

Array = NDArray[np.float64]
Measure: TypeAlias = Literal["cka", "cka_debiased", "cka_rbf", "mutual_knn", "procrustes", "rsa"]

_TIE: Final = 1e-9
"""Relative difference up to which distances tie: more than rounding leaves."""


@dataclass(frozen=True)
class Similarity:
    """A similarity, and its expected value under random relabelling of the samples.

    Attributes
    ----------
    value : float
        1 for representations that the measure cannot tell apart; NaN where it is not defined.
    null : float
        Expected value when the samples of one representation are relabelled at random.
    measure : str

    See Also
    --------
    similarity : computes it.

    Examples
    --------
    >>> Similarity(0.75, 0.5, "cka").value
    0.75
    """

    value: float
    null: float
    measure: str


def similarity(
    X: Any, Y: Any, measure: Measure = "cka", *, k: int = 10, permutations: int = 50, seed: int = 0
) -> Similarity:
    """Compute the similarity of two representations of the same samples.

    ============== =========================================================================================
    measure        value
    ============== =========================================================================================
    cka            linear CKA ``<K, L> / (|K| |L|)`` of centred Gram matrices ``K = Xc Xc'``
    cka_debiased   the same with the unbiased estimate of HSIC (diagonals left out); about 0 if unrelated
    cka_rbf        CKA of Gaussian kernels, bandwidth the median distance (of those above zero if it is zero)
    mutual_knn     mean share of a sample's `k` nearest neighbours that it has in both; chance is k / (N - 1)
    procrustes     ``|Xc' Yc|_* / (|Xc| |Yc|)``: the best agreement that an orthogonal map reaches
    rsa            Pearson's r of the Euclidean distances between samples
    ============== =========================================================================================

    None of them changes with rotation, overall scale or the order of the samples. Where samples tie for the last of the
    `k` places, each has the fraction of a place that is left. mutual_knn is ``<A, B> / (|A| |B|)`` with the weights
    ``A`` and ``B`` of the neighbours: the mean share if there are no ties; with ties still 1 of equal representations,
    and chance is higher than k / (N - 1).

    `null` is exact for cka, cka_debiased, cka_rbf, mutual_knn and rsa (closed form), and the mean over `permutations`
    random relabellings for procrustes, which has none. A measure that is not defined (for a constant representation) is
    NaN.

    Parameters
    ----------
    X, Y : (sample, feature)
        Arrays, tensors or DataArrays; the numbers of features may differ.
    measure : str
        One of the table above.
    k : int
        Neighbours of mutual_knn.
    permutations, seed : int
        Relabellings for the null of procrustes.

    Returns
    -------
    Similarity
        The value and its null.

    Raises
    ------
    ActivationError
        The numbers of samples differ or are below 4, or entries are not finite.
    ValueError
        The measure is unknown, or `k` is not between 1 and N - 1.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((50, 4))
    >>> round(similarity(X, 3 * X[:, ::-1], measure="cka").value, 6)
    1.0
    >>> round(similarity(X, X, measure="mutual_knn", k=7).null, 6)
    0.142857

    See Also
    --------
    similarity_map : the similarity of every pair of many representations.
    spread : compares the diffusion geometry of several models.

    References
    ----------
    Kornblith et al. (2019), Similarity of neural network representations revisited. Song et al. (2012), Feature
    selection via dependence maximization (the unbiased HSIC). Huh et al. (2024), The Platonic representation
    hypothesis (mutual kNN). Williams et al. (2021), Generalized shape metrics. Kriegeskorte et al. (2008).
    """
    x, y = _samples(X, "X"), _samples(Y, "Y")
    if len(x) != len(y):
        raise ActivationError(f"expected the same samples in X and Y, found {len(x)} and {len(y)}")
    if measure == "procrustes":
        return Similarity(*procrustes(_centred(x), _centred(y), permutations, seed), measure)
    form = _form(measure)
    return Similarity(*_cosine_and_null(_Form.of(form(x, k)), _Form.of(form(y, k))), measure)


def similarity_map(
    representations: Mapping[str, Any],
    measure: Measure = "cka",
    *,
    k: int = 10,
    permutations: int = 50,
    seed: int = 0,
    memory: str | int = "2GB",
) -> xr.Dataset:
    """Compute the similarity of every pair of representations, such as all layers of all models at one step.

    Parameters
    ----------
    representations : mapping of name, such as "seed0/model.layers.3", to (sample, feature)
        On the same samples; read one at a time, and again for every block of those that fit in memory.
    measure, k, permutations, seed
        As in :func:`similarity`.
    memory : bytes, or text such as "2GB"
        Bound on what is kept of the representations; at least two (sample, sample) matrices are.

    Returns
    -------
    Dataset
        ``similarity`` and ``null`` on (representation, other), symmetric; ``measure`` in attrs.

    Raises
    ------
    ActivationError, ValueError
        As in :func:`similarity`.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((2, 30, 4))
    >>> dataset = similarity_map({"seed0": X[0], "seed1": X[1]})
    >>> float(dataset["similarity"].sel(representation="seed0", other="seed0").round(6))
    1.0

    See Also
    --------
    similarity : one pair, and what the measures are.
    """
    names = list(representations)
    values = np.full((2, len(names), len(names)), math.nan)
    if measure == "procrustes":
        for i, j in combinations_with_replacement(range(len(names)), 2):
            pair = similarity(
                representations[names[i]], representations[names[j]], measure, permutations=permutations, seed=seed
            )
            values[:, i, j] = values[:, j, i] = pair.value, pair.null
    else:
        _fill(values, representations, lambda x: _Form.of(_form(measure)(x, k)), bytes_of(memory))
    dims = ("representation", "other")
    variables = {"similarity": (dims, values[0]), "null": (dims, values[1])}
    return xr.Dataset(variables, coords={"representation": names, "other": names}, attrs={"measure": measure})


def _fill(values: Array, representations: Mapping[str, Any], form: Callable[[Array], _Form], memory: int) -> None:
    """Compare blocks of representations; two blocks are kept at a time."""
    names = list(representations)
    if not names:
        return
    first = _samples(representations[names[0]], names[0])
    block = max(1, memory // (2 * 8 * len(first) ** 2))
    starts = range(0, len(names), block)
    for start in starts:
        rows = [_form_of(representations, name, form, len(first)) for name in names[start : start + block]]
        for other in starts[starts.index(start) :]:
            columns = rows
            if other != start:
                columns = [_form_of(representations, name, form, len(first)) for name in names[other : other + block]]
            for (i, p), (j, q) in product(enumerate(rows, start), enumerate(columns, other)):
                if i <= j:
                    values[:, i, j] = values[:, j, i] = _cosine_and_null(p, q)


def _form_of(representations: Mapping[str, Any], name: str, form: Callable[[Array], _Form], samples: int) -> _Form:
    x = _samples(representations[name], name)
    if len(x) != samples:
        raise ActivationError(f"expected the same {samples} samples in every representation, found {len(x)} in {name}")
    return form(x)


def effective_rank(X: Any) -> float:
    """Compute the rank ``exp(-sum p log p)``, ``p = sigma / sum sigma``, sigma the centred features' singular values.

    Between 1 and the number of features; NaN if all samples are equal (Roy and Vetterli, The effective rank, 2007).

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
    """Return features of mean 0; exactly 0 if they vary only by rounding."""
    centred: Array = x - x.mean(0)
    centred[:, np.ptp(x, axis=0) <= 1e-12 * np.abs(x).max(0)] = 0
    return centred


@dataclass(frozen=True)
class _Form:
    """A representation as one matrix (N, N) of unit norm: a similarity is the inner product of two of them."""

    matrix: Array
    trace: float
    total: float

    @classmethod
    def of(cls, form: Array) -> _Form:
        """Scale a matrix to unit norm."""
        norm = float(np.linalg.norm(form))
        scaled = form / norm if norm > 0 else np.full_like(form, math.nan)
        return cls(scaled, float(np.trace(scaled)), float(scaled.sum()))


def _cosine_and_null(p: _Form, q: _Form) -> tuple[float, float]:
    """Return ``<K, L> / (|K| |L|)`` and its mean over relabellings of one of them, which do not change the norms."""
    null = null_inner(p.trace, p.total, q.trace, q.total, len(p.matrix))
    return float(np.vdot(p.matrix, q.matrix)), float(null)


def _form(measure: str) -> Callable[[Array, int], Array]:
    if measure not in _FORMS:
        raise ValueError(f"expected a measure among {', '.join(MEASURES)}, found {measure!r}")
    return _FORMS[measure]


def _gram(x: Array, _: int = 0) -> Array:
    centred = _centred(x)
    scale = np.abs(centred).max(initial=0) or 1.0
    gram: Array = (centred / scale) @ (centred / scale).T
    return gram


def _gram_debiased(x: Array, _: int) -> Array:
    """Return the matrix whose inner products are N (N - 3) times the unbiased HSIC: zero diagonal, rows of sum zero."""
    K = _gram(x)
    n = len(K)
    off = K - np.diag(np.diag(K))
    rows = off.sum(1) / (n - 2)
    centred: Array = off - rows[:, None] - rows[None, :] + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def _rbf(x: Array, _: int) -> Array:
    distances = cdist(x, x)
    between = distances[~np.eye(len(x), dtype=bool)]
    if not between.any():
        return np.zeros_like(distances)
    # where most pairs coincide, as in one-hot labels of few classes, the median says nothing of the others
    bandwidth = float(np.median(between)) or float(np.median(between[between > 0]))
    kernel = np.exp(-((distances / bandwidth) ** 2) / 2)
    centred: Array = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return centred


def _neighbours(x: Array, k: int) -> Array:
    """Return 1 where a sample is among the k nearest of another, and a fraction where it ties for the last places.

    Rows sum to k; all 0 if all samples are equal.
    """
    others = len(x) - 1
    if not 1 <= k <= others:
        raise ValueError(f"expected k between 1 and the {others} other samples, found {k}")
    distances = cdist(x, x)
    if not distances.any():
        return np.zeros(distances.shape)
    np.fill_diagonal(distances, np.inf)
    last = np.partition(distances, k - 1, axis=1)[:, k - 1 : k]
    nearer = distances < last * (1 - _TIE)
    tied = ~nearer & (distances <= last * (1 + _TIE))
    left = k - nearer.sum(1, keepdims=True)
    places: Array = nearer + tied * (left / tied.sum(1, keepdims=True))
    return places


def _profile(x: Array, _: int) -> Array:
    """Return off-diagonal distances less their mean; 0 if they vary only by rounding."""
    distances = cdist(x, x)
    off = ~np.eye(len(x), dtype=bool)
    centred: Array = np.where(off, distances - distances[off].mean(), 0)
    if float(np.linalg.norm(centred)) <= 1e-9 * float(np.linalg.norm(distances)):
        return np.zeros_like(centred)
    return centred


_FORMS: Final[dict[str, Callable[[Array, int], Array]]] = {
    "cka": _gram,
    "cka_debiased": _gram_debiased,
    "cka_rbf": _rbf,
    "mutual_knn": _neighbours,
    "rsa": _profile,
}
MEASURES: Final = (*_FORMS, "procrustes")
