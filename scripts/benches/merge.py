"""Wasserstein barycenter of all rows at once beside POT row by row, with as many iterations for the row."""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings

import numpy as np
import torch

import repaudit as ra
from repaudit.merge.barycenter import Barycenter, barycenter, ground_cost


def operators(count: int, models: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, 16, generator=generator)
    gauge = ra.DiffusionGauge()
    return [gauge(base + 0.3 * torch.randn(count, 16, generator=generator)).matrix for _ in range(models)]


def pot_row(rows: np.ndarray, cost: np.ndarray, reg: float, iterations: int) -> tuple[float, np.ndarray]:
    """Seconds POT takes for one row with as many of the same iterations, so with the same marginal error."""
    import ot

    start = time.perf_counter()
    found = ot.bregman.barycenter(rows, cost, reg, numItermax=iterations, stopThr=0, warn=False)
    return time.perf_counter() - start, found / found.sum()


def measure(count: int, options: argparse.Namespace) -> str:
    matrices = operators(count, options.models)
    weights = [1 / options.models] * options.models
    cost = ground_cost(matrices, weights)

    def merge(rows: list[torch.Tensor], debiased: bool) -> tuple[float, Barycenter]:
        start = time.perf_counter()
        found = barycenter(rows, weights, cost, options.reg, debiased=debiased, tolerance=options.tolerance)
        return time.perf_counter() - start, found

    elapsed, ours = merge(matrices, False)
    longer, debiased = merge(matrices, True)
    drawn = np.sort(np.random.default_rng(0).choice(count, min(options.rows, count), replace=False))
    seconds, off = [], 0.0
    for row in drawn:
        some = [matrix[row : row + 1] for matrix in matrices]
        alone = merge(some, False)[1]
        stacked = torch.cat(some).mT.double().numpy()
        spent, found = pot_row(stacked, cost.numpy(), options.reg, alone.iterations)
        seconds.append(spent)
        off = max(off, float(np.abs(found - ours.rows[row].numpy()).sum()))
    total = statistics.mean(seconds) * count
    return (
        f"N={count}: repaudit {elapsed:.2f} s, {ours.iterations} iterations, marginal error {ours.marginal_error:.1e} "
        f"(debiased {longer:.2f} s, {debiased.iterations} iterations, {debiased.marginal_error:.1e}); "
        f"POT {total:.1f} s, scaled from {len(drawn)} rows drawn at random; {total / elapsed:.1f}x; "
        f"rows differ by {off:.1e} (L1) at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--reg", type=float, default=0.05)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=8, help="rows that POT is timed on; scaled to all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"K={options.models} reg={options.reg} threads={torch.get_num_threads()} load={os.getloadavg()[0]:.2f}")
    for count in options.samples:
        print(measure(count, options), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
