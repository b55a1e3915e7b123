"""The smallest entries of each row: the nearest neighbours among distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repaudit.distance.points import row_panels

_PANEL_ENTRIES: Final = {"cpu": 2**19, "cuda": 2**26}
_GROUP: Final = 12
"""Columns to a group whose minima bound the smallest entries: fewer groups are sorted faster, but bound them worse."""

_FEW: Final = 2
"""Entries within the bound that are looked at again, as a multiple of those wanted."""


def smallest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries of each row and their columns, in no order, ``(row, k)`` each."""
    values = rows.new_empty(len(rows), k)
    columns = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
    if rows.device.type != "cpu":
        for part in _panels(rows):
            values[part], columns[part] = _by_groups(rows[part], k)
        return values, columns
    matrix, found, names = rows.numpy(), values.numpy(), columns.numpy()

    def fill(part: slice) -> None:
        names[part] = _lowest_of_many(matrix[part], k)
        found[part] = np.take_along_axis(matrix[part], names[part], 1)

    _on_all_threads(fill, list(_panels(rows)))
    return values, columns


def _panels(block: Tensor) -> Iterator[slice]:
    """Return ranges of rows of a block small enough for copies of them."""
    size = max(1, _PANEL_ENTRIES.get(block.device.type, _PANEL_ENTRIES["cpu"]) // block.shape[1])
    return row_panels(len(block), size)


def _on_all_threads(call: Callable[[slice], None], parts: list[slice]) -> None:
    """Call a function of NumPy, whose selection is vectorised but on one thread, on as many parts at once as torch."""
    threads = min(torch.get_num_threads(), len(parts))
    if threads == 1:
        for part in parts:
            call(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, parts))


def _lowest_of_many(rows: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` smallest entries of each row, ``(row, k)``, in two passes over the rows.

    The ``k``-th smallest minimum of groups of columns bounds the ``k``-th smallest entry closely. A group is every
    so-many-th column.
    """
    count, width = rows.shape
    groups = width // _GROUP
    if groups < 2 * k:
        return _lowest(rows, k)
    minima = rows[:, : groups * _GROUP].reshape(count, _GROUP, groups).min(1)
    found = np.flatnonzero(rows <= np.partition(minima, k - 1)[:, k - 1 : k])
    if len(found) > _FEW * k * count:  # many equal ones, or near ones that share groups
        return _lowest(rows, k)
    edges = np.searchsorted(found, np.arange(count + 1) * width)
    inside = np.arange(np.diff(edges).max()) < np.diff(edges)[:, None]
    few = np.full(inside.shape, np.inf, rows.dtype)
    few[inside] = rows.ravel()[found]
    columns: NDArray[np.int64] = found[edges[:-1, None] + _lowest(few, k)] % width
    return columns


def _lowest(rows: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` smallest entries of each row, ``(row, k)``."""
    bound = np.partition(rows, k - 1)[:, k - 1 : k]
    found = np.flatnonzero(rows <= bound)
    if len(found) > k * len(rows):  # equal ones on both sides of the bound
        found = np.argpartition(rows, k - 1)[:, :k]
    columns: NDArray[np.int64] = found.reshape(-1, k) % rows.shape[1]
    return columns


def _by_groups(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries and their columns, on an accelerator.

    The k groups of columns with the smallest minima hold them all, so that few entries are looked at twice. A group is
    every width-th column; a few columns at the end belong to none, and where there are few columns there are no groups.
    """
    size = math.isqrt(rows.shape[1] // k)
    if size < 4:
        return rows.topk(k, largest=False, sorted=False)
    width = rows.shape[1] // size
    grouped = rows[:, : width * size].reshape(len(rows), size, width)
    groups = grouped.amin(1).topk(k, largest=False, sorted=False).indices
    members = grouped.gather(2, groups[:, None].expand(-1, size, -1)).reshape(len(rows), -1)
    values, place = torch.cat([members, rows[:, width * size :]], 1).topk(k, largest=False, sorted=False)
    own = groups.gather(1, place % k) + place // k * width
    # the columns at the end come after the groups' candidates
    return values, torch.where(place < size * k, own, place + size * (width - k))
