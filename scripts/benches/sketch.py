"""Neighbours and distances of many operators through their sketches, against all entries: recall, error, time, memory.

``scripts/bench sketch --operators 10000`` makes trajectories of operators that drift and end apart, finds the ten
nearest of each with and without sketches, and prints the recall, the error of squared distances, seconds of both in
the same process, and the memory that the search takes beside the operators.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from analyze import Peak

import repaudit as ra
from repaudit.measure.distances import operator_distances
from repaudit.measure.sketched import nearest_operators, sketch_distances
from repaudit.operators.sketch import sketch

NEAREST = 10


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--size", type=int, default=4096)
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
    start = time.perf_counter()
    exact = operator_distances(operators, "calibrated", memory="8GB")
    in_all = time.perf_counter() - start
    some = slice(0, min(1000, len(operators)))
    estimated = sketch_distances(made[some], "calibrated")
    off = ~np.eye(len(estimated), dtype=bool)
    errors = np.abs(estimated[off] ** 2 / exact[some, some][off] ** 2 - 1)
    np.fill_diagonal(exact, np.inf)
    truth = np.argpartition(exact, NEAREST, axis=1)[:, :NEAREST]
    recall = np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(neighbors, truth, strict=True)])
    print(
        f"{len(operators)} operators of {options.samples} samples, sketches of {options.size} numbers, "
        f"torch threads {torch.get_num_threads()}\n\n"
        f"| what | seen |\n| --- | --- |\n| recall@{NEAREST} | {recall:.4f} |\n"
        f"| error of squared distances, median and p95 | {np.median(errors):.1%}, {np.quantile(errors, 0.95):.1%} |\n"
        f"| sketching | {in_sketches:.1f} s, {sketching.megabytes:.0f} MB |\n"
        f"| search and exact distances of candidates | {in_search:.1f} s, {searching.megabytes:.0f} MB |\n"
        f"| all pairs of all entries | {in_all:.1f} s |"
    )


if __name__ == "__main__":
    main()
