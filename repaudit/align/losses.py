"""How far the rows of a student's operator are from those of the target: pure functions, 0 for the same rows.

``log_rows (batch, sample)`` are the logarithms of the student's rows, ``-inf`` where they are 0, and ``target`` the
rows that they should be. Every loss is a mean over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal, get_args

import torch
from torch import Tensor

RowLoss = Literal["kl", "frobenius", "hellinger"]


def row_kl(log_rows: Tensor, target: Tensor) -> Tensor:
    """Return the mean over rows of ``Σ_j P*_ij log(P*_ij / P_ij)``, in nats.

    Examples
    --------
    >>> target = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    >>> round(row_kl(torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log(), target).item(), 4)
    0.6931
    """
    some = target > 0
    gap = torch.where(some, target, 1.0).log() - torch.where(some, log_rows, 0.0)
    return (torch.where(some, target, 0.0) * gap).sum(1).mean()


def row_frobenius(log_rows: Tensor, target: Tensor) -> Tensor:
    """Return the mean over rows of ``Σ_j (P*_ij - P_ij)²``.

    Examples
    --------
    >>> target = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    >>> row_frobenius(torch.tensor([[0.25, 0.75]], dtype=torch.float64).log(), target).item()
    0.125
    """
    return (target - log_rows.exp()).square().sum(1).mean()


def row_hellinger(log_rows: Tensor, target: Tensor) -> Tensor:
    """Return the mean over rows of ``1 - Σ_j sqrt(P*_ij P_ij)``.

    Examples
    --------
    >>> target = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    >>> row_hellinger(torch.tensor([[0.25, 0.75]], dtype=torch.float64).log(), target).item()
    0.5
    """
    some = target > 0
    return (1 - (torch.where(some, target, 0.0).sqrt() * torch.where(some, log_rows, 0.0).div(2).exp()).sum(1)).mean()


ROW_LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "kl": row_kl,
    "frobenius": row_frobenius,
    "hellinger": row_hellinger,
}


def check_loss(loss: str) -> None:
    """Refuse a loss that there is not.

    Raises
    ------
    ValueError
        Naming those that there are.
    """
    if loss not in ROW_LOSSES:
        raise ValueError(f"loss is one of {', '.join(map(repr, get_args(RowLoss)))}; found {loss!r}")


def span(loss: RowLoss, target: Tensor) -> float:
    """Return the loss of uniform rows, ``P_ij = 1 / N``: the unit in which losses are told, whatever the gauge.

    Raises
    ------
    ValueError
        The target is uniform, so that there is nothing to teach.

    Examples
    --------
    >>> span("kl", torch.eye(4, dtype=torch.float64)) == math.log(4)
    True
    """
    uniform = torch.full_like(target, -math.log(target.shape[1]))
    found = float(ROW_LOSSES[loss](uniform, target))
    if found <= 1e-9:
        raise ValueError("expected a target that tells samples apart, found one whose rows are uniform")
    return found
