"""Products of many sparse operators with each other: of what most of them hold as dense ones, of the rest as sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from repaudit.operators.stack import OperatorStack

Transform: TypeAlias = Callable[[torch.Tensor], Any]
"""Changes entries in place, and keeps 0 at 0."""

Entries: TypeAlias = tuple[NDArray[np.int64], NDArray[Any]]
"""Places in a band, in order, and the values there."""

COMMON: Final = 0.05
"""Share of the operators that hold a cell from which on its products are cheaper as dense ones."""

FEW: Final = 100
"""Up to this many operators every cell that one of them holds is taken as common: sorting them out costs more."""

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
    moments : (3, T), float64
        Sum of the diagonal, of all entries, and of their squares; None where nobody asks.
    """

    stop: int
    common: torch.Tensor
    rare: csr_array | None = None
    moments: torch.Tensor | None = None


def sparse_bands(stack: OperatorStack, budget: int, transform: Transform | None, *, moments: bool) -> Iterator[Band]:
    """Give the bands of a stack of sparse operators one after the other, each of as many rows as fit in a budget.

    Parameters
    ----------
    stack : OperatorStack
    budget : int
        Bytes.
    transform : function of entries, in place, optional
        Keeps 0 at 0.
    """
    start = 0
    while start < stack.samples:
        stop = min(stack.samples, start + _rows(stack, start, budget))
        yield _band(stack, start, stop, transform, moments)
        start = stop


def _rows(stack: OperatorStack, start: int, budget: int) -> int:
    """Return the rows of a band, whose entries, once as they are and once as common cells, fit in a budget."""
    last = min(stack.samples, start + 16)
    entries = max(len(stack.entries(index, start, last)[0]) for index in {0, len(stack) // 2, len(stack) - 1})
    a_row = len(stack) * -(-entries // (last - start)) * _ENTRY_BYTES + 16 * stack.samples
    return int(max(1, budget // (2 * a_row)))


def _band(stack: OperatorStack, start: int, stop: int, transform: Transform | None, moments: bool) -> Band:
    count, cells = len(stack), (stop - start) * stack.samples
    parts, sums = [], torch.zeros((3, count), dtype=torch.float64)
    for index in range(count):
        places, values = stack.entries(index, start, stop)
        if transform is not None:
            values = values.copy()
            transform(torch.from_numpy(values))
        if moments:
            wide = values.astype(np.float64)
            on_diagonal = wide[places % (stack.samples + 1) == start]
            sums[:, index] = torch.tensor([on_diagonal.sum(), wide.sum(), wide @ wide])
        parts.append((places, values))
    rank = _rank_of_common(parts, cells)
    dense, rest = torch.zeros((count, int(rank.max(initial=-1)) + 1), dtype=stack.dtype), []
    for row, (places, values) in zip(dense.numpy(), parts, strict=True):
        at = rank[places]
        if count <= FEW:
            row[at] = values
            continue
        rare = at < 0
        row[at[~rare]] = values[~rare]
        rest.append((places[rare], values[rare]))
    return Band(stop, dense, _compressed(rest, cells) if rest else None, sums if moments else None)


def _rank_of_common(parts: Sequence[Entries], cells: int) -> NDArray[np.int32]:
    """Return the number of each cell among the common ones, -1 of others; a sample of the operators tells which."""
    if len(parts) <= FEW:
        common = np.zeros(cells, bool)
        for places, _ in parts:
            common[places] = True
    else:
        some = parts[:: len(parts) // FEW]
        held = np.zeros(cells, np.int16)
        for places, _ in some:
            held[places] += 1  # no operator holds a cell twice
        common = held >= COMMON * len(some)
    return np.where(common, np.cumsum(common, dtype=np.int32) - 1, np.int32(-1))


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
        places, values = stack.entries(index, 0, stack.samples)
        values = values.copy()
        if transform is not None:
            transform(torch.from_numpy(values))
        both.append(csr_array((values.astype(np.float64), places, [0, len(places)]), shape=(1, stack.samples**2)))
    apart = (both[0] - both[1]).data
    return float(apart @ apart)
