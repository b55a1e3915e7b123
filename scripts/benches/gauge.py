"""Time and memory of the gauge beside a bare matrix product, a plain scipy gauge and graphtools, interleaved."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import repaudit as ra


def peers(X: torch.Tensor, slow: bool) -> dict[str, Callable[[], object]]:
    gauge = ra.DiffusionGauge()
    found: dict[str, Callable[[], object]] = {"gemm": lambda: X @ X.mT, "repaudit": lambda: gauge(X)}
    if slow:
        array = X.cpu().numpy()
        found |= {"pdist": lambda: pdist_gauge(array), "graphtools exact": lambda: graph(array, exact=True)}
        found["graphtools default"] = lambda: graph(array, exact=False)
        found["scikit-learn, 45 neighbours"] = lambda: neighbors(array)
    return found


def pdist_gauge(array: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import pdist, squareform

    d = squareform(pdist(array))
    s = np.partition(d, 15, axis=1)[:, 15]
    K = np.exp(-(d**2) / (s[:, None] * s))
    q = K.sum(1)
    K /= q[:, None] * q
    return K / K.sum(1, keepdims=True)


def graph(array: np.ndarray, exact: bool) -> object:
    import graphtools

    kind = {"graphtype": "exact", "thresh": 0} if exact else {}
    return graphtools.Graph(array, knn=5, decay=40, anisotropy=1, n_pca=None, verbose=0, **kind).diff_op


def neighbors(array: np.ndarray) -> object:
    """What comes before any kernel: the nearest neighbours, by scikit-learn."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=46, algorithm="brute").fit(array).kneighbors_graph(mode="distance")


def timed(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(count: int, dimension: int) -> float:
    """Peak memory of one gauge beyond what stood before it, over the bytes of its result, in a process of its own."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import gauge; gauge.measure({count}, {dimension})"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure(count: int, dimension: int) -> None:
    X = torch.randn(count, dimension, generator=torch.Generator().manual_seed(0))
    ra.DiffusionGauge()(X[:300])
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = high_water()
    ra.DiffusionGauge()(X)
    print((high_water() - before) * 1024 / (4 * count**2))


def sparse(count: int, dimension: int) -> str:
    """Seconds and peak memory, activations and libraries included, of a kNN-sparse operator in a process of its own."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import gauge; gauge.measure_sparse({count}, {dimension})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def measure_sparse(count: int, dimension: int) -> None:
    X = torch.randn(count, dimension, generator=torch.Generator().manual_seed(0))
    elapsed = timed(lambda: ra.DiffusionGauge(neighbors=30)(X), "cpu")
    print(f"{elapsed:.1f} s, peak {high_water() / 2**20:.2f} GiB of the whole process")


def high_water() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 1000, 2000, 5000, 10000])
    parser.add_argument("--dimension", type=int, default=768, help="features of the activations")
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is timed, in turn")
    parser.add_argument("--slow-until", type=int, default=2000, help="largest N at which scipy and graphtools run too")
    parser.add_argument("--sparse", type=int, default=20000, help="samples of the kNN-sparse operator; 0 for none")
    parser.add_argument("--device", default="cpu", help="where operators are computed: cpu or cuda")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"D={options.dimension} {options.device} threads={torch.get_num_threads()} load={os.getloadavg()[0]:.2f}")
    for count in options.samples:
        X = torch.randn(count, options.dimension, generator=torch.Generator().manual_seed(0)).to(options.device)
        calls = peers(X, count <= options.slow_until)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(options.rounds + 1):
            for name, call in calls.items():
                if turn > 2 and name not in {"gemm", "repaudit"}:
                    continue
                elapsed = timed(call, options.device)
                if turn:
                    seconds[name].append(elapsed)
        base = statistics.median(seconds["gemm"])
        row = [
            f"{name} {statistics.median(s) * 1e3:.1f} ms ({statistics.median(s) / base:.2f}x)"
            for name, s in seconds.items()
        ]
        low = min(seconds["repaudit"]) / min(seconds["gemm"])
        memory = f"{peak(count, options.dimension):.2f}" if options.device == "cpu" else "-"
        print(f"N={count}: " + ", ".join(row) + f"; best over best {low:.2f}x; peak {memory} x result", flush=True)
    if options.device == "cpu" and options.sparse:
        print(f"kNN-sparse, neighbors=30, N={options.sparse}: {sparse(options.sparse, options.dimension)}")
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
