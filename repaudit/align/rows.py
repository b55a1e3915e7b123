"""Rows of a student's operator, differentiable in the features of a batch, at scales that are carried from a bank.

``P_ij ∝ K_ij q_j^-α`` needs the kernel's scales and densities of all samples, and the features of the batch alone: the
rest comes from a bank of each sample's last features. What is carried has no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repaudit.errors import ActivationError
from repaudit.gauge.bandwidth import floored, median_distance
from repaudit.gauge.differentiable import near_neighbors
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.perplexity import neighbors_within
from repaudit.gauge.perplexity_operator import Scale

FEWEST = 2.0
"""Least perplexity that a part of the samples is held to."""


@dataclass(frozen=True)
class Geometry:
    """How a gauge compares features, with what it needs of the whole set: centre and deviation of each feature.

    Attributes
    ----------
    centre, deviation : (feature), float64
    """

    gauge: DiffusionGauge
    centre: Tensor
    deviation: Tensor | None

    @classmethod
    def of(cls, features: Tensor, gauge: DiffusionGauge) -> Geometry:
        """Take centre and deviation from a set of features ``(sample, feature)``."""
        wide = features.detach().double()
        deviation = None
        if gauge.standardize:
            deviation = wide.std(0, correction=0)
            deviation = torch.where(deviation > 0, deviation, 1.0)
        centre = torch.zeros_like(wide[0]) if gauge.metric == "cosine" else wide.mean(0)
        return cls(gauge, centre, deviation)

    def place(self, features: Tensor) -> Tensor:
        """Return points between which the gauge's distances are Euclidean, float64, differentiable.

        Raises
        ------
        ActivationError
            A zero row, which has no direction, with ``metric="cosine"``.
        """
        points = features.double() - self.centre
        if self.deviation is not None:
            points = points / self.deviation
        if self.gauge.metric != "cosine":
            return points
        norm = torch.linalg.vector_norm(points, dim=1, keepdim=True)
        if not bool((norm > 0).all()):
            row = int((norm[:, 0] == 0).nonzero()[0])
            raise ActivationError(
                f"expected a direction, found a zero row (row {row} of the batch): use metric='euclidean'"
            )
        directions: Tensor = points / norm
        return directions


@dataclass(frozen=True)
class Carried:
    """Scales of a set of samples, as its features set them when they were last looked at.

    Attributes
    ----------
    scale : (sample)
        The precision ``b`` of ``exp(-b d²)`` with a perplexity; the bandwidth ``s`` of ``exp(-d_ij² / (s_i s_j))``
        with another kernel.
    log_norm : (sample)
        ``log Σ_j exp(-b_i d_ij²)``; zeros with another kernel.
    near : (sample, sample), bool
        Whether the second is among the neighbours over which the first spreads its probability.
    log_density : (sample)
        Logarithm of the kernel's row sums, over which the density correction divides.
    """

    scale: Tensor
    log_norm: Tensor
    near: Tensor
    log_density: Tensor


def settle(points: Tensor, gauge: DiffusionGauge, whole: int) -> Carried:
    """Return the scales of points ``(sample, feature)`` of a set of ``whole`` samples.

    Of a part of the set, the perplexity or the number of neighbours is reduced in proportion, so that a
    neighbourhood covers the same share of the samples.
    """
    squared = squared_distances(points, points)
    squared.fill_diagonal_(0.0)
    count = len(points)
    if gauge.perplexity is None:
        return _settle_kernel(squared, gauge, whole)
    perplexity = gauge.perplexity if count == whole else max(gauge.perplexity * count / whole, FEWEST)
    most = neighbors_within(perplexity, count) if count < whole or gauge.neighbors is None else gauge.neighbors
    near, found = near_neighbors(squared, Scale(perplexity, min(count - 1, most)))
    tied = found.precision.isinf()  # only the nearest are left, and they are equally near
    precision = torch.where(tied, 0.0, found.precision)
    near &= (found.probability > 0) | ~tied[:, None]
    log_norm = (-precision[:, None] * squared).masked_fill(~near, -math.inf).logsumexp(1)
    carried = Carried(precision, log_norm, near, torch.zeros_like(precision))
    return _with_density(carried, squared, gauge)


def _settle_kernel(squared: Tensor, gauge: DiffusionGauge, whole: int) -> Carried:
    count = len(squared)
    spread = float(squared.mean().div(2).sqrt())
    if gauge.bandwidth is None:
        knn = max(1, min(count - 1, round((gauge.knn or 1) * count / whole)))
        reach = squared.topk(knn + 1, largest=False).values.amax(1).sqrt()
    elif gauge.bandwidth == "median":
        reach = torch.full_like(squared[0], median_distance(squared))
    else:
        reach = torch.full_like(squared[0], float(gauge.bandwidth))
    scale, _ = floored(reach, spread)
    if gauge.bandwidth is not None:
        scale = scale * math.sqrt(2.0)  # exp(-d² / (2 s²))
    near = torch.ones_like(squared, dtype=torch.bool)
    if gauge.self_loops is False:
        near.fill_diagonal_(False)
    return _with_density(Carried(scale, torch.zeros_like(scale), near, torch.zeros_like(scale)), squared, gauge)


def _with_density(carried: Carried, squared: Tensor, gauge: DiffusionGauge) -> Carried:
    everyone = torch.arange(len(squared), device=squared.device)
    log_kernel, inside = log_affinity(squared, everyone, carried, gauge, torch.zeros_like(carried.near))
    density = log_kernel.masked_fill(~inside, -math.inf).logsumexp(1)
    return Carried(carried.scale, carried.log_norm, carried.near, density)


def log_rows(
    points: Tensor, columns: Tensor, places: Tensor, carried: Carried, gauge: DiffusionGauge, wanted: Tensor
) -> Tensor:
    """Return the logarithms of a batch's rows of the operator, ``(batch, sample)``, ``-inf`` where they are zero.

    Parameters
    ----------
    points : (batch, feature)
        Of the batch, with a gradient.
    columns : (sample, feature)
        Of all samples; those of the batch are replaced by `points`.
    places : (batch)
        Indices of the batch among the samples.
    carried : Carried
    gauge : DiffusionGauge
    wanted : (batch, sample), bool
        Entries that must not be zero, where the target is not: beyond the kernel's reach they have the value of its
        Gaussian tail, so that a student whose neighbours are others is still drawn to the right ones.
    """
    squared = squared_distances(points, columns.index_copy(0, places, points))
    own = torch.zeros_like(carried.near[places])
    own[torch.arange(len(places), device=own.device), places] = True
    squared = torch.where(own, 0.0, squared)
    if gauge.perplexity is not None:
        mine = carried.near[places]
        fresh = (-carried.scale[places, None] * squared).masked_fill(~mine, -math.inf).logsumexp(1)
        norm = carried.log_norm.index_copy(0, places, fresh)
        carried = Carried(carried.scale, norm, carried.near, carried.log_density)
    log_kernel, inside = log_affinity(squared, places, carried, gauge, wanted & ~own)
    return (log_kernel - gauge.alpha * carried.log_density).masked_fill(~inside, -math.inf).log_softmax(1)


def log_affinity(
    squared: Tensor, places: Tensor, carried: Carried, gauge: DiffusionGauge, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``log K`` of rows at `places` with all samples, and which entries count."""
    if gauge.perplexity is None:
        inside = carried.near[places]
        return -squared / (carried.scale[places, None] * carried.scale), inside
    mine, theirs = carried.near[places], carried.near[:, places].mT
    beyond = wanted & ~(mine | theirs)
    given = -carried.scale[places, None] * squared - carried.log_norm[places, None]
    received = -carried.scale * squared - carried.log_norm
    mine, theirs = mine | beyond, theirs | beyond
    # where only one side counts, the other is set to it, and half of the sum taken
    one_sided = mine ^ theirs
    given, received = torch.where(mine, given, received), torch.where(theirs, received, given)
    both = torch.logaddexp(given, received) - math.log(2.0)
    return torch.where(one_sided, both - math.log(2.0), both), mine | theirs


def squared_distances(points: Tensor, others: Tensor) -> Tensor:
    """Return ``|x_i - y_j|²`` of points about a common centre, ``(point, other)``."""
    norms, other_norms = points.square().sum(1), others.square().sum(1)
    return (norms[:, None] + other_norms - 2 * points @ others.mT).clamp(min=0)
