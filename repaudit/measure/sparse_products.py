"""Products of many sparse operators with each other: of what most of them hold as dense ones, of the rest as sparse."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_array

from repaudit.measure.references import References
from repaudit.measure.structure import Structure
from repaudit.operators.stack import OperatorStack, SparseRows

Transform: TypeAlias = Callable[[torch.Tensor], Any]
"""Changes entries in place, and keeps 0 at 0."""

Entries: TypeAlias = tuple[NDArray[np.int64], NDArray[Any]]
"""Places in a band, in order, and the values there."""

COMMON: Final = 0.05
"""Share of the operators that hold a cell from which on its products are cheaper as dense ones."""

FEW, MANY = 32, 100
"""An eighth of the operators, at least and at most so many, tell which cells are common; of fewer, all cells are."""

_ALIGNED: Final = 16
"""Numbers: rows of a dense band begin at multiples of it."""

_ENTRY_BYTES: Final = 32
"""Held for each entry of a band: its cell, its value, and what becomes of both."""


@dataclass(frozen=True)
class Band:
    """A band of rows of T operators.

    Attributes
    ----------
    stop : int
        Row after the last one.
    common : (T, cell)
        Entries at the cells that many operators hold, free to be changed; of dense operators, all.
    rare : (T, cell), sparse, float64
        Entries at the other cells that any sparse operator holds; None where there are none.
    ends : (K, cell)
        The references' entries at the common cells, where the operators have been taken less of them.
    structure : Structure
        Of these rows; None where nobody asks.
    """

    stop: int
    common: torch.Tensor
    rare: csr_array | None = None
    ends: torch.Tensor | None = None
    structure: Structure | None = None


def sparse_bands(
    stack: OperatorStack,
    budget: int,
    transform: Transform | None,
    *,
    moments: bool,
    references: References | None = None,
) -> Iterator[Band]:
    """Give the bands of a stack of sparse operators one after the other, each of as many rows as fit in a budget.

    Parameters
    ----------
    stack : OperatorStack
    budget : int
        Bytes.
    transform : function of entries, in place, optional
        Keeps 0 at 0.
    moments : bool
        Whether means and squares are asked for.
    references : References, optional
        What the common entries of each operator are taken less of.
    """
    start, rooms = 0, [_Room(of_files=stack.in_files) for _ in range(2)]
    while start < stack.samples:
        stop = min(stack.samples, start + _rows(stack, start, budget))
        rows = [stack.sparse_rows(index, start, stop) for index in range(len(stack))]
        while stop > start + 1 and _ENTRY_BYTES * sum(len(columns) for _, columns, _ in rows) > budget:
            stop = (start + stop) // 2  # these rows have more entries than those that were looked at
            rows = [stack.sparse_rows(index, start, stop) for index in range(len(stack))]
        parts, found = _in_order(rows, stack.samples, rooms[0]), None
        if transform is not None:
            parts = [(places, _changed(values, transform)) for places, values in parts]
        if moments:
            found = Structure.of_sparse(parts, stop - start, stack.samples, start)
        yield _band(stop, parts, (stop - start) * stack.samples, references, rooms[1], found)
        start = stop


class _Room:
    """Memory that every band uses again: new pages cost more than what is written to them."""

    def __init__(self, *, of_files: bool) -> None:
        self._bytes, self._of_files = np.empty(0, np.uint8), of_files

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array with any values; that of the last call is gone."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self._bytes.size:
            most = size + size // 8
            # pages of a map go back to the system at once, which matters where operators are not in memory anyway
            self._bytes = np.frombuffer(mmap.mmap(-1, most), np.uint8) if self._of_files else np.empty(most, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


def _rows(stack: OperatorStack, start: int, budget: int) -> int:
    """Return the rows of a band, whose entries, once as they are and once as common cells, fit in a budget."""
    last = min(stack.samples, start + 16)
    entries = max(len(stack.sparse_rows(index, start, last)[1]) for index in {0, len(stack) // 2, len(stack) - 1})
    a_row = len(stack) * -(-entries // (last - start)) * _ENTRY_BYTES + 16 * stack.samples
    return int(max(1, budget // (2 * a_row)))


def _band(
    stop: int,
    parts: Sequence[Entries],
    cells: int,
    references: References | None,
    room: _Room,
    structure: Structure | None,
) -> Band:
    rank, width = _rank_of_common(parts, cells)
    stride = _ALIGNED * (width // _ALIGNED + 1)  # of which the column behind the common ones takes what is rare
    dense, rest = room.empty((len(parts), stride), parts[0][1].dtype), []
    of, nearest = ([], []) if references is None else (references.operators.tolist(), references.nearest.tolist())
    ends = np.zeros((len(of), stride), dense.dtype)
    for end, index in zip(ends, of, strict=True):
        places, values = parts[index]
        end[rank[places]] = values
    for index, (row, (places, values)) in enumerate(zip(dense, parts, strict=True)):
        row[:] = 0
        at = rank[places]
        row[at] = values
        if nearest:
            np.subtract(row, ends[nearest[index]], out=row)
        if len(parts) > FEW:
            rare = np.flatnonzero(at == width)
            rest.append((places[rare], values[rare]))
    return Band(
        stop,
        torch.from_numpy(dense)[:, :width],
        _compressed(rest, cells) if rest else None,
        torch.from_numpy(ends)[:, :width] if of else None,
        structure,
    )


def _in_order(rows: Sequence[SparseRows], samples: int, room: _Room) -> list[Entries]:
    """Return the places of the entries of each operator in the band, instead of their rows and columns."""
    ends = np.cumsum([len(columns) for _, columns, _ in rows])
    places = np.split(room.empty((int(ends[-1]),), np.int64), ends[:-1])
    for (pointers, columns, _), at in zip(rows, places, strict=True):
        np.add(np.repeat(np.arange(0, (len(pointers) - 1) * samples, samples), np.diff(pointers)), columns, out=at)
    return [(at, values) for at, (_, _, values) in zip(places, rows, strict=True)]


def _changed(values: NDArray[Any], transform: Transform) -> NDArray[Any]:
    changed = values.copy()
    transform(torch.from_numpy(changed))
    return changed


def _rank_of_common(parts: Sequence[Entries], cells: int) -> tuple[NDArray[np.int64], int]:
    """Return the number of each cell among the common ones, and how many these are, which is that of all others."""
    some: Sequence[Entries] = parts
    if len(parts) > FEW:  # at random, as every third may be of one model
        drawn = np.random.default_rng(0).choice(len(parts), min(MANY, max(FEW, len(parts) // 8)), replace=False)
        some = [parts[index] for index in drawn]
    held = np.bincount(np.concatenate([places for places, _ in some]), minlength=cells)
    common = held >= (COMMON * len(some) if len(parts) > FEW else 1)
    count = int(common.sum())
    return np.where(common, np.cumsum(common) - 1, count), count


def _compressed(parts: Sequence[Entries], cells: int) -> csr_array:
    pointers = np.cumsum([0, *(len(places) for places, _ in parts)])
    places, values = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    known = np.zeros(cells, bool)
    known[places] = True
    rank = np.cumsum(known, dtype=np.int32) - 1
    shape = len(parts), int(rank[-1]) + 1 or 1
    return csr_array((values.astype(np.float64), rank[places], pointers), shape=shape)


def squared_distance(stack: OperatorStack, first: int, other: int, transform: Transform | None) -> float:
    """Return the squared distance of two operators from the differences of their entries."""
    both = []
    for index in (first, other):
        pointers, columns, values = stack.sparse_rows(index, 0, stack.samples)
        if transform is not None:
            values = _changed(values, transform)
        shape = stack.samples, stack.samples
        both.append(csr_array((values.astype(np.float64), columns, pointers - pointers[0]), shape=shape))
    apart = (both[0] - both[1]).data
    return float(np.einsum("i,i->", apart, apart))  # BLAS's threads take longer
