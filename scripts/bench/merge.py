"""Wasserstein barycenter of all rows at once beside POT row by row, at equal marginal error, in one interleaved run."""

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


def pot_row(matrices: list[torch.Tensor], row: int, cost: np.ndarray, reg: float, error: float) -> tuple[float, float]:
    """Seconds and reached marginal error of POT on one row: its iterations grow until the error is that of ours."""
    import ot

    rows = np.stack([matrix[row].double().numpy() for matrix in matrices], axis=1)
    limit = 10
    while True:
        start = time.perf_counter()
        found = ot.bregman.barycenter(rows, cost, reg, numItermax=limit, stopThr=0, warn=False)
        elapsed = time.perf_counter() - start
        reached = marginal_error(rows, found, cost, reg)
        if reached <= error or limit > 20_000:
            return elapsed, reached
        limit *= 2


def marginal_error(rows: np.ndarray, found: np.ndarray, cost: np.ndarray, reg: float) -> float:
    """How far the rows are from what the couplings' first marginals are, when their second ones are the barycenter."""
    kernel = np.exp(-cost / reg)
    worst = 0.0
    for k in range(rows.shape[1]):
        v = np.ones(len(kernel))
        for _ in range(3000):
            u = rows[:, k] / (kernel @ v)
            v = found / (kernel @ u)
        worst = max(worst, float(np.abs(u * (kernel @ v) - rows[:, k]).sum()))
    return worst


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
        pot = [pot_row(matrices, int(row), cost.numpy(), options.reg, ours.marginal_error) for row in rows]
        total = statistics.median(seconds for seconds, _ in pot) * count
        print(
            f"N={count}: repaudit {elapsed:.2f} s ({ours.iterations} iterations, error {ours.marginal_error:.1e}); "
            f"POT {total:.1f} s (median of {len(rows)} rows x {count}, error {max(e for _, e in pot):.1e}); "
            f"{total / elapsed:.1f}x",
            flush=True,
        )
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
