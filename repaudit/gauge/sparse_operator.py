"""kNN-sparse operators of the kernels with a local or fixed bandwidth: the kernel on the nearest neighbours only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from repaudit.distance.points import Cloud
from repaudit.gauge.bandwidth import floored
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.neighbors import Neighborhoods, neighborhoods, within
from repaudit.gauge.normalize import sparse_markov
from repaudit.gauge.smallest import smallest


def sparse_operator(
    points: Cloud, kernel: Kernel, fixed: float | None, knn: int, neighbors: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return ``P`` as a sparse COO tensor, its degrees and the counts of diagnostics.

    An entry stays where either of its two samples is among the ``neighbors`` nearest of the other, ties included, and
    so does the diagonal; with ``neighbors = N - 1`` this is the dense operator.
    """
    count, dtype = len(points), points.samples.dtype
    hoods = neighborhoods(points, max(neighbors, knn if fixed is None else 1))
    reach = torch.full((count,), fixed or 0.0, dtype=torch.float64, device=points.samples.device)
    duplicates = 0
    for hood in hoods:
        if fixed is None:
            reach[hood.rows] = smallest(hood.squared, knn)[0].amax(1).double().sqrt()
        duplicates += int((hood.squared == 0).any(1).sum())
    collapsed = duplicates == count and bool((points.samples == points.samples[0]).all())
    scale, floors = floored(reach, 0.0 if collapsed else points.spread)
    low, high, between = _undirected(within(hoods, points, neighbors), count)
    weights = kernel.pairs(between, scale[low], scale[high], dtype)
    matrix, degrees = sparse_markov(count, low, high, weights, kernel, dtype)
    return matrix, degrees, {"duplicates": duplicates, "collapsed": collapsed, "floored": floors}


def _undirected(hoods: list[Neighborhoods], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair of neighbours once: the lower index, the higher one, the squared distance in float64."""
    rows = torch.cat([hood.rows.repeat_interleave(hood.columns.shape[1]) for hood in hoods])
    columns = torch.cat([hood.columns.flatten() for hood in hoods])
    squared = torch.cat([hood.squared.flatten() for hood in hoods])
    near = squared < math.inf
    rows, columns, squared = rows[near], columns[near], squared[near]
    names = torch.minimum(rows, columns) * count + torch.maximum(rows, columns)
    pairs, index = torch.unique(names, return_inverse=True)
    between = torch.full((len(pairs),), math.inf, dtype=torch.float64, device=rows.device)
    between.scatter_reduce_(0, index, squared.double(), "amin")
    return pairs // count, pairs % count, between
