"""Means of row-stochastic matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repaudit.operators.convert import from_entries, row_sums


def weighted_mean(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return row-normalised ``Σ w_i P_i``, ``(sample, neighbor)``, summed in float64; sparse if all of them are.

    With equal weights this is ``(1/N) Σ P_i``, the minimiser of ``Σ |P - P_i|_F²`` (its gradient ``2 Σ (P - P_i)``
    vanishes there, and a mean of stochastic rows is stochastic).

    Examples
    --------
    >>> weighted_mean([torch.eye(2), torch.full((2, 2), 0.5)], [1.0, 3.0]).tolist()
    [[0.625, 0.375], [0.375, 0.625]]
    """
    total = sum(weights)
    merged = matrices[0].double() * (weights[0] / total)
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        merged = merged + matrix.double() * (weight / total)
    sums = row_sums(merged)
    # float32 rows sum to 1 within their rounding: identical operators must come out as they went in
    if float((sums.detach() - 1).abs().amax()) <= 1e-6:
        return merged
    if merged.layout == torch.strided:
        return merged / sums[:, None]
    merged = merged.coalesce()
    values = merged.values() / sums[merged.indices()[0]]
    return from_entries(merged.indices(), values, (len(merged), len(merged)), is_coalesced=True)
