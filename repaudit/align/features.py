"""A batch of a student's features: which of them count, and their scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def usable(features: Tensor, sample_index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows that count, and their samples: those of index -1 are left out, and of a repeated one the first.

    Parameters
    ----------
    features : (batch, feature)
    sample_index : (batch), int64
    count : int
        Samples that there are.

    Raises
    ------
    ValueError
        Features and indices do not go together, or an index is beyond the samples.

    Examples
    --------
    >>> rows, places = usable(torch.eye(4), torch.tensor([2, -1, 2, 0]), 3)
    >>> rows.shape, places.tolist()
    (torch.Size([2, 4]), [2, 0])
    """
    if features.ndim != 2 or sample_index.ndim != 1 or len(features) != len(sample_index):
        raise ValueError(
            f"expected features (batch, feature) and as many indices, found {tuple(features.shape)} and "
            f"{tuple(sample_index.shape)}"
        )
    if sample_index.is_floating_point() or sample_index.dtype == torch.bool:
        raise ValueError(f"sample_index: expected whole numbers, found {sample_index.dtype}")
    index = sample_index.to(features.device, torch.int64)
    outside = (index < -1) | (index >= count)
    if bool(outside.any()):
        raise ValueError(f"sample_index: expected -1 to {count - 1}, found {int(index[outside][0])}")
    once: dict[int, int] = {}
    for place, sample in enumerate(index.tolist()):
        if sample >= 0:
            once.setdefault(sample, place)
    chosen = torch.tensor(list(once.values()), dtype=torch.int64, device=features.device)
    return features[chosen], index[chosen]


def widened(rows: Tensor) -> Tensor:
    """Return half-precision rows in float32, others as they are."""
    return rows.float() if rows.dtype in {torch.float16, torch.bfloat16} else rows


def through(head: nn.Module, rows: Tensor) -> Tensor:
    """Return what a head makes of rows, in float32 or wider; a head in half precision is given such rows.

    Examples
    --------
    >>> through(nn.Linear(4, 2).bfloat16(), torch.ones(3, 4)).dtype
    torch.float32
    """
    first = next(head.parameters(), None)
    given = widened(rows)
    if first is not None and first.dtype in {torch.float16, torch.bfloat16}:
        given = rows.to(first.dtype)
    found: Tensor = head(given)
    return widened(found)


def mean_square(rows: Tensor) -> Tensor:
    """Return the mean square of all entries, float64."""
    return rows.double().square().mean()


def steady(rows: Tensor, centre: Tensor) -> Tensor:
    """Return the rows as they are, without the parts of their gradient that would move or scale all of them.

    Parameters
    ----------
    rows : (batch, feature)
    centre : (feature)
        Of these rows, about which they are scaled.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    >>> steady(rows, rows.mean(0)).square().sum().backward()
    >>> rows.grad.abs().max().item() < 1e-6
    True
    """
    away = rows - centre
    square = mean_square(away)
    size = torch.where(square > 0, square, 1.0).sqrt()  # before the root, whose slope at 0 is infinite
    return centre.detach() + away * (size.detach() / size)
