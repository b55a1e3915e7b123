"""Distances of T operators against the bare Gram product of the same shape, and a whole analysis: time and peak memory.

Each row is measured in a process of its own, so that the peak is its own. The bare product is ``F @ F.T`` of the
flattened operators, in memory and in their precision; the distances read the same operators from a file, and those of
sparse operators, of which the product is that of dense copies, from memory. The whole
analysis runs on a store of synthetic replicas: threads, two Dask workers, again with all its operators kept, and again
after the store has grown by one step a model. ``--default 5 12 50`` measures instead one analysis with all defaults, of
that many models, layers and steps: its operators, and everything else over them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import repaudit as ra
from repaudit.measure.distances import operator_distances
from repaudit.measure.gram import stream_gram
from repaudit.operators.stack import OperatorStack


def write_operators(path: Path, count: int, side: int) -> None:
    """A trajectory that comes to rest, as training does: 3 models between random operators and a common one."""
    rng = np.random.default_rng(0)
    cube = np.lib.format.open_memmap(path, "w+", np.float32, (count, side, side))
    ends = rng.random((4, side, side), dtype=np.float32) ** 8
    for index in range(count):
        share = np.float32(np.exp(-3 * (index // 3) * 3 / count))
        kernel = (
            share * ends[index % 3] + (1 - share) * ends[3] + np.float32(0.02) * rng.random((side, side), np.float32)
        )
        cube[index] = kernel / kernel.sum(1, keepdims=True)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Peak:
    """Largest resident memory while the block runs, less what was resident before it."""

    def __enter__(self) -> Peak:
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self.megabytes = (self.most - self.start) / 1e6


def measure(path: Path, repeats: int, memory: str) -> dict[str, float]:
    mapped = np.load(path, mmap_mode="r")
    operator_distances(mapped[:2])
    with Peak() as peak:
        operator_distances(mapped, memory=memory)
    flat = torch.from_numpy(np.load(path).reshape(len(mapped), -1))
    held = list(flat.view(mapped.shape).numpy())
    rounds = [
        (
            seconds(lambda: flat @ flat.T),
            seconds(lambda: operator_distances(mapped, memory=memory)),
            seconds(lambda: operator_distances(held, memory=memory)),
        )
        for _ in range(repeats)
    ]
    recomputed = stream_gram(OperatorStack(mapped), memory=memory).recomputed
    return {
        "operators": len(mapped),
        "gemm_s": statistics.median(r[0] for r in rounds),
        "file_ratio": statistics.median(r[1] / r[0] for r in rounds),
        "memory_ratio": statistics.median(r[2] / r[0] for r in rounds),
        "peak_mb": peak.megabytes,
        "recomputed": recomputed,
        "sparse_ratio": sparse_ratio(len(mapped), mapped.shape[1], repeats),
    }


def sparse_ratio(count: int, samples: int, repeats: int) -> float:
    """Return the time of the distances of default operators, which are sparse, over the product of dense ones."""
    rng, gauge = np.random.default_rng(0), ra.DiffusionGauge()
    ends = rng.standard_normal((4, samples, 256), dtype=np.float32)
    shares = [np.float32(1 - np.exp(-12 * (index // 3) / count)) for index in range(count)]
    clouds = (share * ends[3] + (1 - share) * ends[index % 3] for index, share in enumerate(shares))
    operators = [gauge(cloud).matrix for cloud in clouds]
    flat = torch.stack([operator.to_dense().flatten() for operator in operators])
    operator_distances(operators[:2])
    rounds = [(seconds(lambda: flat @ flat.T), seconds(lambda: operator_distances(operators))) for _ in range(repeats)]
    return statistics.median(ours / bare for bare, ours in rounds)


def write_store(
    url: Path,
    steps: range,
    samples: int,
    models: int = 3,
    width: int = 768,
    names: Sequence[str] = ("layer",),
    pace: float = 4,
) -> None:
    """Replicas that converge; later steps join a store that exists."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((samples, width))
    inputs = {"pixels": torch.zeros(samples, 4).copy_(torch.from_numpy(rng.standard_normal((samples, 4))))}
    probe_set = ra.ProbeSet.from_tensors(inputs)
    for model in range(models):
        own = {layer: rng.standard_normal((samples, width)) for layer in names}
        layers = dict.fromkeys(names, ((samples, width), "float32"))
        name = f"seed{model}"
        with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers, durable=False) as writer:
            for step in steps:
                share = 1 - np.exp(-step / pace)
                found = {layer: share * common + (1 - share) * own[layer] for layer in names}
                writer.append(step, {layer: values.astype(np.float32) for layer, values in found.items()})


def whole(samples: int, steps: int, memory: str) -> None:
    """Print the time of a whole analysis in four settings, and how far the workers' results are from the threads'."""
    bare: dict[str, Any] = {"frames": 0, "units": 0, "similarity": (), "memory": memory}
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder, "store.zarr")
        write_store(url, range(steps), samples)
        results: dict[str, Any] = {}
        ra.analyze(url, Path(folder, "warm"), steps=[0], **bare)
        with Peak() as peak:
            first = seconds(lambda: results.update(threads=ra.analyze(url, Path(folder, "threads"), **bare)))
        workers = seconds(lambda: results.update(workers=ra.analyze(url, Path(folder, "workers"), workers=2, **bare)))
        again = seconds(lambda: ra.analyze(url, Path(folder, "threads"), **bare))
        write_store(url, range(steps, steps + 1), samples)
        grown = seconds(lambda: ra.analyze(url, Path(folder, "threads"), **bare))
    spreads = [results[name]["spread"]["spread"].values for name in ("threads", "workers")]
    print(f"\nwhole analysis, 3 models x 1 layer x {steps} steps, {samples} samples, without frames, units, similarity")
    print(f"threads {first:.1f} s (peak {peak.megabytes:.0f} MB), 2 Dask workers {workers:.1f} s with their start,")
    print(f"again with nothing new {again:.1f} s, after one step more {grown:.1f} s")
    print(f"largest difference of the spread, workers against threads: {np.abs(spreads[0] - spreads[1]).max():.1e}")


def default(samples: int, models: int, layers: int, steps: int, width: int = 256) -> None:
    """Print the time of one analysis with all defaults: its operators, and everything else over them."""
    ends: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder, "store.zarr")
        for store, count in ((Path(folder, "warm.zarr"), 2), (url, steps)):
            names = [f"layer{index}" for index in range(layers if store == url else 1)]
            write_store(store, range(count), samples, models, width, names, pace=steps / 4)
        ra.analyze(Path(folder, "warm.zarr"), Path(folder, "warm"))
        with Peak() as peak:
            start = time.perf_counter()
            ra.analyze(url, Path(folder, "out"), progress=lambda what, *_: ends.update({what: time.perf_counter()}))
            end = time.perf_counter()
    operators, results, writing = ends["operators"] - start, ends["results"] - ends["operators"], end - ends["results"]
    print(f"{models} models x {layers} layers x {steps} steps, {samples} samples x {width}, {os.cpu_count()} cores")
    print(f"reading and operators {operators:.1f} s, results {results:.1f} s, figures and files {writing:.1f} s;")
    print(f"everything else over the operators {(results + writing) / operators:.2f}; peak {peak.megabytes:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="analyze", description=__doc__)
    parser.add_argument("--default", type=int, nargs=3, metavar=("MODELS", "LAYERS", "STEPS"))
    parser.add_argument("--operators", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", default="500MB")
    parser.add_argument("--steps", type=int, default=24, help="of the whole analysis; 0 to leave it out")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.default:
        default(options.samples, *options.default)
        return
    if options.one:
        print(json.dumps(measure(options.one, options.repeats, options.memory)))
        return
    print(f"{options.samples} samples, float32, {os.cpu_count()} cores, budget {options.memory}")
    heads = {
        "operators": 10,
        "GEMM s": 10,
        "from file": 12,
        "from memory": 12,
        "peak MB": 10,
        "recomputed": 12,
        "sparse": 10,
    }
    print("".join(f"{head:>{width}}" for head, width in heads.items()))
    with tempfile.TemporaryDirectory() as folder:
        for count in options.operators:
            path = Path(folder, f"{count}.npy")
            write_operators(path, count, options.samples)
            command = [
                sys.executable,
                __file__,
                "--one",
                str(path),
                "--repeats",
                str(options.repeats),
                "--memory",
                options.memory,
            ]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            path.unlink()
            print(
                f"{row['operators']:>10}{row['gemm_s']:>10.3f}{row['file_ratio']:>12.2f}{row['memory_ratio']:>12.2f}"
                f"{row['peak_mb']:>10.0f}{row['recomputed']:>12}{row['sparse_ratio']:>10.2f}"
            )
    if options.steps:
        whole(options.samples, options.steps, options.memory)


if __name__ == "__main__":
    main()
