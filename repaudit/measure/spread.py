"""Dispersion of several models' operators at one step, relative to that of unrelated operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from repaudit.errors import OperatorError
from repaudit.measure.null import NO_STRUCTURE, null_inner
from repaudit.operators.stack import Operator, dense, side_of

LEVEL = 0.95
GROUPS = 20
"""The samples are divided into this many groups; a random half of the groups is one subsample."""
HALVES = 400

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Dispersion of K models' operators at one step, with a 95% interval.

    Attributes
    ----------
    value : float
        Mean over the model pairs of ``|P_i - P_j|_F^2 / null_ij``: 0 identical, 1 unrelated. NaN for fewer than two
        models, and for uniform operators, in which relabelling changes nothing.
    raw : float
        Mean over the pairs of ``|P_i - P_j|_F``.
    null : float
        Mean over the pairs of ``null_ij = E|P_i - R P_j R'|_F^2``, R a random relabelling of the samples.
    low, high : float
        95% interval of `value`; its half-width is the larger one of `models_error` and `samples_error`, each times its
        quantile.
    hellinger : float
        Mean over the pairs of the squared row-Hellinger distance over its null: also 0 identical, 1 unrelated.
    n_models : int
    models_error : float
        Standard error by the jackknife over models (Student's t, K - 1 degrees of freedom); NaN for fewer than three.
    samples_error : float
        Standard error by halves of the samples drawn without replacement; NaN for fewer than 8 samples.

    See Also
    --------
    spread : computes it.

    Examples
    --------
    >>> spread([np.eye(8), np.eye(8), np.eye(8)]).n_models
    3
    """

    value: float
    raw: float
    null: float
    low: float
    high: float
    hellinger: float
    n_models: int
    models_error: float
    samples_error: float


def spread(operators: Mapping[str, Operator] | Sequence[Operator], *, seed: int = 0) -> Spread:
    """Compute the calibrated dispersion of the models' operators at one step, with a 95% interval.

    ``spread = mean over pairs i < j of |P_i - P_j|_F^2 / null_ij`` with
    ``null_ij = |P_i|^2 + |P_j|^2 - 2 E<P_i, R P_j R'>`` in closed form. The raw distance grows as operators sharpen,
    even while models converge; the ratio does not.

    The interval is the wider one of two. *Models*: the jackknife over the K models (leave one out), whose sample size
    is the number of models. *Samples*: the variance over random halves of the samples drawn without replacement, which
    equals that of the whole set (half of the data missing doubles the variance, half of the population seen halves it
    again). With two models there is no jackknife: the interval is about these two models on other samples, not about
    other models.

    Parameters
    ----------
    operators : mapping of model name to operator (sample, neighbor), or sequence of operators
        On the same samples in the same order.
    seed : int
        Seed of the halves.

    Returns
    -------
    Spread
        The value, its interval, and what they are computed from.

    Raises
    ------
    OperatorError
        Operators have different sizes, are not square, or are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> ring = np.roll(np.eye(8), 1, axis=1)
    >>> spread({"seed0": ring, "seed1": ring}).value
    0.0
    >>> round(spread({"seed0": ring, "seed1": np.eye(8)}).value, 3)
    1.0

    See Also
    --------
    operator_distances : distances of all pairs, without intervals.
    similarity : compares activations instead of operators.
    DiffusionMerging : merges the operators into one.

    References
    ----------
    Efron and Stein (1981), The jackknife estimate of variance. Politis, Romano and Wolf (1999), Subsampling.
    """
    named = list(named_operators(operators).items())
    return spread_of_pairs(named, list(combinations(range(len(named)), 2)), len(named), seed)


def spread_of_pairs(
    operators: Sequence[tuple[str, Operator]], pairs: Sequence[tuple[int, int]], models: int, seed: int
) -> Spread:
    """Compute the spread over chosen pairs of named operators, the first `models` of which are models; see `spread`.

    Operators beyond the models (references) are fixed: the jackknife does not leave them out. Two are held at a time.
    """
    sides = {side_of(operator) for _, operator in operators}
    if len(sides) > 1:
        raise OperatorError(f"expected operators on the same samples, found sizes {sorted(sides)}")
    if not pairs:
        for name, operator in operators:
            _dense(name, operator)
        nan = math.nan
        return Spread(nan, nan, nan, nan, nan, nan, models, nan, nan)
    halves = _halves(sides.pop(), seed)

    @lru_cache(maxsize=2)
    def tally(index: int) -> _Tally:
        return _Tally.of(_dense(*operators[index]), halves.groups)

    rows = [_pair(tally(i), tally(j), halves) for i, j in pairs]
    ratios, raws, nulls, hellingers, resampled = (np.array(column) for column in zip(*rows, strict=True))
    value = float(ratios.mean())
    models_error = jackknife_error(ratios, pairs, models)
    samples_error = float(resampled.mean(0).std()) if len(halves.picks) else math.nan
    low, high = _interval(value, models_error, samples_error, models)
    return Spread(
        value=value,
        raw=float(raws.mean()),
        null=float(nulls.mean()),
        low=low,
        high=high,
        hellinger=float(hellingers.mean()),
        n_models=models,
        models_error=models_error,
        samples_error=samples_error,
    )


def jackknife_error(pair_values: Array, pairs: Sequence[tuple[int, int]], models: int) -> float:
    """Compute the standard error of a mean over pairs by leaving out one model at a time.

    NaN for fewer than three models, and if one model is in every pair.

    ``se^2 = (K - 1) / K * sum over k of (theta_(-k) - mean theta_(-k))^2``.

    Examples
    --------
    >>> round(jackknife_error(np.array([1.0, 2.0, 3.0]), [(0, 1), (0, 2), (1, 2)], 3), 4)
    1.1547
    """
    if models < 3:
        return math.nan
    members = np.array(pairs)
    kept = [~(members == k).any(1) for k in range(models)]
    if not all(keep.any() for keep in kept):
        return math.nan
    left_out = np.array([pair_values[keep].mean() for keep in kept])
    return float(np.sqrt((models - 1) * left_out.var()))


def named_operators(operators: Mapping[str, Operator] | Sequence[Operator]) -> dict[str, Operator]:
    """Return operators by model name, or by their index in a sequence; all square and of one size."""
    named = operators if isinstance(operators, Mapping) else {str(i): operator for i, operator in enumerate(operators)}
    sizes = {}
    for name, operator in named.items():
        try:
            sizes[str(name)] = side_of(operator)
        except OperatorError as error:
            raise OperatorError(f"model {name!r}: {error}") from error
    if len(set(sizes.values())) > 1:
        raise OperatorError(f"expected operators on the same samples, found {sizes}: compare models on one probe set")
    return {str(name): operator for name, operator in named.items()}


def _dense(name: str, operator: Operator) -> Array:
    try:
        return dense(operator)
    except OperatorError as error:
        raise OperatorError(f"model {name!r}: {error}") from error


@dataclass(frozen=True)
class _Halves:
    """Groups of samples as an indicator (N, G), and random halves of the groups as an indicator (B, G)."""

    groups: Array
    picks: Array

    def within(self, table: Array) -> Array:
        """Sum a (G, G) table over the rows and columns of every half, (B,)."""
        sums: Array = ((self.picks @ table) * self.picks).sum(1)
        return sums

    def along(self, row: Array) -> Array:
        """Sum a (G,) row over the groups of every half, (B,)."""
        sums: Array = self.picks @ row
        return sums


def _halves(samples: int, seed: int) -> _Halves:
    rng = np.random.default_rng(seed)
    count = min(GROUPS, samples // 2 * 2)
    groups = np.zeros((samples, count))
    groups[rng.permutation(samples), np.arange(samples) % count] = 1
    if samples < 8:
        return _Halves(groups, np.zeros((0, count)))
    picks = np.zeros((HALVES, count))
    for row in picks:
        row[rng.choice(count, count // 2, replace=False)] = 1
    return _Halves(groups, picks)


@dataclass(frozen=True)
class _Tally:
    """One operator less 1/N, its square root, and the sums of its entries by groups of samples."""

    matrix: Array
    root: Array
    groups: Array
    diagonal: Array
    entries: Array
    squares: Array

    @classmethod
    def of(cls, matrix: Array, groups: Array) -> _Tally:
        """Sum up one operator."""
        root = np.sqrt(np.clip(matrix, 0, None))
        centred = matrix - 1 / len(matrix)  # changes neither distances nor null, and avoids a cancellation in the null
        tables = groups.T @ np.diag(centred), _by_group(centred, groups), _by_group(centred**2, groups)
        return cls(centred, root, groups, *tables)


def _by_group(matrix: Array, groups: Array) -> Array:
    table: Array = groups.T @ (matrix @ groups)
    return table


def _pair(p: _Tally, q: _Tally, halves: _Halves) -> tuple[float, float, float, float, Array]:
    """Return ratio, raw distance, null and Hellinger ratio of a pair, and its ratio in every half of the samples."""
    apart, squares = _by_group((p.matrix - q.matrix) ** 2, p.groups), p.squares + q.squares
    distance, size = float(apart.sum()), len(p.matrix)
    whole = (p.diagonal.sum(), p.entries.sum(), q.diagonal.sum(), q.entries.sum())
    null = _null(*whole, squares.sum(), size)
    halved = (halves.along(p.diagonal), halves.within(p.entries), halves.along(q.diagonal), halves.within(q.entries))
    nulls = _null(*halved, halves.within(squares), halves.along(p.groups.sum(0)))
    resampled = _ratio(halves.within(apart), nulls)
    return float(_ratio(distance, null)), math.sqrt(distance), float(null), _hellinger_ratio(p.root, q.root), resampled


def _null(trace_p: Any, total_p: Any, trace_q: Any, total_q: Any, squares: Any, side: Any) -> Any:
    return squares - 2 * null_inner(trace_p, total_p, trace_q, total_q, side)


def _ratio(distance: Any, null: Any) -> Array:
    null = np.asarray(null, dtype=np.float64)
    ratio = np.full(null.shape, math.nan)
    np.divide(distance, null, out=ratio, where=null > NO_STRUCTURE)
    return ratio


def _hellinger_ratio(p: Array, q: Array) -> float:
    """Return the squared row-Hellinger distance of two operators over its expectation under random relabelling."""
    null = _null(np.trace(p), p.sum(), np.trace(q), q.sum(), np.vdot(p, p) + np.vdot(q, q), len(p))
    return float(_ratio(np.sum((p - q) ** 2), null))


def _interval(value: float, models_error: float, samples_error: float, models: int) -> tuple[float, float]:
    quantile = (1 + LEVEL) / 2
    by_models = models_error * stats.t.ppf(quantile, models - 1) if models > 2 else math.nan
    by_samples = samples_error * stats.norm.ppf(quantile)
    half = np.fmax(by_models, by_samples)
    return float(np.maximum(value - half, 0)), float(value + half)
