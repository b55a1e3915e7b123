"""Processes killed at random moments: what was promised is there and whole, and the next process goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import repaudit as ra
from tests.faults.conftest import open_plainly

CHILD = Path(__file__).with_name("child.py")
LAYERS = {"layer.0": ((4, 3), "float32"), "layer.1": ((4, 2), "float64"), "wide": ((4, 20000), "float32")}


class Recorder:
    """A process that forks recording children, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, **task) -> int:
        self.process.stdin.write(json.dumps(task) + "\n")
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.close()


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.002)


def promised(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines() if line.isdigit()] if log.exists() else []


def assert_whole(url: Path, seeds: dict[int, int], promises: list[int]) -> list[int]:
    """Check that every promised step is there and every step there is bit-exact; gives the committed steps."""
    models = open_plainly(url, "unconsolidated")
    if "seed0" not in models:
        assert promises == []
        return []
    dataset = models["seed0"].load()
    steps = dataset.step.values.tolist()
    assert steps == sorted(set(steps))
    assert set(promises) <= set(steps)
    for index, step in enumerate(steps):
        generator = np.random.default_rng([step, seeds[step]])
        for name, (shape, dtype) in LAYERS.items():
            np.testing.assert_array_equal(dataset[name][index].values, generator.normal(size=shape).astype(dtype))
    return steps


@pytest.mark.parametrize(
    "kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["20", "200"]
)
def test_kill_9_at_random_moments(kills, tmp_path, recorder):
    url, chance = tmp_path / "killed.zarr", random.Random(kills)
    seeds: dict[int, int] = {}
    promises: list[int] = []
    steps: list[int] = []
    progressed = 0
    for kill in range(kills):
        log = tmp_path / f"log-{kill}"
        # Every fourth process resumes from an older checkpoint, as a preempted job would.
        back = chance.choice(steps[-3:]) if steps and kill % 4 == 3 else None
        pid = recorder.start(
            url=str(url), model="seed0", layers=LAYERS, seed=kill, steps=10_000, log=str(log), truncate_after=back
        )
        if kill % 3:  # the others may be killed while they still create, claim or truncate
            wait_for(log)
        time.sleep(chance.uniform(0.0, 0.25))
        os.kill(pid, signal.SIGKILL)
        assert recorder.wait() == -signal.SIGKILL
        ready = log.exists()
        new = promised(log)
        kept = [step for step in promises if back is None or step <= back] if ready or back is None else []
        start = (back if back is not None else steps[-1] if steps else -1) + 1
        seeds_now = seeds | dict.fromkeys(range(start, start + 10000), kill) if ready else seeds
        steps = assert_whole(url, seeds_now, [*kept, *new])
        if not ready and back is not None:  # it may have committed the truncation, and not told every array of it yet
            steps = ra.open_store(url).repaudit.steps("seed0")
        seeds = {step: seeds_now[step] for step in steps}
        promises = [*kept, *new] if ready or back is None else list(steps)
        progressed += bool(new)
    assert progressed >= kills // 5, "the children were killed before they did anything: the test tests nothing"
    assert not [problem for problem in ra.verify(url, data=True) if problem.kind != "leftover"]


def test_sigterm_brings_queued_steps_to_the_store(tmp_path, recorder):
    log = tmp_path / "log"
    pid = recorder.start(
        url=str(tmp_path / "s.zarr"),
        model="seed0",
        layers=LAYERS,
        seed=0,
        steps=3,
        log=str(log),
        flush=False,
        end="wait",
    )
    wait_for(log)
    time.sleep(0.3)
    os.kill(pid, signal.SIGTERM)
    assert recorder.wait() == -signal.SIGTERM
    assert assert_whole(tmp_path / "s.zarr", dict.fromkeys(range(3), 0), [0, 1, 2]) == [0, 1, 2]
    assert not list((tmp_path / "s.zarr/models/seed0").glob(".lease*"))


SCRIPT = """
import sys, time
import numpy as np
import repaudit as ra
from repaudit.store.read.stored_probe_set import StoredProbeSet
probe_set = StoredProbeSet("a" * 64, ["a", "b"], {"x": np.zeros((2, 2))})
writer = ra.TrajectoryWriter(sys.argv[1], model_name="m", probe_set=probe_set, layers={"l": ((2, 3), "float32")},
                             codec=sys.argv[2])
for step in range(5):
    writer.append(step, {"l": np.full((2, 3), step, "float32")})
"""


@pytest.mark.parametrize("codec", ["raw", "compact"])
@pytest.mark.parametrize("end", ["", "raise RuntimeError('training failed')", "sys.exit(3)"])
def test_a_forgotten_close_is_made_up_for_at_interpreter_exit(end, codec, tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT + end, tmp_path / "s.zarr", codec]
    run = subprocess.run(command, capture_output=True, check=False)
    assert run.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1)
    dataset = open_plainly(tmp_path / "s.zarr", "unconsolidated")["m"]
    assert dataset.step.values.tolist() == [0, 1, 2, 3, 4]
    assert dataset["l"][4].values.tolist() == [[4.0] * 3] * 2
    assert not list((tmp_path / "s.zarr/models/m").glob(".lease*"))
