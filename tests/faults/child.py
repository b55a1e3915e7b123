"""Record steps in a process of its own, told by JSON lines on stdin; each line forks a child that may be killed.

Importing takes a second, forking a millisecond: the parent process imports once and stays single-threaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import sys
import traceback
from pathlib import Path

import numpy as np

import repaudit as ra
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage import lease

TrajectoryWriter = ra.TrajectoryWriter


NEW_UTS = 0x04000000


def move_to(host: str) -> None:
    """Give this process a host name of its own: another UTS namespace, or where that is not allowed another answer."""
    if ctypes.CDLL(None).unshare(NEW_UTS) == 0:
        socket.sethostname(host)
        platform.uname.__globals__["_uname_cache"] = None  # the name was asked for before
    else:
        lease._host = lambda: host


def step_arrays(layers: dict, step: int, seed: int) -> dict:
    generator = np.random.default_rng([step, seed])
    return {name: generator.normal(size=shape).astype(dtype) for name, (shape, dtype) in layers.items()}


def record(task: dict) -> None:
    """Append steps until told to stop, and write down each step that a flush has promised."""
    layers = {name: (tuple(shape), dtype) for name, (shape, dtype) in task["layers"].items()}
    samples = next(iter(layers.values()))[0][0]
    probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(samples)], {"x": np.zeros((samples, 2))})
    keywords = {"model_name": task["model"], "probe_set": probe_set, "layers": layers}
    if "host" in task:
        move_to(task["host"])
        lease.Lease.__init__.__kwdefaults__["term"] = task["term"]
    writer = TrajectoryWriter(task["url"], truncate_after=task.get("truncate_after"), **keywords)
    with Path(task["log"]).open("a", encoding="ascii", buffering=1) as log:
        log.write("ready\n")
        first = writer.steps[-1] + 1 if writer.steps else 0
        for step in range(first, first + task["steps"]):
            writer.append(step, step_arrays(layers, step, task["seed"]))
            if task.get("flush", True):
                writer.flush()
                log.write(f"{step}\n")
            if "goes_back" in task and step % task["goes_back"] == 2:
                log.write(f"back to {step - 2}\n")
                writer.truncate(step - 2)
                for again in (step - 1, step):
                    writer.append(again, step_arrays(layers, again, task["seed"]))
    if task.get("end") == "close":
        writer.close()
    if task.get("end") == "wait":
        sys.stdin.read()


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                record(json.loads(line))
                code = 0
            except Exception:  # noqa: BLE001 - the parent reads the exit code
                traceback.print_exc()
            os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
