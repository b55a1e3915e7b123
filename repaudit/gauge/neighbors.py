"""The nearest neighbours of every sample, ties at the cut included, without a matrix of all distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.distance.points import Cloud, row_panels
from repaudit.distance.squared import TOLERANCE, pair_distances, panel, squared_block_, squared_distances_
from repaudit.errors import ActivationError
from repaudit.gauge.smallest import merge_smallest_, smallest

BLOCK: Final = {"cpu": 4096, "cuda": 16384}
"""Samples to a side of the largest block of distances that is held at once."""

DOUBT: Final = 4
"""Distances that differ by at most this many roundings are computed again before one of them is left out."""

_EQUAL: Final = 1e-12
_MOST_PAIRS: Final = 2**18
_MOST_TIES: Final = 2**27
_PANEL_ENTRIES: Final = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True)
class Neighborhoods:
    """Some samples with the others within reach: ``squared`` is infinite where ``columns`` names no neighbour.

    Attributes
    ----------
    rows : (sample)
    columns, squared : (sample, neighbor)
    """

    rows: Tensor
    columns: Tensor
    squared: Tensor


def neighborhoods(points: Cloud, k: int) -> list[Neighborhoods]:
    """Return for every sample all others that are not farther than its ``k``-th nearest one.

    So a neighbourhood does not depend on the order of the samples: where several tie for the last place, all are in.
    Most samples have ``k`` neighbours and come first, together; those with ties come after.
    """
    count = len(points)
    if count <= BLOCK.get(points.samples.device.type, BLOCK["cpu"]):
        squared = torch.empty(count, count, dtype=points.samples.dtype, device=points.samples.device)
        return neighborhoods_within(squared_distances_(squared, points), points, k)
    values, columns = _nearest(points, min(k + 1, count - 1))
    everyone = panel(points, slice(0, count), values.dtype)

    def distances_of(rows: Tensor) -> Tensor:
        block = torch.empty(len(rows), count, dtype=values.dtype, device=values.device)
        return squared_block_(block, points, panel(points, rows, values.dtype), everyone)

    return _neighborhoods(values, columns, points, k, distances_of)


def neighborhoods_within(squared: Tensor, points: Cloud, k: int) -> list[Neighborhoods]:
    """Return the neighbourhoods of :func:`neighborhoods` from all squared distances, ``(sample, sample)``."""
    count = len(squared)
    wanted = min(k + 1, count - 1)
    squared.fill_diagonal_(math.inf)
    values, columns = smallest(squared, wanted)
    squared.fill_diagonal_(0.0)
    return _neighborhoods(values, columns, points, k, lambda rows: squared[rows])


def within(hoods: list[Neighborhoods], points: Cloud, k: int) -> list[Neighborhoods]:
    """Return the neighbourhoods of the ``k`` nearest within wider ones."""
    narrow = []
    for hood in hoods:
        if k >= hood.squared.shape[1]:
            narrow.append(hood)
            continue
        squared = cut(hood.squared, hood.rows, hood.columns, points, k)
        narrow.append(_compact(hood.rows, hood.columns, squared))
    return narrow


def cut(squared: Tensor, rows: Tensor, columns: Tensor | None, points: Cloud, k: int) -> Tensor:
    """Return squared distances with infinity beyond each row's ``k``-th smallest, ties kept.

    What lies so near to the limit that rounding could decide is computed again in float64. Where that would be very
    much, as of data with many ties, all of it is kept.

    Parameters
    ----------
    squared : (row, neighbor)
        Infinite where there is no neighbour, such as between a sample and itself.
    rows : (row)
        Samples that the rows stand for.
    columns : (row, neighbor), optional
        Samples that the entries stand for; all of them in order if not given.
    """
    if k >= squared.shape[1]:
        return squared
    limit = smallest(squared, k)[0].amax(1, keepdim=True)
    margin = DOUBT * TOLERANCE[squared.dtype]
    inside = squared <= limit * (1 + margin)
    kept = torch.where(inside, squared, math.inf)
    doubtful = (inside.sum(1) > k).nonzero()[:, 0]
    if len(doubtful):
        near = kept[doubtful]
        edge = (near >= limit[doubtful] * (1 - margin)) & (near < math.inf)
        if int(edge.sum()) <= _MOST_PAIRS:
            exact = near.double()
            row, place = edge.nonzero(as_tuple=True)
            other = place if columns is None else columns[doubtful][row, place]
            exact[row, place] = pair_distances(points, rows[doubtful][row], other)
            last = exact.kthvalue(k, dim=1, keepdim=True).values
            kept[doubtful] = torch.where(exact <= last * (1 + _EQUAL), near, math.inf)
    return kept


def nearest_neighbors(points: Cloud, k: int) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices of the ``k`` nearest others, ``(sample, k)`` each, nearest first."""
    values, columns = _nearest(points, k)
    values, order = values.sort(1)
    return values, columns.gather(1, order)


def _nearest(points: Cloud, k: int) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices of the ``k`` nearest others, in no order, from blocks above the diagonal."""
    count, dtype, device = len(points), points.samples.dtype, points.samples.device
    values = torch.full((count, k), math.inf, dtype=dtype, device=device)
    columns = torch.zeros(count, k, dtype=torch.int64, device=device)
    size = -(-count // -(-count // BLOCK.get(device.type, BLOCK["cpu"])))
    blocks = list(row_panels(count, size))
    buffer = torch.empty(size, size, dtype=dtype, device=device)

    def piece(rows: slice, others: slice) -> Tensor:
        height, width = rows.stop - rows.start, others.stop - others.start
        return buffer.view(-1)[: height * width].view(height, width)

    # the blocks on the diagonal first, whose neighbours bound the others'
    for rows in blocks:
        block = squared_distances_(piece(rows, rows), points.part(rows)).fill_diagonal_(math.inf)
        known = min(k, len(block) - 1)
        values[rows, :known], columns[rows, :known] = smallest(block, known)
        columns[rows] += rows.start
    for i, across in enumerate(blocks):
        left = panel(points, across, dtype)
        for down in blocks[i + 1 :]:
            block = squared_block_(piece(across, down), points, left, panel(points, down, dtype))
            merge_smallest_(values[across], columns[across], block, down.start)
            merge_smallest_(values[down], columns[down], block.mT, across.start)
    return values, columns


def exactly(squared: Tensor, rows: Tensor, columns: Tensor | None, points: Cloud) -> Tensor:
    """Return squared distances computed again from the differences, float64, infinite where they were."""
    row, place = (squared < math.inf).nonzero(as_tuple=True)
    exact = torch.full_like(squared, math.inf, dtype=torch.float64)
    exact[row, place] = pair_distances(points, rows[row], place if columns is None else columns[row, place])
    return exact


def _neighborhoods(
    values: Tensor, columns: Tensor, points: Cloud, k: int, distances_of: Callable[[Tensor], Tensor]
) -> list[Neighborhoods]:
    """Split samples with ``k`` neighbours from those whose next one is too near to be left out unseen."""
    everyone = torch.arange(len(values), device=values.device)
    if values.shape[1] <= k:
        return [Neighborhoods(everyone, columns, values)]
    following, farthest = values.max(1)
    for found in (values, columns):  # the last one takes the place of the farthest
        found[everyone, farthest] = found[:, k]
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    crowded = following <= values.amax(1) * (1 + DOUBT * TOLERANCE[values.dtype])
    if not bool(crowded.any()):
        return [Neighborhoods(everyone, columns, values)]
    parts, tied = _parts(everyone[crowded], len(values)), []
    for hood in _bounded(_crowded(distances_of(part), part, points, k) for part in parts):
        if hood.columns.shape[1] > k:
            tied.append(hood)
            continue
        columns[hood.rows], values[hood.rows], crowded[hood.rows] = hood.columns, hood.squared, False
    if not tied:
        return [Neighborhoods(everyone, columns, values)]
    few = ~crowded
    ordinary = Neighborhoods(everyone[few], columns[few], values[few])
    return [ordinary, *tied] if len(ordinary.rows) else tied


def _crowded(squared: Tensor, rows: Tensor, points: Cloud, k: int) -> Neighborhoods:
    """Return neighbourhoods of any size, from the squared distances of some samples to all."""
    everyone = torch.arange(squared.shape[1], device=squared.device)
    squared = squared.masked_fill(everyone == rows[:, None], math.inf)
    return _compact(rows, everyone.expand_as(squared), cut(squared, rows, None, points, k))


def _compact(rows: Tensor, columns: Tensor, squared: Tensor) -> Neighborhoods:
    """Leave out the places that no row needs."""
    width = int((squared < math.inf).sum(1).max())
    values, order = smallest(squared, width)
    return Neighborhoods(rows, columns.gather(1, order), values)


def _bounded(crowded: Iterable[Neighborhoods]) -> Iterator[Neighborhoods]:
    """Refuse neighbourhoods that together are as large as a matrix of all pairs of very many samples."""
    entries = 0
    for hood in crowded:
        entries += hood.squared.numel()
        if entries > _MOST_TIES:
            raise ActivationError(
                f"more than {_MOST_TIES} pairs of samples tie for a place among the nearest neighbours: expected "
                "activations that tell samples apart; leave out duplicates, or this layer"
            )
        yield hood


def _parts(rows: Tensor, count: int) -> Iterator[Tensor]:
    size = max(1, _PANEL_ENTRIES.get(rows.device.type, _PANEL_ENTRIES["cpu"]) // count)
    return (rows[part] for part in row_panels(len(rows), size))
