"""Dispersion of several models' operators at one step, relative to that of unrelated operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from repaudit.errors import OperatorError
from repaudit.markup import html_table
from repaudit.measure.pairs import Pair, compare, sampling_error
from repaudit.measure.sketched_pairs import compare_sketches
from repaudit.measure.tally import Halves, Tallies, Tally
from repaudit.operators.grouped_sketch import GROUPS, as_sketch, is_sketched
from repaudit.operators.labels import check_samples, warn_of_scales
from repaudit.operators.sketch import stacked
from repaudit.operators.stack import Operator, side_of

LEVEL = 0.95

Array = NDArray[np.float64]

NO_STRUCTURE_LEFT: Final = (
    "relabelling the samples of an operator changes nothing: it is uniform or collapsed (as with fewer samples than "
    "its perplexity needs; see its diagnostics)"
)
"""Why a spread is not defined where there are several operators."""


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
        Standard error over samples, from what groups of them and pairs of groups add; NaN for fewer than 8 samples.
    rows : float
        The same row by row, ``mean over samples of |p_n - q_n|^2 / null_n``: no sample counts for more than 1 / N.
    largest_row : float
        Share of the squared distances in the row of `largest_sample`, the largest mean share of any sample.
    sketch_error : float
        Largest standard error of a pair's ratio that is estimated from sketches; 0 from operators. It is part of
        `samples_error`.
    halves : (B)
        `value` on other samples: in random halves of the samples, the same ones for the same number of samples and
        seed, about `value` and with `samples_error` as their standard deviation.
    left_out : (K)
        `value` with each model left out; empty for fewer than three.
    pairs : mapping of two model names to Pair
        The comparison of every pair.

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
    rows: float = math.nan
    largest_row: float = math.nan
    largest_sample: int = -1
    sketch_error: float = 0.0
    halves: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    left_out: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    pairs: Mapping[tuple[str, str], Pair] = field(default_factory=dict, repr=False, compare=False)

    @property
    def undefined(self) -> str:
        """Why the value is NaN; empty where it is a number."""
        if math.isfinite(self.value):
            return ""
        if self.n_models < 2:
            return "a spread needs at least two models"
        return NO_STRUCTURE_LEFT

    def __repr__(self) -> str:
        models = f"{self.n_models} model{'s' * (self.n_models != 1)}"
        if self.undefined:
            return f"Spread(nan, {models}: {self.undefined})"
        return f"Spread({self.value:.3f}, 95% interval [{self.low:.3f}, {self.high:.3f}], {models})"

    def _repr_html_(self) -> str:
        rows = [
            ("spread (0 identical, 1 unrelated)", f"{self.value:.3f}"),
            ("95% interval", f"[{self.low:.3f}, {self.high:.3f}]"),
            ("row by row", f"{self.rows:.3f}"),
            ("the same by Hellinger distances", f"{self.hellinger:.3f}"),
            ("mean Frobenius distance, which has no scale", f"{self.raw:.4g}"),
            ("mean squared Frobenius distance of unrelated operators", f"{self.null:.4g}"),
        ]
        why = [("not defined", self.undefined)] if self.undefined else []
        return html_table(f"Spread of {self.n_models} models", (), [*why, *rows])


def spread(operators: Mapping[str, Operator] | Sequence[Operator], *, seed: int = 0) -> Spread:
    """Compute the calibrated dispersion of the models' operators at one step, with a 95% interval.

    ``spread = mean over pairs i < j of |P_i - P_j|_F^2 / null_ij`` with
    ``null_ij = |P_i|^2 + |P_j|^2 - 2 E<P_i, R P_j R'>`` in closed form. The raw distance grows as operators sharpen,
    even while models converge; the ratio does not.

    The interval is the wider one of two. *Models*: the jackknife over the K models (leave one out), whose sample size
    is the number of models. *Samples*: what 20 random groups of the samples and each two of them add to the value, as
    components of variance. With two models there is no jackknife: the interval is about these two models on other
    samples, not about other models.

    Parameters
    ----------
    operators : mapping of model name to operator (sample, neighbor), or sequence of operators
        On the same samples in the same order. Where one is a grouped sketch, all are compared by sketches: what needs
        rows or roots of entries is NaN, and ``sketch_error`` is told.
    seed : int
        Seed of the halves; with sketches it is theirs.

    Returns
    -------
    Spread
        The value, its interval, and what they are computed from.

    Raises
    ------
    OperatorError
        Operators have different sizes, are not square or not finite, or tell of different samples.

    Warns
    -----
    OperatorWarning
        Their attributes tell of different perplexities.

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
    Efron and Stein (1981), The jackknife estimate of variance. Arvesen (1969), Jackknifing U-statistics.
    """
    models = named_operators(operators)
    warn_of_scales(models)
    named = list(models.items())
    return spread_of_pairs(named, list(combinations(range(len(named)), 2)), len(named), seed)


def spread_of_pairs(
    operators: Sequence[tuple[str, Operator]],
    pairs: Sequence[tuple[int, int]],
    models: int,
    seed: int,
    tallies: Tallies | None = None,
) -> Spread:
    """Compute the spread over chosen pairs of named operators, the first `models` of which are models; see `spread`.

    Operators beyond the models (references) are fixed: the jackknife does not leave them out. As many are held at a
    time as `tallies` keeps.
    """
    if any(is_sketched(operator) for _, operator in operators):
        return _of_sketches(operators, pairs, models)
    sides = {side_of(operator) for _, operator in operators}
    if len(sides) > 1:
        raise OperatorError(f"expected operators on the same samples, found sizes {sorted(sides)}")
    halves = Halves.of(sides.pop(), seed) if sides else Halves.of(2, seed)
    tallies = tallies or Tallies()

    def tally(index: int) -> Tally:
        name, operator = operators[index]
        try:
            return tallies(operator, halves)
        except OperatorError as error:
            raise OperatorError(f"model {name!r}: {error}") from error

    if not pairs:
        for index in range(len(operators)):
            tally(index)
        return _unknown(models)
    compared = [compare(tally(i), tally(j), halves) for i, j in pairs]
    names = [(operators[i][0], operators[j][0]) for i, j in pairs]
    return _summed(dict(zip(names, compared, strict=True)), pairs, models)


def _of_sketches(operators: Sequence[tuple[str, Operator]], pairs: Sequence[tuple[int, int]], models: int) -> Spread:
    """Return the spread from grouped sketches; of operators among them sketches are made with the same hashes."""
    seed = next(operator.read().seed for _, operator in operators if is_sketched(operator))
    sketches = [as_sketch(operator, seed) for _, operator in operators]
    stacked(sketches)
    if not pairs:
        return _unknown(models)
    names = [(operators[i][0], operators[j][0]) for i, j in pairs]
    compared = [compare_sketches(sketches[i], sketches[j]) for i, j in pairs]
    return _summed(dict(zip(names, compared, strict=True)), pairs, models)


def _unknown(models: int) -> Spread:
    nan = math.nan
    return Spread(nan, nan, nan, nan, nan, nan, models, nan, nan)


def _summed(compared: Mapping[tuple[str, str], Pair], pairs: Sequence[tuple[int, int]], models: int) -> Spread:
    """Return the means over pairs, and how sure they are."""
    every = list(compared.values())
    ratios = np.array([pair.ratio for pair in every])
    value, halves = float(ratios.mean()), np.mean([pair.halves for pair in every], axis=0)
    left_out = leave_one_out(ratios, pairs, models)
    models_error = jackknife_error(left_out)
    samples_error = sampling_error(np.mean([pair.influence for pair in every], axis=0)) if len(halves) else math.nan
    low, high = _interval(value, models_error, samples_error, models)
    shares = np.mean([pair.shares for pair in every], axis=0)
    return Spread(
        value=value,
        raw=float(np.mean([pair.distance for pair in every])),
        null=float(np.mean([pair.null for pair in every])),
        low=low,
        high=high,
        hellinger=float(np.mean([pair.hellinger for pair in every])),
        n_models=models,
        models_error=models_error,
        samples_error=samples_error,
        rows=float(np.mean([pair.rows for pair in every])),
        largest_row=float(shares.max()),
        largest_sample=int(shares.argmax()) if np.isfinite(shares).all() else -1,
        sketch_error=max(pair.sketch_error for pair in every),
        halves=_rescaled(halves, value, samples_error),
        left_out=left_out,
        pairs=compared,
    )


def _rescaled(halves: Array, value: float, error: float) -> Array:
    """Return resamples about a value, with its standard error as their standard deviation."""
    deviation = halves.std() if len(halves) else 0.0
    return value + (halves - halves.mean()) * (error / deviation) if deviation > 0 else np.full_like(halves, value)


def leave_one_out(pair_values: Array, pairs: Sequence[tuple[int, int]], models: int) -> Array:
    """Return the mean over pairs with each model left out, (K).

    Empty for fewer than three models, and where one model is in every pair.

    Examples
    --------
    >>> leave_one_out(np.array([1.0, 2.0, 3.0]), [(0, 1), (0, 2), (1, 2)], 3).tolist()
    [3.0, 2.0, 1.0]
    """
    members = np.array(pairs)
    kept = [~(members == k).any(1) for k in range(models)] if models > 2 else []
    if not kept or not all(keep.any() for keep in kept):
        return np.zeros(0)
    return np.array([pair_values[keep].mean() for keep in kept])


def jackknife_error(left_out: Array) -> float:
    """Return the standard error of a mean from its values with one of K models left out, (K); NaN without any.

    ``se^2 = (K - 1) / K * sum over k of (theta_(-k) - mean theta_(-k))^2``.

    Examples
    --------
    >>> round(jackknife_error(np.array([3.0, 2.0, 1.0])), 4)
    1.1547
    """
    return float(np.sqrt((len(left_out) - 1) * left_out.var())) if len(left_out) else math.nan


def named_operators(operators: Mapping[str, Operator] | Sequence[Operator]) -> dict[str, Operator]:
    """Return operators by model name, or by their index in a sequence; all square and of one size."""
    named = operators if isinstance(operators, Mapping) else {str(i): operator for i, operator in enumerate(operators)}
    sizes = {}
    for name, operator in named.items():
        try:
            sizes[str(name)] = operator.samples if is_sketched(operator) else side_of(operator)
        except OperatorError as error:
            raise OperatorError(f"model {name!r}: {error}") from error
    if len(set(sizes.values())) > 1:
        raise OperatorError(f"expected operators on the same samples, found {sizes}: compare models on one probe set")
    check_samples({name: operator for name, operator in named.items() if not is_sketched(operator)})
    return {str(name): operator for name, operator in named.items()}


def _interval(value: float, models_error: float, samples_error: float, models: int) -> tuple[float, float]:
    quantile = (1 + LEVEL) / 2
    by_models = models_error * stats.t.ppf(quantile, models - 1) if models > 2 else math.nan
    by_samples = samples_error * stats.t.ppf(quantile, GROUPS - 1)
    half = np.fmax(by_models, by_samples)
    return float(np.maximum(value - half, 0)), float(value + half)
