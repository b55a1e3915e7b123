"""The CPU seconds of an analysis as the work grows: samples, steps, models and layers, each alone, and its exponent.

Every row is one analysis with all defaults, on one core, in a process of its own after its imports. ``answer`` is
reading, operators and spreads, up to the verdicts; ``pictures`` is what comes after them: embeddings, comparisons,
figures and the report. The exponent is the slope of the logarithms over the last doubling: 1 is proportional to the
work, 3 a wall. ``--gauge`` tells the operator alone, up to N at which nothing else of an analysis is done densely.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from analyze import Peak, write_store

import repaudit as ra
from repaudit.analysis.pipeline import run
from repaudit.analysis.settings import Settings

BASE = {"samples": 500, "steps": 8, "models": 3, "layers": 2}
WIDTH = 256


def one(folder: Path, samples: int, steps: int, models: int, layers: int) -> None:
    """Analyse a store on one core, and print the CPU seconds of its parts and its peak."""
    os.sched_setaffinity(0, [0])
    answered: list[float] = []
    for name, count in (("warm.zarr", 2), ("store.zarr", steps)):
        named = [f"layer{index}" for index in range(layers if count == steps else 1)]
        write_store(folder / name, range(count), samples, models, WIDTH, named, pace=steps / 4)
    ra.analyze(folder / "warm.zarr", folder / "warm")
    with Peak() as peak:
        start = time.process_time()
        url, out = folder / "store.zarr", folder / "out"
        run(url, out, Settings(), answered=lambda _: answered.append(time.process_time()))
        end = time.process_time()
    found = {"answer": answered[0] - start, "pictures": end - answered[0], "megabytes": peak.megabytes}
    print(json.dumps(found))


def measured(**work: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        numbers = [str(work[name]) for name in BASE]
        command = [sys.executable, __file__, "--one", folder, *numbers]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found: dict[str, float] = json.loads(text.splitlines()[-1])
    return found


def table(name: str, values: list[int]) -> None:
    """Print the cost for growing values of one of the four, the others as in ``BASE``."""
    rest = ", ".join(f"{BASE[other]} {other}" for other in BASE if other != name)
    print(f"\n| {name} ({rest}) | answer, CPU s | exponent | pictures, CPU s | exponent | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    before: tuple[int, dict[str, float]] | None = None
    for value in values:
        found = measured(**{**BASE, name: value})
        cells = []
        for part in ("answer", "pictures"):
            slope = "" if before is None else f"{_slope(before[0], before[1][part], value, found[part]):.1f}"
            cells += [f"{found[part]:.1f}", slope]
        print(f"| {value} | {' | '.join(cells)} | {found['megabytes']:.0f} |", flush=True)
        before = value, found


def gauge_table(values: list[int]) -> None:
    """Print the cost of one default operator for growing N, on one core."""
    print(f"\n| samples, one default operator of {WIDTH} features | CPU s | exponent | peak MB |")
    print("| --- | --- | --- | --- |")
    before: tuple[int, float] | None = None
    gauge = ra.DiffusionGauge()
    gauge(torch.randn(300, WIDTH))
    for value in values:
        X = torch.randn(value, WIDTH, generator=torch.Generator().manual_seed(0))
        with Peak() as peak:
            start = time.process_time()
            gauge(X)
            spent = time.process_time() - start
        slope = "" if before is None else f"{_slope(*before, value, spent):.1f}"
        print(f"| {value} | {spent:.2f} | {slope} | {peak.megabytes:.0f} |", flush=True)
        before = value, spent


def _slope(first: float, cost: float, second: float, grown: float) -> float:
    return math.log(grown / cost) / math.log(second / first)


def main() -> None:
    parser = argparse.ArgumentParser(prog="growth", description=__doc__)
    defaults = {
        "samples": [250, 500, 1000, 2000],
        "steps": [4, 8, 16, 32, 64],
        "models": [2, 4, 8],
        "layers": [1, 2, 4, 8],
    }
    for name, values in defaults.items():
        parser.add_argument(f"--{name}", type=int, nargs="*", default=values)
    parser.add_argument("--gauge", type=int, nargs="*", default=[1250, 2500, 5000, 10000, 20000])
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(Path(options.one[0]), *map(int, options.one[1:]))
        return
    torch.set_num_threads(1)
    for name in defaults:
        if getattr(options, name):
            table(name, getattr(options, name))
    if options.gauge:
        gauge_table(options.gauge)


if __name__ == "__main__":
    main()
