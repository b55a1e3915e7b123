"""Wasserstein barycenter of all rows at once beside POT row by row, with as many iterations for the row."""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import repaudit as ra
from repaudit.merge.barycenter import Barycenter, Settings, barycenter
from repaudit.merge.cost import SparseCost, ground_cost
from repaudit.merge.supports import sparse_barycenter

Merge = Callable[[list[torch.Tensor], bool], Barycenter]


def operators(count: int, models: int, gauge: ra.DiffusionGauge) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, 16, generator=generator)
    return [gauge(base + 0.3 * torch.randn(count, 16, generator=generator)).matrix for _ in range(models)]


def pot_row(rows: np.ndarray, cost: np.ndarray, reg: float, iterations: int) -> tuple[float, np.ndarray]:
    """Seconds POT takes for one row with as many iterations; they are not over-relaxed, so its error is larger."""
    import ot

    start = time.perf_counter()
    found = ot.bregman.barycenter(rows, cost, reg, numItermax=iterations, stopThr=0, warn=False)
    return time.perf_counter() - start, found / found.sum()


def timed(merge: Merge, matrices: list[torch.Tensor], debiased: bool) -> tuple[float, Barycenter]:
    start = time.perf_counter()
    found = merge(matrices, debiased)
    return time.perf_counter() - start, found


def measure(count: int, sparse: bool, options: argparse.Namespace) -> str:
    gauge = ra.DiffusionGauge(knn=15, neighbors=45 if sparse else None)
    matrices = operators(count, options.models, gauge)
    weights = [1 / options.models] * options.models
    rules: dict[str, Any] = {"tolerance": options.tolerance}

    def merge(rows: list[torch.Tensor], debiased: bool) -> Barycenter:
        if sparse:
            return sparse_barycenter(rows, weights, scale, Settings(options.reg, debiased, **rules))
        return barycenter(rows, weights, scale, options.reg, debiased=debiased, **rules)

    scale: Any = SparseCost.of(matrices, weights) if sparse else ground_cost(matrices, weights)
    elapsed, ours = timed(merge, matrices, False)
    longer, debiased = timed(merge, matrices, True)
    drawn = np.sort(np.random.default_rng(0).choice(count, min(options.rows, count), replace=False))
    seconds, off = [], 0.0
    merged = ours.rows.to_dense() if sparse else ours.rows
    dense = [matrix.to_dense() if sparse else matrix for matrix in matrices]
    for row in drawn:
        stacked = torch.stack([matrix[row] for matrix in dense], dim=1).double().numpy()
        support = np.flatnonzero(stacked.any(axis=1)) if sparse else np.arange(count)
        cost = scale.among(support) if sparse else scale.numpy()
        some = [torch.from_numpy(part[support][None]) for part in stacked.T]
        alone = barycenter(some, weights, torch.from_numpy(cost), options.reg, debiased=False, **rules)
        spent, found = pot_row(stacked[support], cost, options.reg, alone.iterations)
        seconds.append(spent)
        off = max(off, float(np.abs(found - merged[row].numpy()[support]).sum()))
    total = statistics.mean(seconds) * count
    return (
        f"N={count} {'sparse' if sparse else 'dense'}: repaudit {elapsed:.2f} s, {ours.iterations} iterations, "
        f"marginal error {ours.marginal_error:.1e} (debiased {longer:.2f} s, {debiased.iterations} iterations, "
        f"{debiased.marginal_error:.1e}); POT {total:.1f} s, scaled from {len(drawn)} rows drawn at random; "
        f"{total / elapsed:.1f}x; rows differ by {off:.1e} (L1) at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--reg", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=32, help="rows that POT is timed on; scaled to all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"K={options.models} reg={options.reg} threads={torch.get_num_threads()} load={os.getloadavg()[0]:.2f}")
    for count in options.samples:
        for sparse in (False, True):
            print(measure(count, sparse, options), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
