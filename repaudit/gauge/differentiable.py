"""The gauge as a plain expression in float64, for gradients: the same operator, without blocks and in-place steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repaudit.distance.points import Cloud, Metric, cloud, power_of_two
from repaudit.gauge.bandwidth import FLOOR, floored, median_distance
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.normalize import refuse_isolated
from repaudit.gauge.perplexity import Spreading, spread_over_neighbors
from repaudit.gauge.perplexity_operator import Computed, Scale


@dataclass(frozen=True)
class Comparison:
    """How samples are compared."""

    metric: Metric
    standardize: bool


def differentiable_kernel_operator(
    samples: Tensor, comparison: Comparison, kernel: Kernel, fixed: float | str | None, knn: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return ``P``, degrees and counts of ``samples (sample, feature)``, differentiable in the samples.

    The distances that set the bandwidths carry a gradient, the choice of neighbours does not. Where samples coincide
    the gradient of their distance is taken as zero.
    """
    with torch.autocast(samples.device.type, enabled=False):
        squared, points = squared_distances(samples, comparison)
        scale, floors = _scale(squared, points.scaled(fixed), knn)
        affinity = kernel.pairs(squared, scale[:, None], scale, torch.float64)
        if not kernel.self_loops:
            affinity = affinity * (1 - torch.eye(len(affinity), dtype=affinity.dtype, device=affinity.device))
            refuse_isolated(affinity.detach().sum(1), samples.dtype)
        matrix, degrees = _markov(affinity, kernel.alpha)
    counts = {"duplicates": _duplicates(squared), "collapsed": not bool(squared.any()), "floored": floors}
    return matrix.to(samples.dtype), degrees, counts


def differentiable_perplexity_operator(samples: Tensor, comparison: Comparison, scale: Scale, alpha: float) -> Computed:
    """Return the dense operator of fixed perplexity, differentiable in the samples.

    The precision ``b_i`` carries the gradient of the equation that it solves, ``db/dx = -(dH/dx) / (dH/db)``: one step
    of Newton's iteration from the solution. The choice of neighbours carries none.
    """
    with torch.autocast(samples.device.type, enabled=False):
        squared, _ = squared_distances(samples, comparison)
        near, found = near_neighbors(squared.detach(), scale)
        probability = _with_gradient(squared, near, found, scale.perplexity)
        matrix, degrees = _markov((probability + probability.mT) / 2, alpha)
    counts = {
        "duplicates": _duplicates(squared),
        "collapsed": not bool(squared.any()),
        "floored": found.floored,
        "unheld": found.unheld,
    }
    return Computed(matrix.to(samples.dtype), degrees, counts)


def near_neighbors(squared: Tensor, scale: Scale) -> tuple[Tensor, Spreading]:
    """Return the neighbours of each sample, ties for the last place included, and how it spreads over them.

    Parameters
    ----------
    squared : (sample, sample)
        Squared distances without a gradient.
    """
    alone = torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    known = squared.masked_fill(alone, math.inf)
    near = known <= known.kthvalue(scale.neighbors, dim=1, keepdim=True).values * (1 + 1e-12)
    size = float(squared.mean().div(2).sqrt())
    return near, spread_over_neighbors(known.masked_fill(~near, math.inf), scale.perplexity, FLOOR * (size or 1.0))


def _with_gradient(squared: Tensor, near: Tensor, found: Spreading, perplexity: float) -> Tensor:
    """Return the probabilities of a solution, differentiable where the perplexity is held and constant elsewhere."""
    p = found.probability
    entropy = -torch.special.xlogy(p, p).sum(1)
    held = (found.precision > 0) & found.precision.isfinite() & ((entropy - math.log(perplexity)).abs() < 1e-6)
    b = torch.where(held, found.precision, 1.0)
    gap = torch.where(near, squared - squared.detach().masked_fill(~near, math.inf).amin(1, keepdim=True), 0.0)

    def weights(precision: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.where(near, torch.exp(-precision[:, None] * gap), 0.0)
        return weight, weight.sum(1)

    weight, total = weights(b)
    mean = (weight * gap).sum(1) / total
    with torch.no_grad():
        variance = (weight * gap.square()).sum(1) / total - mean.square()
        slope = torch.where(held, -b * variance, 1.0)
    excess = total.log() + b * mean - math.log(perplexity)
    weight, total = weights(b - torch.where(held, (excess - excess.detach()) / slope, 0.0))
    return torch.where(held[:, None], weight / total[:, None], p)


def _markov(affinity: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    if alpha:
        weight = affinity.sum(1).pow(-alpha)
        affinity = weight[:, None] * affinity * weight
    degrees = affinity.sum(1)
    return affinity / degrees[:, None], degrees


def _duplicates(squared: Tensor) -> int:
    return int(((squared == 0).sum(1) > 1).sum())


def squared_distances(samples: Tensor, comparison: Comparison) -> tuple[Tensor, Cloud]:
    """Return ``|x_i - x_j|²`` in float64, ``(sample, sample)``, the diagonal zero, in the scaled units of the cloud.

    Raises
    ------
    ActivationError
        As :func:`repaudit.distance.points.cloud`.
    """
    points = cloud(samples.detach(), comparison.metric, comparison.standardize)
    samples = samples.double()
    if comparison.standardize:
        samples = samples * power_of_two(float(samples.detach().abs().amax()))
        deviation = samples.std(0, correction=0)
        constant = deviation <= torch.finfo(torch.float64).eps * 8 * samples.mean(0).abs()
        samples = samples / torch.where(constant, 1.0, deviation)
    if comparison.metric == "cosine":
        samples = samples / samples.detach().abs().amax(1, keepdim=True)
        samples = samples / samples.norm(dim=1, keepdim=True)
    samples = samples * points.scaling
    centred = samples - samples.detach().mean(0)
    norms = centred.square().sum(1)
    squared = (norms[:, None] + norms - 2 * centred @ centred.mT).clamp(min=0)
    rounding = torch.finfo(torch.float64).eps * 64 * (norms[:, None] + norms).detach()
    apart = (squared > rounding) & ~torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    return torch.where(apart, squared, 0.0), points


def _scale(squared: Tensor, fixed: float | str | None, knn: int) -> tuple[Tensor, int]:
    spread = float(squared.detach().mean().div(2).sqrt())
    if fixed is None:
        reach = squared.topk(knn + 1, largest=False).values.amax(1)
        scale = torch.where(reach > 0, reach, 1.0).sqrt() * (reach > 0)
    else:
        value = median_distance(squared.detach()) if fixed == "median" else float(fixed)
        scale = torch.full((len(squared),), value, dtype=squared.dtype, device=squared.device)
    return floored(scale, spread)
