"""The bandwidth at which every sample has the same effective number of neighbours, its perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.distance.points import cache_panels
from repaudit.distance.squared import TOLERANCE
from repaudit.gauge.kernel import exp_

CUT: Final = 3
"""Neighbours among which a sample's probabilities are spread, as a multiple of the perplexity."""

_CLOSE: Final = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Length of a step in ``log b`` after which the search ends: the error that it leaves is of the order of its square."""

_THERE: Final = {torch.float32: 3e-7, torch.float64: 1e-10}
"""Nats by which the entropy of a row may miss the logarithm of the perplexity."""

_SHORT: Final = 512
_FAR: Final = 1e30
"""A gap beyond the reach of any precision, whose product with 0 is 0."""

_HELD: Final = 1e-4
_ROUNDING_SHOWS: Final = 1e-4
_MOST_STEPS: Final = 100
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
    >>> neighbors_within(15, 1000), neighbors_within(15, 20)
    (45, 19)
    """
    return max(1, min(count - 1, int(CUT * perplexity)))


def spread_over_neighbors(squared: Tensor, perplexity: float, floor: float) -> Spreading:
    """Solve ``exp(H_i) = u`` for the ``b_i`` of ``p_j|i = exp(-b_i d_ij²) / Σ_k exp(-b_i d_ik²)``, ``H`` the entropy.

    Newton's iteration on ``log b``, kept within a bracket, for all rows at once in float64. The entropy falls from the
    logarithm of the number of neighbours, ``b = 0``, to that of the number of nearest ones that tie. A row with too few
    neighbours is uniform over all of them, one with at least ``u`` nearest ties is uniform over these.

    Parameters
    ----------
    squared : (sample, neighbor)
        Squared distances; infinite where there is no neighbour.
    perplexity : float
    floor : float
        Smallest bandwidth ``b^-1/2``, in units of distance.

    Source: van der Maaten and Hinton, Visualizing data using t-SNE (2008), section 2.
    """
    probability = torch.empty_like(squared)
    precision = torch.empty(len(squared), dtype=torch.float64, device=squared.device)
    floored = unheld = 0
    # float64 where it costs little; in long rows the rounding of single terms averages out
    dtype = torch.float64 if squared.shape[1] <= _SHORT else squared.dtype
    for part in cache_panels(squared):
        gap, ties = _gaps(squared[part], dtype)
        scale = _deviation(gap)
        gap /= scale
        b = _precision(gap, ties, perplexity, _CLOSE[squared.dtype])
        sharpest = scale[:, 0].double() / floor**2
        low = (b > sharpest) & torch.isfinite(b)
        b = torch.where(low, sharpest, b)
        p = _probability(gap, ties, b)
        entropy = -torch.special.xlogy(p, p).sum(1)
        floored += int(low.sum())
        unheld += int(((entropy - math.log(perplexity)).abs() > _HELD).sum())
        probability[part], precision[part] = p, b / scale[:, 0].double()
    return Spreading(probability, precision, floored, unheld)


def level(squared: Tensor) -> Tensor:
    """Return the rows of which rounding would show: all distances large beside the differences between them.

    A probability depends on differences of squared distances. Such a row, that of a sample far from all others for
    instance, needs them in float64.
    """
    margin = _ROUNDING_SHOWS / TOLERANCE[squared.dtype]
    known = squared < math.inf
    nearest = squared.amin(1)
    gap = torch.where(known, squared - nearest[:, None], 0.0)
    count = known.sum(1)
    mean = gap.sum(1) / count
    deviation = (torch.where(known, gap - mean[:, None], 0.0).square().sum(1) / count).sqrt()
    return ((nearest > margin * deviation) & (deviation > 0)).nonzero()[:, 0]


def _gaps(squared: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return squared distances beyond each row's nearest one, :data:`_FAR` where none, and what ties with it."""
    nearest = squared.amin(1, keepdim=True)
    ties = squared <= nearest * (1 + 4 * TOLERANCE[squared.dtype])
    gap = squared.to(dtype) - nearest
    return gap.masked_fill_(ties, 0.0), ties


def _deviation(gap: Tensor) -> Tensor:
    """Return the standard deviation of each row's finite gaps, ``(row, 1)``; 1 where they are all alike."""
    known = gap < math.inf
    count = known.sum(1, keepdim=True)
    values = gap.masked_fill(~known, 0.0)
    largest = values.amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    values /= largest
    mean = values.sum(1, keepdim=True) / count
    variance = values.sub_(mean).mul_(known).square_().sum(1, keepdim=True) / count
    deviation = variance.sqrt() * largest
    return torch.where(deviation > 0, deviation, 1.0)


def _precision(gap: Tensor, ties: Tensor, perplexity: float, close: float) -> Tensor:
    """Return ``b`` of each row, ``(row)``: 0 for uniform over all, infinite for uniform over the nearest ties."""
    target = math.log(perplexity)
    count, crowd = (gap < math.inf).sum(1), ties.sum(1)
    flat = (count <= perplexity * (1 + 1e-12)) | (count == crowd)
    sharp = ~flat & (crowd >= perplexity * (1 - 1e-12))
    result = torch.where(flat, 0.0, math.inf).double()
    rows = (~flat & ~sharp).nonzero()[:, 0]
    x = (gap if len(rows) == len(gap) else gap[rows]).clamp(max=_FAR)
    theta = torch.full((len(rows),), _FIRST, dtype=torch.float64, device=gap.device)
    low, high = torch.full_like(theta, -math.inf), torch.full_like(theta, math.inf)
    for _ in range(_MOST_STEPS):
        if not len(rows):
            break
        excess, slope = _excess(x, theta, target)
        low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
        moved = theta - (excess / slope).clamp(-_STRIDE, _STRIDE)
        outside = ~((moved > low) & (moved < high))
        middle = torch.where(low.isinf(), high - _STRIDE, torch.where(high.isinf(), low + _STRIDE, (low + high) / 2))
        there = excess.abs() <= _THERE[x.dtype]
        done = there | (~outside & ((moved - theta).abs() <= close)) | (high - low <= 1e-12)
        theta = torch.where(there, theta, torch.where(outside, middle, moved))
        if bool(done.any()):
            result[rows[done]] = theta[done].exp()
            keep = ~done
            rows, theta, low, high = rows[keep], theta[keep], low[keep], high[keep]
            x = x[keep] if len(rows) else x
    result[rows] = theta.exp()
    return result


def _excess(x: Tensor, theta: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Return the entropy beyond the target, and its derivative by ``log b``: ``-b² Var_p(d²)``; float64."""
    b = theta.exp()
    weight = exp_(torch.mul(x, -b[:, None].to(x.dtype)))
    total = weight.sum(1).double()
    mean = weight.mul_(x).sum(1).double() / total
    variance = torch.einsum("ij,ij->i", weight, x).double() / total - mean.square()
    return total.log() + b * mean - target, -b.square() * variance.clamp(min=1e-300)


def _probability(gap: Tensor, ties: Tensor, b: Tensor) -> Tensor:
    sharp = b.isinf()
    weight = torch.mul(gap, -torch.where(sharp, 1.0, b)[:, None].to(gap.dtype))
    weight = exp_(weight.masked_fill_(gap == math.inf, -math.inf))
    if bool(sharp.any()):
        weight = torch.where(sharp[:, None], ties.to(weight.dtype), weight)
    return weight.div_(weight.sum(1, keepdim=True))
