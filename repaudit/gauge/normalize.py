"""From a kernel to transition probabilities: density correction and row normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from repaudit.distance.points import cache_panels
from repaudit.errors import ActivationError
from repaudit.gauge.kernel import Kernel
from repaudit.operators.convert import from_entries


def markov_(kernel: Tensor, sums: Tensor, alpha: float) -> Tensor:
    """Correct for density and normalise rows, in place; give back the degrees in float64.

    ``K_ij <- K_ij / (q_i q_j)^alpha`` with ``q`` the row sums (``sums``), then ``P = K / D``, ``D_i = sum_j K_ij``.
    """
    weight = sums.pow(-alpha)
    narrow = weight.to(kernel.dtype)
    degrees = torch.empty_like(sums)
    for part in cache_panels(kernel):
        rows = kernel[part]
        if alpha:
            rows.mul_(narrow)
        total = rows.sum(1).double() if alpha else sums[part]
        rows.mul_(total.reciprocal()[:, None].to(rows.dtype))
        degrees[part] = total * weight[part]
    return degrees


def sparse_markov(
    count: int, low: Tensor, high: Tensor, weights: Tensor, kernel: Kernel, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Density correction and row normalisation of a symmetric kernel given by its pairs."""
    own = torch.arange(count, device=low.device)
    diagonal = torch.full((count,), float(kernel.self_loops), dtype=weights.dtype, device=low.device)
    rows, columns = torch.cat([low, high, own]), torch.cat([high, low, own])
    values = torch.cat([weights, weights, diagonal])
    if not kernel.self_loops:
        rows, columns, values = rows[:-count], columns[:-count], values[:-count]
    zero = torch.zeros(count, dtype=values.dtype, device=low.device)
    sums = zero.index_add(0, rows, values)
    if not kernel.self_loops:
        refuse_isolated(sums, dtype)
    correction = sums.pow(-kernel.alpha)
    values = values * correction[rows] * correction[columns]
    degrees = zero.index_add(0, rows, values)
    values = (values / degrees[rows]).to(dtype)
    matrix = from_entries(torch.stack([rows, columns]), values, (count, count))
    return matrix.coalesce(), degrees


def refuse_isolated(
    sums: Tensor, dtype: torch.dtype, remedy: str = "self_loops=True, more knn or a larger bandwidth"
) -> None:
    """Refuse samples beyond the kernel's reach, which have nowhere to go without self loops, and say which."""
    lost = (sums < (1e-25 if dtype == torch.float32 else 1e-200)).nonzero()[:, 0].tolist()
    if lost:
        raise ActivationError(
            f"{len(lost)} of {len(sums)} samples have no neighbour within the kernel's reach ({lost[:5]}), which "
            f"leaves them no transition; use {remedy}"
        )
