"""Row-wise Wasserstein barycenter of sparse operators, each row on the samples that it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from repaudit.merge.barycenter import Barycenter, Reached, Settings, exact_row, of_rows, projections
from repaudit.merge.cost import SparseCost
from repaudit.merge.projections import Projections, Rows, halvings, in_passes
from repaudit.operators.convert import as_sparse
from repaudit.operators.sparse import SparseDiffusionOperator

Array = NDArray[np.float64]

_ENTRIES: Final = {"cpu": 2**19, "cuda": 2**27}


@dataclass(frozen=True)
class _Batch:
    """Rows with supports of similar size, padded to the largest: ``samples (row, place)``, -1 where there is none."""

    samples: NDArray[np.int64]
    masses: Array
    costs: Array

    @property
    def there(self) -> NDArray[np.bool_]:
        return self.samples >= 0


def sparse_barycenter(matrices: list[Tensor], weights: list[float], cost: SparseCost, settings: Settings) -> Barycenter:
    """Compute the barycenter of sparse operators, sparse: per row, on the union of the supports of the operators' rows.

    It is that of the dense form, which lies there too. Time and memory are of the order of ``support²`` per row and of
    a batch of rows.
    """
    kept = [index for index, weight in enumerate(weights) if weight > 0]
    shares = [weights[index] for index in kept]
    parts = [SparseDiffusionOperator(matrices[index].detach().coalesce()).csr for index in kept]
    union = csr_array(sum(part.sign() for part in parts))
    union.eliminate_zeros()
    union.sort_indices()
    device = matrices[0].device
    project = projections(shares, settings, device)
    values, reached = np.zeros_like(union.data), Reached()
    sizes = np.diff(union.indptr)

    def solve(rows: Tensor, limit: int) -> Rows:
        batch = _gather(rows.numpy(), union, parts, cost)
        return _exact(batch, shares) if settings.reg == 0 else _entropic(batch, project, settings.reg, device, limit)

    entries = _ENTRIES.get(device.type, 2**19)
    for rows, found in in_passes(
        lambda left: _similar(left, sizes, entries), solve, len(sizes), settings.tolerance, settings.max_iterations
    ):
        places = union.indptr[rows.numpy()][:, None] + np.arange(found.rows.shape[1])
        there = np.arange(found.rows.shape[1]) < sizes[rows.numpy()][:, None]
        values[places[there]] = found.rows.cpu().numpy()[there]
        reached.see(found)
    merged = csr_array((values, union.indices, union.indptr), shape=union.shape)
    merged.eliminate_zeros()
    return Barycenter(as_sparse(merged).to(device), reached.error, reached.iterations)


def _similar(rows: Tensor, sizes: NDArray[Any], entries: int) -> Iterator[Tensor]:
    """Split rows into batches of similar sizes, the largest first."""
    order = rows[torch.from_numpy(np.argsort(-sizes[rows.numpy()], kind="stable"))]
    start = 0
    while start < len(order):
        count = max(1, entries // int(sizes[order[start]]) ** 2)
        yield order[start : start + count]
        start += count


def _gather(rows: NDArray[np.int64], union: csr_array, parts: list[csr_array], cost: SparseCost) -> _Batch:
    size = int(np.diff(union.indptr)[rows].max())
    samples = np.full((len(rows), size), -1, dtype=np.int64)
    masses = np.zeros((len(rows), len(parts), size))
    costs = np.full((len(rows), size, size), np.inf)
    for at, row in enumerate(rows):
        own = union.indices[union.indptr[row] : union.indptr[row + 1]].astype(np.int64)
        samples[at, : len(own)] = own
        costs[at, : len(own), : len(own)] = cost.among(own)
        for operator, part in enumerate(parts):
            entries = slice(part.indptr[row], part.indptr[row + 1])
            present = part.data[entries] > 0
            masses[at, operator, np.searchsorted(own, part.indices[entries][present])] = part.data[entries][present]
    return _Batch(samples, masses, costs)


def _exact(batch: _Batch, weights: list[float]) -> Rows:
    solved = np.zeros(batch.samples.shape)
    for row, own in enumerate(batch.there):
        solved[row, own] = exact_row(batch.masses[row][:, own], weights, batch.costs[row][np.ix_(own, own)])
    return Rows(torch.from_numpy(solved), torch.zeros(len(solved)), torch.ones(len(solved), dtype=torch.int64))


def _entropic(batch: _Batch, project: Projections, reg: float, device: torch.device, limit: int) -> Rows:
    """Do the rows whose kernel is stored together, and the others, which need more memory, few of a kind at a time."""
    masses, costs, there = (
        torch.from_numpy(part).to(device) for part in (batch.masses, batch.costs / reg, batch.there)
    )
    largest = torch.where(costs.isfinite(), costs, 0).amax((1, 2))
    ways = np.array([halvings(float(one)) for one in largest])
    few = max(1, len(ways) // masses.shape[1])
    groups = [torch.from_numpy(np.flatnonzero(ways == 0))]
    for way in sorted(set(ways[ways > 0].tolist())):
        groups += torch.split(torch.from_numpy(np.flatnonzero(ways == way)), few)
    merged, errors = torch.zeros_like(masses[:, 0]), masses.new_zeros(len(masses))
    iterations = torch.zeros(len(masses), dtype=torch.int64, device=device)
    for rows in groups:
        if len(rows):
            found = of_rows(project, masses[rows], costs[rows], limit, there[rows])
            merged[rows], errors[rows], iterations[rows] = found.rows, found.errors, found.iterations
    return Rows(merged, errors, iterations)
