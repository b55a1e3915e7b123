"""The bandwidth at which every sample has the same effective number of neighbours, its perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.distance.points import cache_panels
from repaudit.distance.squared import TOLERANCE
from repaudit.gauge.kernel import exp_

CUT: Final = 3
"""Neighbours among which a sample's probabilities are spread, as a multiple of the perplexity."""

_CLOSE: Final = {torch.float32: 1e-4, torch.float64: 3e-5}
"""Length of a step in ``log b`` after which the search ends: the error that it leaves is of the order of its cube."""

_THERE: Final = {torch.float32: 3e-7, torch.float64: 1e-10}
"""Nats by which the entropy of a row may miss the logarithm of the perplexity."""

_SHORT: Final = 512
_FAR: Final = 1e30
"""A gap beyond the reach of any precision, whose product with 0 is 0."""

_HELD: Final = 1e-4
_ROUNDING_SHOWS: Final = 1e-4
_MOST_STEPS: Final = 100
_ROUGH: Final = 0.03
_FEW_STEPS: Final = 5
"""What a search in float32 ends with, before one in float64."""

_STRIDE: Final = 2.0
"""Longest step in ``log b``: where the entropy hardly changes, its slope leads far astray."""

_FIRST: Final = math.log(1.5)
"""Where the search begins, in units of one standard deviation of a row's squared distances."""


@dataclass(frozen=True)
class Spreading:
    """How each sample spreads a probability of 1 over its neighbours.

    Attributes
    ----------
    probability : (sample, neighbor), rows sum to 1, 0 where there is no neighbour
    precision : (sample), the ``b`` of ``exp(-b d²)``, float64; infinite where only the nearest, all tied, are left
    floored : samples whose bandwidth was raised to the floor
    unheld : samples whose perplexity is another: too few neighbours, too many ties, or the floor
    """

    probability: Tensor
    precision: Tensor
    floored: int
    unheld: int


def neighbors_within(perplexity: float, count: int) -> int:
    """Return the number of nearest neighbours that a perplexity looks at, of ``count`` samples: 3 u, or all others.

    Examples
    --------
    >>> neighbors_within(15, 1000), neighbors_within(15, 20), neighbors_within(1e308, 20)
    (45, 19, 19)
    """
    return max(1, int(min(count - 1, CUT * perplexity)))


def spread_over_neighbors(
    squared: Tensor, perplexity: float, floor: float, exactly: Callable[[Tensor], Tensor] | None = None
) -> Spreading:
    """Solve ``exp(H_i) = u`` for the ``b_i`` of ``p_j|i = exp(-b_i d_ij²) / Σ_k exp(-b_i d_ik²)``, ``H`` the entropy.

    Halley's iteration on ``log b``, kept within a bracket, for all rows at once, in float64 in the end. The entropy
    falls from the logarithm of the number of neighbours, ``b = 0``, to that of the number of nearest ones that tie. A
    row with too few neighbours is uniform over all of them, one with at least ``u`` nearest ties is uniform over these.

    Parameters
    ----------
    squared : (sample, neighbor)
        Squared distances; infinite where there is no neighbour.
    perplexity : float
    floor : float
        Smallest bandwidth ``b^-1/2``, in units of distance.
    exactly : callable, optional
        Gives the squared distances of chosen rows in float64, for rows of which rounding would show: all distances
        large beside the differences between them, as those of a sample far from all others. Probabilities depend on
        differences of squared distances.

    Source: van der Maaten and Hinton, Visualizing data using t-SNE (2008), section 2.
    """
    probability = torch.empty_like(squared)
    precision = torch.empty(len(squared), dtype=torch.float64, device=squared.device)
    floored = unheld = 0
    # float64 where it costs little; in long rows the rounding of single terms averages out
    dtype = torch.float64 if squared.shape[1] <= _SHORT else squared.dtype
    for part in cache_panels(squared):
        gap, ties, scale, shown = _gaps(squared[part], dtype)
        if exactly is not None and len(shown):
            again = _gaps(exactly(shown + part.start), torch.float64)
            for whole, some in zip((gap, ties, scale), again, strict=False):
                whole[shown] = some.to(whole.dtype)
        scale = torch.where(scale > 0, scale, 1.0)
        x = gap.div_(scale).clamp_(max=_FAR)
        b = _precision(x, ties, perplexity, _CLOSE[squared.dtype])
        sharpest = scale[:, 0].double() / floor**2
        low = (b > sharpest) & torch.isfinite(b)
        b = torch.where(low, sharpest, b)
        p, entropy = _probability(x, ties, b)
        floored += int(low.sum())
        unheld += int(((entropy - math.log(perplexity)).abs() > _HELD).sum())
        probability[part], precision[part] = p, b / scale[:, 0].double()
    return Spreading(probability, precision, floored, unheld)


def _gaps(squared: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squared distances beyond each row's nearest one, infinite where none, and what ties with it.

    The third is their deviation, the fourth the rows in which rounding would show.
    """
    nearest = squared.amin(1, keepdim=True).to(dtype)
    gap = squared.to(dtype) - nearest
    deviation = _deviation(gap)
    beyond = gap > nearest * (4 * TOLERANCE[squared.dtype])
    margin = _ROUNDING_SHOWS / TOLERANCE[squared.dtype]
    shown = ((nearest > margin * deviation) & (deviation > 0)).nonzero()[:, 0]
    return gap.mul_(beyond), ~beyond, deviation, shown


def _deviation(gap: Tensor) -> Tensor:
    """Return the standard deviation of each row's finite gaps, ``(row, 1)``."""
    known = (gap < math.inf).to(gap.dtype)
    count = known.sum(1, keepdim=True)
    values = torch.nan_to_num(gap, posinf=0.0)
    largest = values.amax(1, keepdim=True).clamp_(min=torch.finfo(gap.dtype).tiny)
    values /= largest
    mean = values.sum(1, keepdim=True) / count
    variance = values.sub_(mean).mul_(known).square_().sum(1, keepdim=True) / count
    return variance.sqrt() * largest


def _precision(x: Tensor, ties: Tensor, perplexity: float, close: float) -> Tensor:
    """Return ``b`` of each row, ``(row)``: 0 for uniform over all, infinite for uniform over the nearest ties."""
    count, crowd = (x < _FAR).sum(1), ties.sum(1)
    flat = (count <= perplexity * (1 + 1e-12)) | (count == crowd)
    sharp = ~flat & (crowd >= perplexity * (1 - 1e-12))
    result = torch.where(flat, 0.0, math.inf).double()
    rows = (~flat & ~sharp).nonzero()[:, 0]
    x = x[rows] if len(rows) < len(x) else x
    theta = torch.full((len(rows),), _FIRST, dtype=torch.float64, device=x.device)
    if x.dtype == torch.float64:
        theta = _solve(x.float(), theta, math.log(perplexity), _ROUGH, _FEW_STEPS)
    result[rows] = _solve(x, theta, math.log(perplexity), close, _MOST_STEPS).exp_()
    return result


def _solve(x: Tensor, theta: Tensor, target: float, close: float, steps: int) -> Tensor:
    """Return ``log b`` at which the entropy of each row is ``target``: Halley's iteration, kept within a bracket."""
    result, rows = theta.clone(), torch.arange(len(x), device=x.device)
    low, high = torch.full_like(theta, -math.inf), torch.full_like(theta, math.inf)
    done = torch.zeros_like(rows, dtype=torch.bool)
    for _ in range(steps):
        excess, step = _halley(x, theta, target)
        low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
        moved = theta + step.clamp_(-_STRIDE, _STRIDE)
        inside = (moved > low) & (moved < high)
        if not bool(inside.all()):
            middle = torch.where(
                low.isinf(), high - _STRIDE, torch.where(high.isinf(), low + _STRIDE, (low + high) / 2)
            )
            moved = torch.where(inside, moved, middle)
        short = inside & ((moved - theta).abs() <= close)
        there = excess.abs() <= _THERE[x.dtype]
        theta = torch.where(done | (there & ~short), theta, moved)
        done |= short | there | (high - low <= 1e-12)
        left = (~done).nonzero()[:, 0]
        if not len(left):
            break
        if 2 * len(left) < len(rows):
            result[rows] = theta
            x, rows, theta, low, high, done = (part[left] for part in (x, rows, theta, low, high, done))
    result[rows] = theta
    return result


def _halley(x: Tensor, theta: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Return the entropy beyond the target, and the step in ``log b`` that takes it there; float64.

    The entropy's derivatives by ``log b`` are ``-b² V`` and ``b³ S - 2 b² V``, with the variance and the third central
    moment of the squared distances.
    """
    b = theta.exp()
    weight = torch.mul(x, -b[:, None].to(x.dtype)).exp_()
    sums = [weight.sum(1), *(weight.mul_(x).sum(1) for _ in range(3))]
    total, *moments = torch.stack(sums).double()
    mean, square, cube = (moment / total for moment in moments)
    variance = square - mean * mean
    third = cube - mean * (square + 2 * variance)
    excess = total.log_() + b * mean - target
    return excess, excess * variance / ((b * variance).square_() + excess * (variance - b * third / 2))


def _probability(x: Tensor, ties: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities of each row and its entropy."""
    sharp = b.isinf()
    # b = 0 takes what is far away as well
    b = torch.where(sharp, 1.0, b).clamp_(min=1 / _FAR**0.5)
    weight = exp_(torch.mul(x, -b[:, None].to(x.dtype)))
    if bool(sharp.any()):
        weight = torch.where(sharp[:, None], ties.to(weight.dtype), weight)
    total = weight.sum(1, keepdim=True)
    weight /= total
    return weight, total[:, 0].double().log() + b * (weight * x).sum(1).double()
