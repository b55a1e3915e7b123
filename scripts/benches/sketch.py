"""Neighbours and distances of many operators through their sketches, against all entries: recall, error, time, memory.

``scripts/bench sketch --operators 10000`` makes trajectories of operators that drift and end apart, finds the ten
nearest of each through sketches, and of some by all their entries (products in float64), and prints the recall, the
error of squared distances, seconds of both in the same process, and the memory that the search takes beside the
operators.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from analyze import Peak
from numpy.typing import NDArray
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.measure.distances import operator_distances
from repaudit.measure.null import null_inner
from repaudit.measure.sketched import nearest_operators, sketch_distances
from repaudit.operators.sketch import sketch
from repaudit.operators.stack import entries_of

NEAREST = 10
CHUNK = 2000


def trajectories(count: int, samples: int) -> list[Any]:
    """Sparse operators of 20 models that drift from their own clouds to their own ends."""
    rng, gauge = np.random.default_rng(0), ra.DiffusionGauge(perplexity=5)
    shared = rng.normal(size=(samples, 8))
    operators: list[Any] = []
    models = 20
    for model in range(models):
        start, end = shared + rng.normal(size=(samples, 8)), shared + 0.3 * rng.normal(size=(samples, 8))
        steps = count // models + (model < count % models)
        for step in range(steps):
            share = step / max(1, steps - 1)
            noise = 0.02 * rng.normal(size=(samples, 8))
            points = ((1 - share) * start + share * end + noise).astype(np.float32)
            operators.append(gauge(points).matrix)
    return operators


def nearest_exactly(operators: Sequence[Any], queries: Sequence[int]) -> NDArray[np.int64]:
    """The nearest others of some operators by all entries, as products of sparse rows in float64."""
    own = stacked_rows([operators[index] for index in queries]).toarray()
    moments = np.concatenate([moments_of(operators[k : k + CHUNK]) for k in range(0, len(operators), CHUNK)], axis=1)
    squares = np.empty((len(queries), len(operators)))
    for start in range(0, len(operators), CHUNK):
        squares[:, start : start + CHUNK] = -2 * (stacked_rows(operators[start : start + CHUNK]) @ own.T).T
    trace, total, square = moments
    squares += square[queries, None] + square[None]
    inner = null_inner(trace[queries, None], total[queries, None], trace[None], total[None], operators[0].shape[0])
    squares /= square[queries, None] + square[None] - 2 * inner
    squares[np.arange(len(queries)), queries] = np.inf
    return np.argpartition(squares, NEAREST, axis=1)[:, :NEAREST]


def stacked_rows(operators: Sequence[Any]) -> csr_array:
    """Operators as the rows of one sparse matrix."""
    parts = [entries_of(operator).tocoo() for operator in operators]
    side = parts[0].shape[0]
    places = np.concatenate([part.coords[0].astype(np.int64) * side + part.coords[1] for part in parts])
    pointers = np.cumsum([0, *(part.nnz for part in parts)])
    return csr_array((np.concatenate([part.data for part in parts]), places, pointers), (len(parts), side**2))


def moments_of(operators: Sequence[Any]) -> NDArray[np.float64]:
    """Trace, sum of entries and of their squares of each, (3, T)."""
    parts = [entries_of(operator) for operator in operators]
    return np.array([[p.diagonal().sum(), p.sum(), (p.data**2).sum()] for p in parts]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=1000, help="operators whose exact neighbours are known")
    options = parser.parse_args()
    operators = trajectories(options.operators, options.samples)
    with Peak() as sketching:
        start = time.perf_counter()
        made = [sketch(operator, options.size) for operator in operators]
        in_sketches = time.perf_counter() - start
    with Peak() as searching:
        start = time.perf_counter()
        neighbors, _ = nearest_operators(operators, NEAREST, sketches=made)
        in_search = time.perf_counter() - start
    queries = np.random.default_rng(1).permutation(len(operators))[: options.queries]
    start = time.perf_counter()
    truth = nearest_exactly(operators, queries.tolist())
    in_all = (time.perf_counter() - start) / len(queries) * len(operators)
    found = [(operators[index], made[index]) for index in queries]
    exact = operator_distances([operator for operator, _ in found], "calibrated")
    estimated = sketch_distances([one for _, one in found], "calibrated")
    off = ~np.eye(len(estimated), dtype=bool)
    errors = np.abs(estimated[off] ** 2 / exact[off] ** 2 - 1)
    recall = np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(neighbors[queries], truth, strict=True)])
    print(
        f"{len(operators)} operators of {options.samples} samples, sketches of {options.size} numbers, "
        f"torch threads {torch.get_num_threads()}\n\n"
        f"| what | seen |\n| --- | --- |\n| recall@{NEAREST}, of {len(queries)} drawn at random | {recall:.4f} |\n"
        f"| error of squared distances, median and p95 | {np.median(errors):.1%}, {np.quantile(errors, 0.95):.1%} |\n"
        f"| sketching | {in_sketches:.1f} s, {sketching.megabytes:.0f} MB |\n"
        f"| search and exact distances of candidates | {in_search:.1f} s, {searching.megabytes:.0f} MB |\n"
        f"| all pairs of all entries, from those | {in_all:.0f} s |"
    )


if __name__ == "__main__":
    main()
