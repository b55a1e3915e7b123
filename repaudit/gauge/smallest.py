"""The smallest entries of each row: the nearest neighbours among distances."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FEW_THREADS: Final = 4


def smallest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries of each row and their columns, in no order, ``(row, k)`` each."""
    values, groups = _candidates(rows, k)
    found, place = values.topk(k, largest=False, sorted=False)
    if groups is None:
        return found, place
    size, width = _grouping(rows.shape[1], k)
    own = groups.gather(1, (place % k)) + place // k * width
    # the columns at the end, which belong to no group, come after the groups' candidates
    return found, torch.where(place < size * k, own, place + size * (width - k))


def smallest_values(rows: Tensor, k: int) -> Tensor:
    """Return the ``k`` smallest entries of each row, in no order, ``(row, k)``."""
    values = _candidates(rows, k)[0]
    if not _vectorised(rows):
        return values.topk(k, largest=False, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[:, :k])


def _candidates(rows: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """Entries of each row with the ``k`` smallest among them, ``(row, candidate)``, and the groups they come from.

    The k groups of columns with the smallest minima hold them all, so that few entries are looked at twice. A group is
    every width-th column; a few columns at the end belong to none, and where there are few columns there are no groups.
    """
    size, width = _grouping(rows.shape[1], k)
    if size < 4:
        return rows, None
    grouped = rows[:, : width * size].reshape(len(rows), size, width)
    minima = grouped.amin(1)
    if _vectorised(rows):
        groups = torch.from_numpy(_lowest(minima.numpy(), k))
    else:
        groups = minima.topk(k, largest=False, sorted=False).indices
    members = grouped.gather(2, groups[:, None].expand(-1, size, -1)).reshape(len(rows), -1)
    return torch.cat([members, rows[:, width * size :]], 1), groups


def _grouping(columns: int, k: int) -> tuple[int, int]:
    """Columns a group and number of groups that leave the fewest entries to look at."""
    size = math.isqrt(columns // k)
    return size, columns // max(size, 1)


def _vectorised(rows: Tensor) -> bool:
    """Whether NumPy's selection, vectorised and on one thread, is faster than torch's on all threads."""
    return rows.device.type == "cpu" and torch.get_num_threads() <= _FEW_THREADS


def _lowest(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` smallest entries of each row, ``(row, k)``."""
    bound = np.partition(values, k - 1)[:, k - 1 : k]
    found = np.flatnonzero(values <= bound)
    if len(found) > k * len(values):  # equal ones on both sides of the bound
        found = np.argpartition(values, k - 1)[:, :k]
    columns: NDArray[np.int64] = found.reshape(-1, k) % values.shape[1]
    return columns
