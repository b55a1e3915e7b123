"""Two operators side by side: their distance over its null, row by row, in halves of the samples, and its p-value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import issparse

from repaudit.measure.null import NO_STRUCTURE, null_inner
from repaudit.measure.relabelling import Moments, inner_moments
from repaudit.measure.tally import Halves, Tally

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """How far two operators are apart.

    Attributes
    ----------
    ratio : float
        ``|P - Q|_F^2 / null``: 0 identical, 1 unrelated; NaN where relabelling changes nothing.
    rows : float
        Mean over samples of the row's squared distance over its own null: no row counts for more than 1 / N.
    distance, null : float
        ``|P - Q|_F`` and the null ``E|P - R Q R'|_F^2``.
    hellinger : float
        Squared row-Hellinger distance over its null.
    pvalue : float
        Probability that operators with these entries and no relation are as near to each other.
    shares : (N)
        Share of ``|P - Q|_F^2`` in every row; 0 where the two are identical, NaN where it is not known.
    halves : (B)
        The ratio in every half of the samples.
    influence : (G, G)
        What each two groups of samples add to the ratio, beyond the mean.
    """

    ratio: float
    rows: float
    distance: float
    null: float
    hellinger: float
    pvalue: float
    shares: Array
    halves: Array
    influence: Array
    sketch_error: float = 0.0
    """Standard error of the ratio by itself, where the distance is estimated from sketches."""

    @property
    def error(self) -> float:
        """Standard error over samples; NaN for fewer than 8 samples."""
        return sampling_error(self.influence) if len(self.halves) else math.nan


class Grouped(Protocol):
    """The sums of one operator by groups of samples that the null of a distance is made of."""

    @property
    def diagonal(self) -> Array:
        """Sums of the diagonal, (G)."""

    @property
    def entries(self) -> Array:
        """Sums of all entries, (G, G)."""

    @property
    def squares(self) -> Array:
        """Sums of their squares, (G, G)."""

    @property
    def moments(self) -> Moments:
        """Sums over patterns of entries less ``1 / N``."""


def compare(p: Tally, q: Tally, halves: Halves) -> Pair:
    """Compare two operators on the same samples."""
    difference = p.matrix - q.matrix
    if issparse(difference):
        difference.data **= 2
    else:
        np.square(difference, out=difference)
    by_row, apart = halves.sums(difference)
    distance = float(by_row.sum())
    null, ratio, halved, influence = against_null(p, q, apart, distance, halves)
    return Pair(
        ratio=ratio,
        rows=_row_wise(p, q, by_row),
        distance=math.sqrt(distance),
        null=null,
        hellinger=_hellinger(p, q),
        pvalue=pvalue(p, q, distance, len(by_row)),
        shares=by_row / distance if distance > 0 else np.zeros(len(by_row)),
        halves=halved,
        influence=influence,
    )


def against_null(
    p: Grouped, q: Grouped, apart: Array, distance: float, halves: Halves
) -> tuple[float, float, Array, Array]:
    """Return the null of a squared distance, the ratio to it, the ratio in halves, and what groups add to it.

    `apart` is the squared distance by groups, (G, G).
    """
    size, squares = float(halves.sizes.sum()), p.squares + q.squares
    totals = (p.diagonal.sum(), p.entries.sum(), q.diagonal.sum(), q.entries.sum())
    null = float(squares.sum() - 2 * float(null_inner(*totals, size)))
    ratio = float(_ratio(distance, null))
    halved = (
        halves.of_row(p.diagonal),
        halves.of_table(p.entries),
        halves.of_row(q.diagonal),
        halves.of_table(q.entries),
    )
    nulls = halves.of_table(squares) - 2 * null_inner(*halved, halves.of_row(halves.sizes))
    influence = np.full_like(apart, math.nan)
    if null > NO_STRUCTURE:
        influence = (apart - ratio * _nulls_by_group(p, q, halves)) / null
    return null, ratio, _ratio(halves.of_table(apart), nulls), influence


def _nulls_by_group(p: Grouped, q: Grouped, halves: Halves) -> Array:
    """Return what each two groups add to the null, of operators less 1/N: near-uniform ones would cancel otherwise."""
    size = int(halves.sizes.sum())
    places, constant = np.outer(halves.sizes, halves.sizes), 1 / size
    squares = p.squares + q.squares - 2 * constant * (p.entries + q.entries) + 2 * constant**2 * places
    traces = [float(one.diagonal.sum()) - 1 for one in (p, q)]
    totals = [float(one.entries.sum()) - size for one in (p, q)]
    inner = float(null_inner(traces[0], totals[0], traces[1], totals[1], size))
    nulls: Array = squares - 2 * inner * places / size**2
    return nulls


def sampling_error(influence: Array) -> float:
    """Return the standard error of a sum over pairs of samples, from the sums over pairs of groups (G, G).

    ``I_gh = a_g + a_h + e_gh``: what a group adds by itself, and what only the pair of groups adds. Both are summed
    over independent samples, ``Var Σ I = 4 G³ σ_a² + 2 G² σ_e²``. A resampling of samples as a whole counts the second
    part several times, which is most of it where operators are sparse.

    Source: the components of variance of a two-way layout; Arvesen, Jackknifing U-statistics (1969), for the excess.

    Examples
    --------
    >>> effects = np.array([1.0, -1.0, 2.0, -2.0])
    >>> round(sampling_error(effects[:, None] + effects), 3)
    29.212
    """
    table = (influence + influence.T) / 2
    groups = len(table)
    own = table.mean(0) - table.mean()
    rest = table - own[:, None] - own - table.mean()
    alone = float(np.square(rest).sum() / ((groups - 1) * max(1, groups - 2)))
    by_group = max(0.0, float(own.var(ddof=1)) - alone / groups)
    return math.sqrt(4 * groups**3 * by_group + 2 * groups**2 * alone)


def _row_wise(p: Tally, q: Tally, by_row: Array) -> float:
    """Return the mean over samples of ``|p_n - q_n|^2`` over what it would be with the other samples relabelled.

    ``null_n = |p_n|^2 + |q_n|^2 - 2 (p_nn q_nn + (Σ p_n - p_nn) (Σ q_n - q_nn) / (N - 1))``.
    """
    apart = (p.sums - p.kept) * (q.sums - q.kept) / (len(by_row) - 1)
    ratios = _ratio(by_row, p.norms + q.norms - 2 * (p.kept * q.kept + apart))
    known = np.isfinite(ratios)
    return float(ratios[known].mean()) if known.any() else math.nan


def pvalue(p: Grouped, q: Grouped, distance: float, samples: int, error: float = 0.0) -> float:
    """Return the probability of a squared distance as small as this under random relabelling, by its exact moments.

    ``|P - R Q R'|^2 = |P|^2 + |Q|^2 - 2 <P, R Q R'>``, and of the inner product the mean and the variance over all
    relabellings are closed forms; the tail is that of a normal distribution. NaN where relabelling changes nothing.
    All are of operators less ``1 / N``: the differences of near-uniform ones would cancel otherwise. The standard
    `error` of an estimated distance widens the tail.

    Source: Mantel, The detection of disease clustering (1967), for the variance of such sums.
    """
    squares = [one.moments["same"] + one.moments["diagonal_same"] for one in (p, q)]
    mean, variance = inner_moments(p.moments, q.moments, samples)
    inner = (sum(squares) - distance) / 2
    if variance <= (NO_STRUCTURE * float(np.sqrt(p.squares.sum() * q.squares.sum()))) ** 2:
        return math.nan
    return float(stats.norm.sf((inner - mean) / math.sqrt(variance + (error / 2) ** 2)))


def _hellinger(p: Tally, q: Tally) -> float:
    """Return the squared row-Hellinger distance of two operators over its expected value under relabelling."""
    (trace, total, squares), (other_trace, other_total, other_squares) = p.root_sums, q.root_sums
    null = squares + other_squares - 2 * float(null_inner(trace, total, other_trace, other_total, len(p.kept)))
    difference = p.root - q.root
    entries = difference.data if issparse(difference) else difference.ravel()
    return float(_ratio(float(entries @ entries), null))


def _ratio(distance: Any, null: Any) -> Array:
    null = np.asarray(null, dtype=np.float64)
    ratios = np.full(null.shape, math.nan)
    np.divide(distance, null, out=ratios, where=null > NO_STRUCTURE)
    return ratios
