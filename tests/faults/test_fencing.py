"""A writer that was stopped, and goes on after another took its model over, changes nothing any more."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import s3fs
from fsspec.asyn import sync

import repaudit as ra
from repaudit.errors import LeaseError, StoreError, StoreWarning
from repaudit.store.read import catalog
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage import local
from repaudit.store.write import retrying
from tests.faults.test_kill import LAYERS, assert_whole, recorder, wait_for  # noqa: F401 - a fixture

TERM = 0.3
S3_LAYERS = {name: LAYERS[name] for name in ("layer.0", "layer.1")}


def arrays_of(step: int, seed: int):
    generator = np.random.default_rng([step, seed])
    return {name: generator.normal(size=shape).astype(dtype) for name, (shape, dtype) in LAYERS.items()}


def acknowledged(log: Path) -> list[int]:
    """Return the steps that the log promises; a truncation that was asked for may have happened."""
    steps: list[int] = []
    for line in log.read_text().splitlines():
        if line.startswith("back to "):
            steps = [step for step in steps if step <= int(line.removeprefix("back to "))]
        elif line.isdigit():
            steps.append(int(line))
    return steps


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(local, "_LOCK_WAIT", 0.2)


@pytest.mark.parametrize(
    "trials", [8, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["8", "100"]
)
def test_a_writer_stopped_at_a_random_moment_damages_nothing_when_it_goes_on(trials, tmp_path, recorder):  # noqa: F811
    chance = random.Random(trials)
    probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(4)], {"x": np.zeros((4, 2))})
    for trial in range(trials):
        url, log = tmp_path / f"{trial}.zarr", tmp_path / f"log-{trial}"
        elsewhere = {"host": "elsewhere", "term": TERM} if trial % 2 else {}
        task = {"url": str(url), "model": "seed0", "layers": LAYERS, "seed": trial, "steps": 100_000, "log": str(log)}
        pid = recorder.start(**task, goes_back=7, **elsewhere)
        wait_for(log)
        holder = json.loads((url / "models/seed0/.lease").read_text())
        assert holder["host"].startswith("elsewhere/") == bool(elsewhere)  # in a UTS namespace of its own
        try:
            writer = None
            while writer is None:
                os.kill(pid, signal.SIGCONT)
                time.sleep(chance.uniform(0.0, 0.2))
                os.kill(pid, signal.SIGSTOP)
                if elsewhere:
                    time.sleep(TERM + 0.1)
                try:
                    writer = ra.TrajectoryWriter(
                        url, model_name="seed0", probe_set=probe_set, layers=LAYERS, force=not elsewhere
                    )
                except LeaseError as error:  # nothing is taken over while a deletion is under way
                    refused = str(error)
                    assert "in the middle of a deletion" in refused
            promised = acknowledged(log)
            assert set(promised) <= set(writer.steps)
            seeds = dict.fromkeys(writer.steps, trial)
            first = (writer.steps or [-1])[-1] + 1
            goes_on = first + chance.randrange(3)
            for step in range(first, first + 6):
                if step == goes_on:
                    os.kill(pid, signal.SIGCONT)
                writer.append(step, arrays_of(step, 1000 + trial))
                writer.flush()
                seeds[step] = 1000 + trial
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert recorder.wait() == 1, "the writer that lost its model must fail"
        writer.append(first + 6, arrays_of(first + 6, 1000 + trial))
        writer.close()
        seeds[first + 6] = 1000 + trial
        assert assert_whole(url, seeds, list(seeds)) == list(seeds)
        assert ra.verify(url, data=True) == []


def test_a_taker_waits_for_a_deletion_and_says_so(tmp_path):
    probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(4)], {"x": np.zeros((4, 2))})
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}
    with ra.TrajectoryWriter(tmp_path / "s.zarr", **keywords) as writer:
        held = writer._record.storage.storage.exclusive("models/seed0")
        with held, pytest.raises(LeaseError, match="in the middle of a deletion"):
            ra.TrajectoryWriter(tmp_path / "s.zarr", **keywords, force=True)
        writer.append(0, arrays_of(0, 0))
    assert ra.verify(tmp_path / "s.zarr", data=True) == []


class Late:
    """Puts below the model that never answer, and reach the service only when `deliver` is called."""

    def __init__(self, monkeypatch, what: str) -> None:
        self.whole, self.what, self.held, self.armed = s3fs.S3FileSystem._pipe_file, what, [], False
        late = self

        async def pipe(filesystem, path, data, **options):
            if late.armed and late.what in path:
                late.held.append((filesystem, path, data, options))
                raise OSError("no answer")
            return await late.whole(filesystem, path, data, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", pipe)

    def deliver(self) -> None:
        assert self.held, "nothing was late: the test tests nothing"
        for filesystem, path, data, options in self.held:
            with contextlib.suppress(OSError):  # refused, or not
                sync(filesystem.loop, self.whole, filesystem, path, data, **options)


def small(step: int, seed: int):
    return {name: arrays_of(step, seed)[name] for name in S3_LAYERS}


def assert_small(url, options, seeds) -> None:
    tree = ra.open_store(url, options)
    assert catalog.steps(tree, "seed0") == list(seeds)
    for name in S3_LAYERS:
        wanted = np.stack([small(step, seed)[name] for step, seed in seeds.items()])
        np.testing.assert_array_equal(catalog.activations(tree, "seed0", name).values, wanted)
    assert ra.verify(url, data=True, storage_options=options) == []


WHAT = [
    "models/seed0/zarr.json",
    *(pytest.param(what, marks=pytest.mark.slow) for what in ("models/seed0/step/", "models/seed0/layer.0/c")),
    "models/seed0/",
]


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.thin(2)
def test_requests_of_an_earlier_writer_that_arrive_late_change_nothing(what, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 0.0)
    url = f"s3://bucket/{tmp_path.name}/store.zarr"
    probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(4)], {"x": np.zeros((4, 2))})
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": S3_LAYERS, "storage_options": s3}
    first = ra.TrajectoryWriter(url, **keywords)
    for step in range(3):
        first.append(step, small(step, 0))
    first.flush()
    late = Late(monkeypatch, what)
    late.armed = True
    first.append(3, small(3, 0))
    with pytest.raises(StoreError, match="no answer"):
        first.flush()
    late.armed = False
    with ra.TrajectoryWriter(url, **keywords, force=True) as second:
        for step in range(3, 6):
            second.append(step, small(step, 1))
            second.flush()
        late.deliver()
        second.append(6, small(6, 1))
    with pytest.raises(LeaseError):
        first.close()
    assert_small(url, s3, dict.fromkeys(range(3), 0) | dict.fromkeys(range(3, 7), 1))


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.thin(2)
def test_a_writers_own_late_requests_change_nothing(what, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 0.0)
    url = f"s3://bucket/{tmp_path.name}/store.zarr"
    probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(4)], {"x": np.zeros((4, 2))})
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": S3_LAYERS, "storage_options": s3}
    with ra.TrajectoryWriter(url, **keywords, on_store_error="warn") as writer:
        writer.append(0, small(0, 0))
        writer.flush()
        late = Late(monkeypatch, what)
        late.armed = True
        writer.append(1, small(1, 0))
        with pytest.warns(StoreWarning, match="no answer"):
            writer.flush()
        late.armed = False
        for step in (2, 3):
            writer.append(step, small(step, 0))
            writer.flush()
        late.deliver()
        writer.append(4, small(4, 0))
    assert [gap["step"] for gap in writer.gaps] == [1]
    assert_small(url, s3, dict.fromkeys((0, 2, 3, 4), 0))
