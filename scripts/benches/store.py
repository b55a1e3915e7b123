"""Bench of the store: recording against the raw write+fsync floor, append and open cost over steps, bytes for bfloat16.

``scripts/bench store [--steps 50] [--layers 6] [--samples 2048] [--features 768] [--dir DIR]``

At the defaults it writes 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import repaudit as ra
from repaudit.store.read.stored_probe_set import StoredProbeSet

Arrays = dict[str, Any]


def raw_floor(folder: Path, step: int, arrays: Arrays) -> None:
    """The floor: all bytes of a step into one file, forced to the device."""
    with (folder / f"step{step}.raw").open("wb", buffering=0) as file:
        for values in arrays.values():
            file.write(values.data)
        os.fsync(file.fileno())


def np_save(folder: Path, step: int, arrays: Arrays) -> None:
    """The peer: one .npy a layer, each forced to the device."""
    for name, values in arrays.items():
        with (folder / f"step{step}-{name}.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())


def probe_of(samples: int) -> StoredProbeSet:
    return StoredProbeSet("b" * 64, [str(i) for i in range(samples)], {"x": np.zeros((samples, 1))})


def open_writer(url: Path, arrays: Arrays, samples: int, **keywords: Any) -> ra.TrajectoryWriter:
    layers = {name: (values.shape, values.dtype.name) for name, values in arrays.items()}
    return ra.TrajectoryWriter(url, model_name="m", probe_set=probe_of(samples), layers=layers, **keywords)


def bench_recording(folder: Path, steps: int, arrays: Arrays, samples: int) -> dict[str, Any]:
    """Alternate floor, peer and the protocol step by step, so that all see the same disk; medians over steps."""
    times: dict[str, list[float]] = {"floor": [], "np.save": [], "commit": [], "blocked": []}

    def timed(name: str, action: Callable[[], Any]) -> None:
        start = time.perf_counter()
        action()
        times[name].append(time.perf_counter() - start)

    durable, queued = folder / "durable.zarr", folder / "queued.zarr"
    with open_writer(durable, arrays, samples) as writer, open_writer(queued, arrays, samples) as background:
        for step in range(steps):
            timed("floor", lambda step=step: raw_floor(folder, step, arrays))
            timed("np.save", lambda step=step: np_save(folder, step, arrays))
            timed("commit", lambda step=step: (writer.append(step, arrays, copy=False), writer.flush()))
            timed("blocked", lambda step=step: background.append(step, arrays))
            background.flush()
    floor = statistics.median(times["floor"])
    ratios = [ours / base for ours, base in zip(times["commit"], times["floor"], strict=True)]
    size = sum(values.nbytes for values in arrays.values())
    return {
        "floor_ms": 1e3 * floor,
        "floor_MB_per_s": size / floor / 1e6,
        "commit_over_floor": statistics.median(times["commit"]) / floor,
        "commit_over_floor_quartiles": [float(np.quantile(ratios, q)) for q in (0.25, 0.75)],
        "np_save_over_floor": statistics.median(times["np.save"]) / floor,
        "blocked_ms_per_audit": 1e3 * statistics.median(times["blocked"]),
    }


def bench_append(folder: Path, last: int) -> dict[str, Any]:
    """Append cost of a young and an old record, alternating, of tiny arrays without fsync; and the time to open."""
    arrays = {f"layer{i}": np.zeros((4, 2), "float32") for i in range(6)}
    ages, opened = {"young": 100, "old": last}, 0.0
    spent: dict[str, list[float]] = {name: [] for name in ages}
    with (
        open_writer(folder / "young.zarr", arrays, 4, durable=False) as young,
        open_writer(folder / "old.zarr", arrays, 4, durable=False) as old,
    ):
        records = {"young": young._record, "old": old._record}  # the commit alone, without the queue
        for name, age in ages.items():
            for step in range(age):
                records[name].append({"step": step}, arrays)
                if name == "old" and step + 1 == min(3000, last):
                    opened = open_time(folder / "old.zarr")
        for step in range(last, last + 100):
            for name, record in records.items():
                start = time.perf_counter()
                record.append({"step": step}, arrays)
                spent[name].append(time.perf_counter() - start)
    append = {f"at_{age}_steps": 1e3 * statistics.median(spent[name]) for name, age in ages.items()}
    return {"append_ms": append, "open_ms_at_3000_steps": opened}


def open_time(url: Path) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        ra.open_store(url)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def bench_bytes(folder: Path, samples: int, features: int) -> dict[str, float]:
    """Bytes on disk of a bfloat16 layer, over the bytes of its float32 image."""
    values = np.random.default_rng(0).normal(size=(samples, features)).astype(ml_dtypes.bfloat16)
    found = {}
    for codec in ("raw", "compact"):
        url = folder / f"{codec}.zarr"
        with open_writer(url, {"half": values}, samples, codec=codec) as writer:
            writer.append(0, {"half": values})
        (chunk,) = (url / "models/m/half").glob("c.*")
        found[codec] = chunk.stat().st_size / (4 * values.size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench store", description=__doc__)
    for name, default in (("steps", 50), ("layers", 6), ("samples", 2048), ("features", 768), ("last", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dir", type=Path, default=None, help="where to write; the disk that counts")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    shape = (options.samples, options.features)
    arrays = {f"layer{i}": generator.standard_normal(shape, dtype=np.float32) for i in range(options.layers)}
    folder = Path(tempfile.mkdtemp(prefix="repaudit-bench-", dir=options.dir))
    try:
        results = {
            "recording": bench_recording(folder, options.steps, arrays, options.samples),
            "long": bench_append(folder, options.last),
            "bytes_over_float32": bench_bytes(folder, options.samples, options.features),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
