"""A whole analysis on one core and on two, by threads and by Dask workers, from a file and from S3; its memory over T.

Every run is a process of its own that may use that many cores; a cluster is started before the clock. S3 is moto's
server on this machine, so what is measured is the way to it, not a network. The speed-up is over the run on one core
of the same kind; ``off by`` is the largest difference of any spread from that of one thread and a file. ``--steps``
grows the store: its peak is that of the whole process, which is what is told in advance, and what the process comes to
above what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from analyze import Peak, write_store
from moto.server import ThreadedMotoServer

import repaudit as ra
from repaudit.analysis.needed_memory import held_by_process
from repaudit.analysis.pipeline import run
from repaudit.analysis.settings import Settings

BARE: dict[str, Any] = {"frames": 0, "units": 0, "similarity": (), "figures": "none"}
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


def one(url: str, cores: int, workers: bool, out: str) -> None:
    """Analyse a store on some cores, and print seconds, peak and spreads."""
    os.sched_setaffinity(0, range(cores))
    options = dict(BARE)
    if workers:
        from distributed import LocalCluster

        cluster = LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=":0")
        options["scheduler"] = cluster.scheduler_address
        cluster.get_client().submit(lambda: __import__("repaudit").analyze).result()
    told: list[int] = []
    with Peak() as peak:
        start = time.perf_counter()
        settings = Settings.of({**options, "cache": False})
        results = run(url, out, settings, planned=lambda needed, _: told.append(needed + held_by_process()))
        seconds = time.perf_counter() - start
    spread = results["spread"]["spread"].values.tolist()
    status = Path("/proc/self/status").read_text()
    whole = 1024 * int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    found = {"seconds": seconds, "above": peak.megabytes, "whole": whole, "told": told[0] / 1e6, "spread": spread}
    print(json.dumps(found))


def measured(url: str, cores: int, workers: bool, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", url, str(cores), str(int(workers)), str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(samples: int, steps: int, folder: Path) -> None:
    """Print the table of one core and two."""
    os.environ |= KEYS
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for every request
    server = ThreadedMotoServer(port=0)
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
    import s3fs

    s3fs.S3FileSystem().mkdir("bench")
    places = {"file": str(folder / "store.zarr"), "S3": "s3://bench/store.zarr"}
    write_store(folder / "store.zarr", range(steps), samples, 3, 256, ["a", "b", "c", "d"], pace=steps / 4)
    ra.copy_store(places["file"], places["S3"])
    print(f"3 models x 4 layers x {steps} steps, {samples} samples x 256, load {os.getloadavg()[0]:.2f}")
    print("from  by       1 core    2 cores   speed-up  off by")
    truth = None
    for place, url in places.items():
        for workers in (False, True):
            runs = [measured(url, cores, workers, folder) for cores in (1, 2)]
            truth = np.array(runs[0]["spread"]) if truth is None else truth
            first, second = (run["seconds"] for run in runs)
            off = max(float(np.nanmax(np.abs(np.array(run["spread"]) - truth))) for run in runs)
            by = "workers" if workers else "threads"
            print(f"{place:5} {by} {first:8.1f} s {second:8.1f} s {first / second:8.2f}x  {off:.0e}", flush=True)
    server.stop()


def memory(samples: int, every: list[int], folder: Path) -> None:
    """Print the peak of an analysis of one layer for growing numbers of steps."""
    first: dict[str, Any] = {}
    for steps in every:
        url = folder / f"{steps}.zarr"
        write_store(url, range(steps), samples, 2, 64, pace=steps / 4)
        found = measured(str(url), 2, False, folder)
        first = first or found
        whole, above = (f"{found[name]:.0f} MB ({found[name] / first[name]:.2f}x)" for name in ("whole", "above"))
        seen = f"peak {whole}, told in advance {found['told']:.0f} MB; above imports {above}"
        print(f"T={steps:<6} {samples} samples: {seen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--length", type=int, default=6, help="steps of the store for the speed-up")
    parser.add_argument("--steps", type=int, nargs="*", default=[50, 200, 1000], help="steps over which memory is told")
    parser.add_argument("--one", nargs=4, metavar=("URL", "CORES", "WORKERS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        url, cores, workers, out = options.one
        one(url, int(cores), workers == "1", out)
        return
    with tempfile.TemporaryDirectory() as name:
        speed(options.samples, options.length, Path(name))
        memory(256, options.steps, Path(name))


if __name__ == "__main__":
    main()
