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
from importlib.util import find_spec
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
    """One .npy a layer, each forced to the device."""
    for name, values in arrays.items():
        with (folder / f"step{step}-{name}.npy").open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())


def safetensors(folder: Path, step: int, arrays: Arrays) -> None:
    """One file a step, forced to the device."""
    from safetensors.numpy import save_file

    path = folder / f"step{step}.safetensors"
    save_file(arrays, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


class PlainZarr:
    """Arrays of a group that grow by a step: no commit, no checksum, nothing forced to the device."""

    def __init__(self, store: Any, arrays: Arrays) -> None:
        import zarr

        group = zarr.open_group(store, mode="w")
        self.arrays = {
            name: group.create_array(
                name, shape=(0, *values.shape), chunks=(1, *values.shape), dtype=values.dtype, compressors=None
            )
            for name, values in arrays.items()
        }

    def append(self, step: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            self.arrays[name].resize((step + 1, *values.shape))
            self.arrays[name][step] = values


class Icechunk:
    """The same arrays in Icechunk: a commit for each step, nothing forced to the device."""

    def __init__(self, folder: Path, arrays: Arrays) -> None:
        import icechunk

        icechunk.set_logs_filter("error")
        self.repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)))
        session = self.repository.writable_session("main")
        PlainZarr(session.store, arrays)
        session.commit("begin")

    def append(self, step: int, arrays: Arrays) -> None:
        import zarr

        session = self.repository.writable_session("main")
        group = zarr.open_group(session.store)
        for name, values in arrays.items():
            group[name].resize((step + 1, *values.shape))
            group[name][step] = values
        session.commit(f"step {step}")


def probe_of(samples: int) -> StoredProbeSet:
    return StoredProbeSet("b" * 64, [str(i) for i in range(samples)], {"x": np.zeros((samples, 1))})


def open_writer(url: Path, arrays: Arrays, samples: int, **keywords: Any) -> ra.TrajectoryWriter:
    layers = {name: (values.shape, values.dtype.name) for name, values in arrays.items()}
    return ra.TrajectoryWriter(url, model_name="m", probe_set=probe_of(samples), layers=layers, **keywords)


def bench_recording(folder: Path, steps: int, arrays: Arrays, samples: int) -> dict[str, Any]:
    """Alternate floor, peers and the protocol step by step, so that all see the same disk; medians over steps."""
    times: dict[str, list[float]] = {}
    peers = {
        "np.save": lambda step: np_save(folder, step, arrays),
        "safetensors": lambda step: safetensors(folder, step, arrays),
    }
    plain = PlainZarr(folder / "plain.zarr", arrays)
    peers["zarr"] = lambda step: plain.append(step, arrays)
    if find_spec("icechunk") is not None:
        icechunk = Icechunk(folder / "icechunk", arrays)
        peers["icechunk"] = lambda step: icechunk.append(step, arrays)

    def timed(name: str, action: Callable[[], Any]) -> None:
        start = time.perf_counter()
        action()
        times.setdefault(name, []).append(time.perf_counter() - start)

    durable, queued = folder / "durable.zarr", folder / "queued.zarr"
    with open_writer(durable, arrays, samples) as writer, open_writer(queued, arrays, samples) as background:
        for step in range(steps):
            timed("floor", lambda step=step: raw_floor(folder, step, arrays))
            for name, write in peers.items():
                timed(name, lambda step=step, write=write: write(step))
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
        "peers_over_floor": {name: statistics.median(times[name]) / floor for name in peers},
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


def rounded(value: Any) -> Any:
    """Return the numbers in nested results with three decimals."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else round(value, 3)


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
    print(json.dumps(rounded(results), indent=2))


if __name__ == "__main__":
    main()
