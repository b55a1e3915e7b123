"""Means of row-stochastic matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_mean(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Row-normalised ``Σ w_i P_i``, ``(sample, neighbor)``, summed in float64.

    With equal weights this is ``(1/N) Σ P_i``, the minimiser of ``Σ |P - P_i|_F²`` (its gradient ``2 Σ (P - P_i)``
    vanishes there, and a mean of stochastic rows is stochastic).

    Examples
    --------
    >>> weighted_mean([torch.eye(2), torch.full((2, 2), 0.5)], [1.0, 3.0]).tolist()
    [[0.625, 0.375], [0.375, 0.625]]
    """
    total = sum(weights)
    merged = torch.zeros_like(matrices[0], dtype=torch.float64)
    for matrix, weight in zip(matrices, weights, strict=True):
        merged = merged.add(matrix.double(), alpha=weight / total)
    # rows of float32 operators sum to 1 within 1e-7; what is merged from identical ones must stay as they are
    return merged if _stochastic(merged) else merged / merged.sum(1, keepdim=True)


def _stochastic(matrix: Tensor) -> bool:
    return float((matrix.detach().sum(1) - 1).abs().amax()) <= 1e-6
