"""The kernel: from squared distances and local scales to affinities, for all pairs in place or for some pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.distance.points import cache_panels

FAR: Final = {torch.float32: -80.0, torch.float64: -600.0}
"""Exponents up to this give zero: lost beside 1, and the exponentials of what lies below are denormal, thus slow."""


@dataclass(frozen=True)
class Kernel:
    """What turns squared distances and scales into affinities: ``decay=None`` for the Gaussian kernel.

    Gaussian: ``exp(-d_ij² / (s_i s_j))`` for adaptive scales, ``exp(-d² / (2 s²))`` for a fixed one.
    Alpha decay: ``1/2 [exp(-(d_ij / s_i)^decay) + exp(-(d_ij / s_j)^decay)]``.
    """

    decay: float | None
    alpha: float
    adaptive: bool
    self_loops: bool

    def pairs(self, squared: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the affinities of pairs with scales ``left`` and ``right``, float64, differentiable."""
        if self.decay is None:
            exponents = [squared / (left * right * (1 if self.adaptive else 2))]
        else:
            exponents = [self._power(squared / scale.square()) for scale in (left, right)]
        parts = [torch.where(-x > FAR[dtype], torch.exp(-x), 0.0) for x in exponents]
        return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2

    def _power(self, ratio: Tensor) -> Tensor:
        """Return ``(d / s)^decay`` from its square; the gradient is zero where a power has none or the affinity is."""
        half = (self.decay or 0.0) / 2
        inside = (ratio > 0) & (ratio.detach().log() * half < 7)
        power = torch.where(inside, ratio, 1.0).pow(half)
        return torch.where(inside, power, torch.where(ratio > 0, math.inf, 0.0))

    def all_pairs_(self, squared: Tensor, scale: Tensor) -> Tensor:
        """Turn all squared distances into affinities in place; return the row sums in float64."""
        narrow = (1 / scale if self.adaptive or self.decay is not None else math.sqrt(0.5) / scale).to(squared.dtype)
        sums = torch.empty_like(scale)
        for part in cache_panels(squared):
            rows, own = squared[part], narrow[part, None]
            if self.decay is None:
                exp_(rows.mul_(narrow).mul_(-own))
            else:
                other = rows * narrow * narrow
                exp_(rows.mul_(own).mul_(own).pow_(self.decay / 2).neg_())
                rows.add_(exp_(other.pow_(self.decay / 2).neg_())).mul_(0.5)
            if not self.self_loops:
                rows.diagonal(part.start).zero_()
            sums[part] = rows.sum(1)
        return sums


def exp_(exponent: Tensor) -> Tensor:
    """Take the exponential in place, exactly zero at and below :data:`FAR`."""
    far = FAR[exponent.dtype]
    return torch.threshold_(exponent.clamp_(min=far).exp_(), math.exp(far) * (1 + 1e-5), 0.0)
