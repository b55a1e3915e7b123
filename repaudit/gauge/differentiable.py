"""The gauge as a plain expression in float64, for gradients: the same operator, without blocks and in-place steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from repaudit.gauge.kernel import floored, median_distance, refuse_isolated

if TYPE_CHECKING:
    from repaudit.gauge.diffusion import DiffusionGauge


def differentiable_operator(samples: Tensor, gauge: DiffusionGauge, knn: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``P``, degrees and counts of ``samples (sample, feature)``, differentiable in the samples.

    The distances that set the bandwidths carry a gradient, the choice of neighbours does not. Where samples coincide
    the gradient of their distance is taken as zero.
    """
    with torch.autocast(samples.device.type, enabled=False):
        squared = squared_distances(samples.double(), gauge.metric, gauge.standardize)
        scale, floors = _scale(squared, gauge.bandwidth, knn)
        kernel = _kernel(squared, scale, gauge)
        if not gauge.self_loops:
            kernel = kernel * (1 - torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))
            refuse_isolated(kernel.detach().sum(1), samples.dtype)
        if gauge.alpha:
            weight = kernel.sum(1).pow(-gauge.alpha)
            kernel = weight[:, None] * kernel * weight
        degrees = kernel.sum(1)
        matrix = (kernel / degrees[:, None]).to(samples.dtype)
    same = int(((squared == 0).sum(1) > 1).sum())
    counts = {"duplicates": same, "collapsed": not bool(squared.any()), "floored": floors}
    return matrix, degrees, counts


def squared_distances(samples: Tensor, metric: str, standardize: bool) -> Tensor:
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


def _kernel(squared: Tensor, scale: Tensor, gauge: DiffusionGauge) -> Tensor:
    if gauge.kernel == "alpha_decay":
        one_sided = torch.exp(-(squared / scale[:, None].square()).pow(gauge.decay / 2))
        return (one_sided + one_sided.mT) / 2
    factor = 1.0 if gauge.bandwidth is None else 2.0
    return torch.exp(-squared / (factor * scale[:, None] * scale))
