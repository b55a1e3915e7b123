"""Operators of fixed perplexity: affinities of neighbourhoods, made symmetric, corrected for density, normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from repaudit.distance.points import Cloud, cache_panels
from repaudit.distance.squared import squared_distances_
from repaudit.gauge.bandwidth import FLOOR
from repaudit.gauge.neighbors import (
    BLOCK,
    Neighborhoods,
    cut,
    exactly,
    neighborhoods,
    neighborhoods_within,
    within,
)
from repaudit.gauge.normalize import markov_
from repaudit.gauge.perplexity import Spreading, spread_over_neighbors
from repaudit.operators.convert import from_entries

SPARSE: Final = 8
"""An operator is kept sparse where it has at least this many times as many samples as a neighbourhood has."""


@dataclass(frozen=True)
class Scale:
    """A perplexity, and the number of nearest neighbours that it looks at."""

    perplexity: float
    neighbors: int

    def is_sparse(self, count: int) -> bool:
        """Whether at most a quarter of the entries of an operator on so many samples can differ from zero."""
        return SPARSE * self.neighbors <= count


@dataclass(frozen=True)
class Computed:
    """A dense or sparse ``P``, its degrees, and the counts of its diagnostics."""

    matrix: Tensor
    degrees: Tensor
    counts: dict[str, int | bool]


def perplexity_operators(points: Cloud, scales: Sequence[Scale], alpha: float) -> list[Computed]:
    """Return the operators of the same samples at several scales, from one computation of the distances.

    ``K = (p_j|i + p_i|j) / 2`` without self loops, ``K_ij / (q_i q_j)^alpha``, ``P = D^-1 K``.
    """
    count, dtype, device = len(points), points.samples.dtype, points.samples.device
    if count > BLOCK.get(device.type, BLOCK["cpu"]) and all(scale.is_sparse(count) for scale in scales):
        widest = neighborhoods(points, max(scale.neighbors for scale in scales))
        return [_sparse(within(widest, points, scale.neighbors), scale, points, alpha) for scale in scales]
    squared = squared_distances_(torch.empty(count, count, dtype=dtype, device=device), points)
    return [
        _sparse(neighborhoods_within(squared, points, scale.neighbors), scale, points, alpha)
        if scale.is_sparse(count)
        else _dense(squared, scale, points, alpha)
        for scale in scales
    ]


def _sparse(hoods: Sequence[Neighborhoods], scale: Scale, points: Cloud, alpha: float) -> Computed:
    count = len(points)
    spread = [
        spread_over_neighbors(hood.squared, scale.perplexity, _floor(points), partial(_again, hood, points))
        for hood in hoods
    ]
    kernel = _symmetric(hoods, spread, count)
    starts, columns, entries = kernel.indptr[:-1], kernel.indices, np.diff(kernel.indptr)
    weight = np.add.reduceat(kernel.data, starts) ** -alpha
    values = kernel.data * np.repeat(weight, entries) * weight[columns]
    degrees = np.add.reduceat(values, starts)
    values /= np.repeat(degrees, entries)
    dtype, device = points.samples.dtype, points.samples.device
    index = torch.from_numpy(np.stack([np.repeat(np.arange(count), entries), columns]))
    chances = torch.from_numpy(values).to(dtype)
    matrix = from_entries(index, chances, (count, count), is_coalesced=True)
    duplicates = sum(int((hood.squared.amin(1) == 0).sum()) for hood in hoods)
    counts = _counts(points, duplicates, spread)
    return Computed(matrix.to(device), torch.from_numpy(degrees).to(device), counts)


def _again(hood: Neighborhoods, points: Cloud, chosen: Tensor) -> Tensor:
    """Return squared distances of chosen rows from their differences."""
    return exactly(hood.squared[chosen], hood.rows[chosen], hood.columns[chosen], points)


def _symmetric(hoods: Sequence[Neighborhoods], spread: Sequence[Spreading], count: int) -> csr_array:
    """``(p_j|i + p_i|j) / 2`` in float64, the entries of each row in the order of their columns."""
    names = torch.cat([hood.rows for hood in hoods]).cpu().numpy()
    widths = np.concatenate([np.full(len(hood.rows), hood.columns.shape[1]) for hood in hoods])
    columns = torch.cat([hood.columns.flatten() for hood in hoods]).cpu().numpy()
    values = torch.cat([one.probability.flatten() for one in spread]).double().cpu().numpy() / 2
    stacked = csr_array((values, columns, np.concatenate([[0], widths.cumsum()])), shape=(count, count))
    given = stacked[np.argsort(names)]
    given.sort_indices()  # sums of what is in order are fast
    return csr_array(given + given.T.tocsr())


def _dense(squared: Tensor, scale: Scale, points: Cloud, alpha: float) -> Computed:
    count = len(squared)
    kernel = torch.zeros_like(squared)
    few = 2 * scale.neighbors <= count <= BLOCK["cpu"]  # then choosing the neighbours costs less than all others do
    duplicates, spread = (_fill_neighbors if few else _fill_all)(kernel, squared, scale, points)
    _symmetrize_(kernel)
    degrees = markov_(kernel, kernel.sum(1, dtype=torch.float64), alpha)
    return Computed(kernel, degrees, _counts(points, duplicates, spread))


def _fill_neighbors(kernel: Tensor, squared: Tensor, scale: Scale, points: Cloud) -> tuple[int, list[Spreading]]:
    """Write the probabilities of each row's neighbours into a kernel of zeros; return duplicates and spreadings."""
    duplicates, spread = 0, []
    for hood in neighborhoods_within(squared, points, scale.neighbors):
        again = partial(_again, hood, points)
        spread.append(spread_over_neighbors(hood.squared, scale.perplexity, _floor(points), again))
        kernel[hood.rows[:, None], hood.columns] = spread[-1].probability
        duplicates += int((hood.squared.amin(1) == 0).sum())
    return duplicates, spread


def _fill_all(kernel: Tensor, squared: Tensor, scale: Scale, points: Cloud) -> tuple[int, list[Spreading]]:
    """Write the probabilities of whole rows, a panel at a time; return duplicates and spreadings."""
    count, everyone = len(squared), torch.arange(len(squared), device=squared.device)
    duplicates, spread = 0, []
    for part in cache_panels(squared):
        rows = squared[part].clone()
        rows.diagonal(part.start).fill_(math.inf)
        duplicates += int((rows == 0).any(1).sum())
        rows = cut(rows, everyone[part], None, points, scale.neighbors) if scale.neighbors < count - 1 else rows
        again = partial(_again_among_all, rows, everyone[part], points)
        spread.append(spread_over_neighbors(rows, scale.perplexity, _floor(points), again))
        kernel[part] = spread[-1].probability
    return duplicates, spread


def _again_among_all(squared: Tensor, names: Tensor, points: Cloud, chosen: Tensor) -> Tensor:
    """Return squared distances of chosen rows to all samples from their differences."""
    return exactly(squared[chosen], names[chosen], None, points)


def _symmetrize_(matrix: Tensor) -> None:
    """Replace a matrix by the mean of it and its transpose, a pair of blocks at a time."""
    blocks = list(cache_panels(matrix))
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            mean = (matrix[rows, columns] + matrix[columns, rows].mT) / 2
            matrix[rows, columns] = mean
            matrix[columns, rows] = mean.mT


def _floor(points: Cloud) -> float:
    return FLOOR * (points.spread if points.spread > 0 else 1.0)


def _counts(points: Cloud, duplicates: int, spread: Sequence[Spreading]) -> dict[str, int | bool]:
    collapsed = duplicates == len(points) and bool((points.samples == points.samples[0]).all())
    return {
        "duplicates": duplicates,
        "collapsed": collapsed,
        "floored": sum(one.floored for one in spread),
        "unheld": sum(one.unheld for one in spread),
    }
