"""The smallest entries of each row: the nearest neighbours among distances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from repaudit.distance.points import row_panels

_PANEL_ENTRIES: Final = {"cpu": 2**19, "cuda": 2**26}
_GROUP: Final = 12
"""Columns to a group whose minima bound the smallest entries: fewer groups are sorted faster, but bound them worse."""

_FEW: Final = 2
"""Entries within the bound that are looked at again, as a multiple of those wanted."""

_ROWS: Final = 1024


def smallest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries of each row and their columns, in no order, ``(row, k)`` each."""
    select = _by_bounds if rows.device.type == "cpu" else _by_groups
    values = rows.new_empty(len(rows), k)
    columns = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
    for part in _panels(rows):
        values[part], columns[part] = select(rows[part], k)
    return values, columns


def merge_smallest_(values: Tensor, columns: Tensor, block: Tensor, first: int) -> None:
    """Let the entries of one more block compete with the smallest ones known of each row, in place.

    Parameters
    ----------
    values, columns : (row, k)
        Smallest entries known and their columns, in no order; infinite where fewer are known.
    block : (row, column)
        May be the transpose of what lies in memory.
    first : int
        What the block's first column is called.
    """
    k = values.shape[1]
    found = _below_known(block, values) if block.device.type == "cpu" else None
    if found is None:
        block = block.contiguous()
        found = smallest(block, min(k, block.shape[1]))
    for part in row_panels(len(block), _ROWS):
        names = torch.cat([columns[part], found[1][part] + first], 1)
        values[part], order = smallest(torch.cat([values[part], found[0][part]], 1), k)
        columns[part] = names.gather(1, order)


def _below_known(block: Tensor, known: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a block's entries below the largest one known of their row, and their columns, infinite where none.

    None where they are so many that choosing among all is as fast.
    """
    turned = not block.is_contiguous()
    stored, bound = (block.mT, known.amax(1)) if turned else (block, known.amax(1, keepdim=True))
    found = np.flatnonzero((stored < bound).numpy())
    if len(found) > _FEW * known.numel():
        return None
    below = _entries(stored, found)
    few, place = _padded(below.T.tocsr() if turned else below)
    return torch.from_numpy(few), torch.from_numpy(place)


def _entries(rows: Tensor, found: NDArray[np.int64]) -> csr_array:
    """Return some entries of a matrix, named by their places in memory, in order."""
    count, width = rows.shape
    edges = np.searchsorted(found, np.arange(count + 1) * width)
    values = rows.view(-1)[torch.from_numpy(found)].numpy()
    return csr_array((values, found % width, edges), shape=(count, width))


def _padded(entries: csr_array) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the entries of each row and their columns side by side, infinite and 0 at the end of short rows."""
    each = np.diff(entries.indptr)
    place = np.arange(each.max(initial=0)) < each[:, None]
    values, columns = np.full(place.shape, np.inf, entries.dtype), np.zeros(place.shape, np.int64)
    values[place], columns[place] = entries.data, entries.indices
    return values, columns


def _panels(block: Tensor) -> Iterator[slice]:
    """Return ranges of rows of a block small enough for copies of them."""
    size = max(1, _PANEL_ENTRIES.get(block.device.type, _PANEL_ENTRIES["cpu"]) // block.shape[1])
    return row_panels(len(block), size)


def _by_bounds(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries and their columns, on a CPU, in two passes over the rows.

    The ``k``-th smallest minimum of groups of columns bounds the ``k``-th smallest entry closely. A group is every
    so-many-th column. Passes are torch's, on its threads; the selection among few is NumPy's, which is vectorised.
    """
    count, width = rows.shape
    groups = width // _GROUP
    if groups < 2 * k:
        return _lowest(rows.numpy(), k)
    minima = rows[:, : groups * _GROUP].reshape(count, _GROUP, groups).amin(1)
    bound = torch.from_numpy(np.partition(minima.numpy(), k - 1)[:, k - 1 : k])
    found = np.flatnonzero((rows <= bound).numpy())
    if len(found) > _FEW * k * count:  # many equal ones, or near ones that share groups
        return _lowest(rows.numpy(), k)
    few, columns = _padded(_entries(rows, found))
    values, place = _lowest(few, k)
    return values, torch.from_numpy(columns).gather(1, place)


def _lowest(rows: NDArray[Any], k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` smallest entries of each row and their columns, in one pass for each of the two."""
    bound = np.partition(rows, k - 1)[:, k - 1 : k]
    found = np.flatnonzero(rows <= bound)
    if len(found) > k * len(rows):  # equal ones on both sides of the bound
        columns = np.argpartition(rows, k - 1)[:, :k]
    else:
        columns = found.reshape(-1, k) % rows.shape[1]
    return torch.from_numpy(np.take_along_axis(rows, columns, 1)), torch.from_numpy(columns)


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
