"""From squared distances to a row-stochastic matrix: bandwidth, kernel, density correction, row normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.errors import ActivationError
from repaudit.gauge.distance import row_panels

FLOOR: Final = 1e-6
"""Smallest bandwidth, as a fraction of the root mean square distance of the samples from their mean."""

FAR: Final = {torch.float32: -80.0, torch.float64: -600.0}
"""Exponents below this give zero: their exponential is lost beside 1, and denormal numbers are slow."""

PANEL: Final = 256


@dataclass(frozen=True)
class Bandwidth:
    """Local scale of each sample, with what was seen on the way: floored scales and samples with an exact duplicate."""

    scale: Tensor
    floored: int
    duplicates: int


def bandwidth(squared: Tensor, knn: int, fixed: float | str | None) -> Bandwidth:
    """Local scale of each sample, ``(sample)`` in float64, from squared distances ``(sample, sample)``.

    ``fixed=None``: the distance to the ``knn``-th neighbour, the sample itself excluded; a number: that number;
    "median": the median distance between two different samples. No scale is less than :data:`FLOOR` of the data's.
    """
    count = squared.shape[0]
    if fixed is None:
        nearest = torch.cat([_nearest(squared[panel], knn) for panel in row_panels(count, PANEL)])
        scale = nearest.amax(1).double().sqrt()
        duplicates = int(((nearest == 0).sum(1) > 1).sum())
    else:
        value = median_distance(squared) if fixed == "median" else float(fixed)
        scale = torch.full((count,), value, dtype=torch.float64, device=squared.device)
        duplicates = sum(int(((squared[panel] == 0).sum(1) > 1).sum()) for panel in row_panels(count, PANEL))
    return Bandwidth(*floored(scale, _spread(squared)), duplicates)


def floored(scale: Tensor, spread: float) -> tuple[Tensor, int]:
    """Raise scales to the floor; tell how many were raised. Where all samples are equal any scale will do: 1."""
    floor = FLOOR * spread if spread > 0 else 1.0
    low = scale < floor
    return torch.where(low, floor, scale), int(low.sum())


def _nearest(squared: Tensor, knn: int) -> Tensor:
    return squared.topk(knn + 1, largest=False, sorted=False).values


def _spread(squared: Tensor) -> float:
    """Root mean square distance from the mean, ``sqrt(sum_ij d_ij² / 2) / N``."""
    total = sum(squared[panel].sum(dtype=torch.float64).item() for panel in row_panels(len(squared), PANEL))
    return float(math.sqrt(total / 2) / len(squared))


def median_distance(squared: Tensor) -> float:
    """Median of the distances between different samples; the mean of the middle two where their number is even."""
    count = squared.shape[0]
    total = count * (count - 1)
    # entries of the full matrix come in pairs, after the zeros of the diagonal
    low, high = count + (total // 2 - 1) // 2 * 2, count + (total // 2) // 2 * 2
    middle = [math.sqrt(float(order_statistic(squared, rank))) for rank in (low, high)]
    return sum(middle) / 2


def order_statistic(values: Tensor, rank: int) -> Tensor:
    """The entry of non-negative ``values`` that has ``rank`` entries before it in order, without a sorted copy.

    Non-negative floats are ordered as their bits are, so bisection over the bits ends in at most 64 counts.
    """
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    low, high = 0, int(bits.max())
    while low < high:
        middle = (low + high) // 2
        if sum(int((bits[panel] <= middle).sum()) for panel in row_panels(len(bits), PANEL)) > rank:
            high = middle
        else:
            low = middle + 1
    return torch.tensor(low, dtype=bits.dtype).view(values.dtype)


def kernel_(squared: Tensor, scale: Tensor, decay: float | None, adaptive: bool, self_loops: bool) -> Tensor:
    """Turn squared distances into kernel values in place; give back the row sums in float64.

    Gaussian (``decay=None``): ``exp(-d_ij² / (s_i s_j))`` for adaptive scales, ``exp(-d² / (2 s²))`` for a fixed one.
    Alpha decay: ``1/2 [exp(-(d_ij / s_i)^decay) + exp(-(d_ij / s_j)^decay)]``.
    """
    far = FAR[squared.dtype]
    inverse = (1 / scale if adaptive or decay is not None else 0.5**0.5 / scale).to(squared.dtype)
    sums = torch.empty_like(scale)
    for panel in row_panels(len(squared), PANEL):
        rows = squared[panel]
        if decay is None:
            rows.mul_(inverse).mul_(inverse[panel, None].neg())
            torch.threshold_(rows, far, -torch.inf).exp_()
        else:
            other = rows * inverse.square()
            rows.mul_(inverse[panel, None].square())
            for part in (rows, other):
                torch.threshold_(part.pow_(decay / 2).neg_(), far, -torch.inf).exp_()
            rows.add_(other).mul_(0.5)
        if not self_loops:
            rows.diagonal(panel.start).zero_()
        sums[panel] = rows.sum(1, dtype=torch.float64)
    return sums


def markov_(kernel: Tensor, sums: Tensor, alpha: float) -> Tensor:
    """Correct for density and normalise rows, in place; give back the degrees in float64.

    ``K_ij <- K_ij / (q_i q_j)^alpha`` with ``q`` the row sums (``sums``), then ``P = K / D``, ``D_i = sum_j K_ij``.
    """
    weight = sums.pow(-alpha)
    narrow = weight.to(kernel.dtype)
    degrees = torch.empty_like(sums)
    for panel in row_panels(len(kernel), PANEL):
        rows = kernel[panel]
        if alpha:
            rows.mul_(narrow)
        total = rows.sum(1, dtype=torch.float64) if alpha else sums[panel]
        rows.mul_(total.reciprocal()[:, None].to(rows.dtype))
        degrees[panel] = total * weight[panel]
    return degrees


def refuse_isolated(sums: Tensor, dtype: torch.dtype) -> None:
    """Without self loops a sample beyond the kernel's reach has nowhere to go: say which."""
    lost = (sums < (1e-25 if dtype == torch.float32 else 1e-200)).nonzero()[:, 0].tolist()
    if lost:
        raise ActivationError(
            f"{len(lost)} of {len(sums)} samples have no neighbour within the kernel's reach ({lost[:5]}), and "
            "self_loops=False leaves them no transition; use self_loops=True, more knn or a larger bandwidth"
        )
