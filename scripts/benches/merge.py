"""Wasserstein barycenter of all rows at once beside POT row by row, each row as near to the converged one."""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings

import numpy as np
import torch

import repaudit as ra
from repaudit.merge.barycenter import barycenter, ground_cost


def operators(count: int, models: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, 16, generator=generator)
    gauge = ra.DiffusionGauge()
    return [gauge(base + 0.3 * torch.randn(count, 16, generator=generator)).matrix for _ in range(models)]


def pot_row(rows: np.ndarray, truth: np.ndarray, cost: np.ndarray, reg: float, error: float) -> float:
    """Seconds POT takes for one row to come as near (L1) to the converged barycenter as ours: iterations double."""
    import ot

    limit = 10
    while True:
        start = time.perf_counter()
        found = ot.bregman.barycenter(rows, cost, reg, numItermax=limit, stopThr=0, warn=False)
        elapsed = time.perf_counter() - start
        if np.abs(found / found.sum() - truth).sum() <= error or limit > 20_000:
            return elapsed
        limit = int(limit * 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--reg", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=4, help="rows that POT is timed on; scaled to all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"K={options.models} reg={options.reg} threads={torch.get_num_threads()} load={os.getloadavg()[0]:.2f}")
    for count in options.samples:
        matrices = operators(count, options.models)
        weights = [1 / options.models] * options.models
        cost = ground_cost(matrices, weights)
        start = time.perf_counter()
        ours = barycenter(matrices, weights, cost, options.reg, debiased=False, tolerance=options.tolerance)
        elapsed = time.perf_counter() - start
        rows = np.linspace(0, count - 1, options.rows).astype(int)
        some = [matrix[torch.from_numpy(rows)] for matrix in matrices]
        truth = barycenter(some, weights, cost, options.reg, debiased=False, tolerance=1e-9, max_iterations=20_000).rows
        errors = (ours.rows[torch.from_numpy(rows)] - truth).abs().sum(1).tolist()
        seconds = [
            pot_row(
                np.stack([m[i].double().numpy() for m in some], axis=1), truth[i].numpy(), cost.numpy(), options.reg, e
            )
            for i, e in enumerate(errors)
        ]
        total = statistics.mean(seconds) * count
        print(
            f"N={count}: repaudit {elapsed:.2f} s, {ours.iterations} iterations, error {ours.marginal_error:.1e}, "
            f"distance {max(errors):.1e}; POT {total:.1f} s, from {len(rows)} rows; {total / elapsed:.1f}x",
            flush=True,
        )
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
