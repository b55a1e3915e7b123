"""The gauge as a plain expression in float64, for gradients: the same operator, without blocks and in-place steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repaudit.distance.points import Metric
from repaudit.gauge.bandwidth import floored, median_distance
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.normalize import refuse_isolated


@dataclass(frozen=True)
class Comparison:
    """How samples are compared, and where their local scales come from: ``fixed``, or the ``knn``-th neighbour."""

    metric: Metric
    standardize: bool
    fixed: float | str | None
    knn: int


def differentiable_operator(
    samples: Tensor, comparison: Comparison, kernel: Kernel
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``P``, degrees and counts of ``samples (sample, feature)``, differentiable in the samples.

    The distances that set the bandwidths carry a gradient, the choice of neighbours does not. Where samples coincide
    the gradient of their distance is taken as zero.
    """
    with torch.autocast(samples.device.type, enabled=False):
        squared = squared_distances(samples.double(), comparison.metric, comparison.standardize)
        scale, floors = _scale(squared, comparison.fixed, comparison.knn)
        affinity = kernel.pairs(squared, scale[:, None], scale, torch.float64)
        if not kernel.self_loops:
            affinity = affinity * (1 - torch.eye(len(affinity), dtype=affinity.dtype, device=affinity.device))
            refuse_isolated(affinity.detach().sum(1), samples.dtype)
        if kernel.alpha:
            weight = affinity.sum(1).pow(-kernel.alpha)
            affinity = weight[:, None] * affinity * weight
        degrees = affinity.sum(1)
        matrix = (affinity / degrees[:, None]).to(samples.dtype)
    same = int(((squared == 0).sum(1) > 1).sum())
    counts = {"duplicates": same, "collapsed": not bool(squared.any()), "floored": floors}
    return matrix, degrees, counts


def squared_distances(samples: Tensor, metric: Metric, standardize: bool) -> Tensor:
    """``|x_i - x_j|²`` in float64, ``(sample, sample)``, the diagonal zero."""
    if standardize:
        deviation = samples.std(0, correction=0)
        constant = deviation <= torch.finfo(torch.float64).eps * 8 * samples.mean(0).abs()
        samples = samples / torch.where(constant, 1.0, deviation)
    if metric == "cosine":
        samples = samples / samples.norm(dim=1, keepdim=True)
    centred = samples - samples.detach().mean(0)
    norms = centred.square().sum(1)
    squared = (norms[:, None] + norms - 2 * centred @ centred.mT).clamp(min=0)
    rounding = torch.finfo(torch.float64).eps * 64 * (norms[:, None] + norms).detach()
    apart = (squared > rounding) & ~torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    return torch.where(apart, squared, 0.0)


def _scale(squared: Tensor, fixed: float | str | None, knn: int) -> tuple[Tensor, int]:
    spread = float(squared.detach().mean().div(2).sqrt())
    if fixed is None:
        reach = squared.topk(knn + 1, largest=False).values.amax(1)
        scale = torch.where(reach > 0, reach, 1.0).sqrt() * (reach > 0)
    else:
        value = median_distance(squared.detach()) if fixed == "median" else float(fixed)
        scale = torch.full((len(squared),), value, dtype=squared.dtype, device=squared.device)
    return floored(scale, spread)
