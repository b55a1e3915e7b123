"""kNN-sparse operators: the same kernel on the nearest neighbours alone, without a matrix of all distances."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from repaudit.distance.points import Cloud, row_panels
from repaudit.distance.squared import panel, squared_block_
from repaudit.gauge.bandwidth import floored
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.normalize import sparse_markov
from repaudit.gauge.smallest import smallest

_ENTRIES: Final = {"cpu": 2**22, "cuda": 2**27}


def nearest_neighbors(points: Cloud, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and indices of the ``k`` nearest other samples, ``(sample, k)`` each, nearest first."""
    count, dtype, device = len(points), points.samples.dtype, points.samples.device
    squared = torch.empty(count, k, dtype=dtype, device=device)
    index = torch.empty(count, k, dtype=torch.int64, device=device)
    everyone = panel(points, slice(0, count), dtype)
    size = max(1, _ENTRIES.get(device.type, 2**22) // count)
    buffer = torch.empty(min(size, count), count, dtype=dtype, device=device)
    for part in row_panels(count, size):
        rows = buffer[: part.stop - part.start]
        squared_block_(rows, points, panel(points, part, dtype), everyone)
        rows.diagonal(part.start).fill_(math.inf)
        values, columns = smallest(rows, k)
        squared[part], order = values.sort(1)
        index[part] = columns.gather(1, order)
    return squared, index


def sparse_operator(
    points: Cloud, kernel: Kernel, fixed: float | None, knn: int, neighbors: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``P`` as a sparse COO tensor, its degrees and the counts of diagnostics.

    An entry stays where either of its two samples is among the ``neighbors`` nearest of the other, and so does the
    diagonal; with ``neighbors = N - 1`` this is the dense operator.
    """
    count, dtype = len(points), points.samples.dtype
    squared, index = nearest_neighbors(points, max(neighbors, knn if fixed is None else 1))
    reach = squared[:, knn - 1].double().sqrt() if fixed is None else torch.full_like(squared[:, 0], fixed).double()
    duplicates = int((squared[:, 0] == 0).sum())
    collapsed = duplicates == count and bool((points.samples == points.samples[0]).all())
    scale, floors = floored(reach, 0.0 if collapsed else points.spread)
    low, high, between = _undirected(squared[:, :neighbors], index[:, :neighbors])
    weights = kernel.pairs(between, scale[low], scale[high], dtype)
    matrix, degrees = sparse_markov(count, low, high, weights, kernel, dtype)
    return matrix, degrees, {"duplicates": duplicates, "collapsed": collapsed, "floored": floors}


def _undirected(squared: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of neighbours once: the lower index, the higher one, the squared distance in float64."""
    count, k = index.shape
    own = torch.arange(count, device=index.device).repeat_interleave(k)
    other = index.flatten()
    pairs, place = torch.unique(torch.minimum(own, other) * count + torch.maximum(own, other), return_inverse=True)
    between = torch.full((len(pairs),), math.inf, dtype=torch.float64, device=index.device)
    between.scatter_reduce_(0, place, squared.flatten().double(), "amin")
    return pairs // count, pairs % count, between
