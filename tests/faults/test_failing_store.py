"""Stores that fail now and then, or fill up: the training goes on or is told, and what is committed is whole."""

from __future__ import annotations

import errno
import shutil
import time
import warnings

import pytest

import repaudit as ra
from repaudit.errors import LeaseError, StoreError, StoreWarning
from repaudit.store.read import catalog
from repaudit.store.write import retrying as failures
from repaudit.store.write import writer_thread
from tests.faults.conftest import LAYERS, FailingStorage, StoreDiedError, assert_reads_back, dying_at, step_arrays


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """Retry without the pauses that a real store needs."""
    monkeypatch.setattr(failures, "LONGEST_WAIT", 0.0)


def every(period: int):
    return lambda write: OSError(errno.EIO, "input/output error") if write % period == 0 else None


@pytest.mark.parametrize("period", [2, 3, 5, 9, 10, 11, 13, 17, 50])
def test_a_store_that_fails_every_nth_write_has_each_step_or_a_noted_gap(period, tmp_path, probe_set):
    url = tmp_path / "flaky.zarr"
    storage = FailingStorage(url, lambda write: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StoreWarning)
        recording = ra.TrajectoryWriter(
            storage, model_name="seed0", probe_set=probe_set, layers=LAYERS, on_store_error="warn"
        )
        storage.fails = every(period)
        for step in range(12):
            recording.append(step, step_arrays(step))
        recording.flush()
        storage.fails = lambda write: None
        recording.close()
    gaps = [gap["step"] for gap in recording.gaps]
    assert sorted([*recording.committed, *gaps]) == list(range(12))
    assert len([warning for warning in caught if warning.category is StoreWarning]) == len(gaps)
    if period > 11:  # a step takes eleven writes or fewer: one of two attempts must then succeed
        assert gaps == []
    assert_reads_back(url, "seed0", dict.fromkeys(recording.committed, 0), modes=["unconsolidated"])
    tree = ra.open_store(url)
    assert [gap["step"] for gap in catalog.gaps(tree, "seed0")] == gaps
    assert not [problem for problem in ra.verify(url, data=True) if problem.kind != "leftover"]


def test_a_commit_that_was_reported_as_failed_but_happened_is_not_written_twice(tmp_path, probe_set):
    class Liar(FailingStorage):
        lies = 0

        def put(self, key, parts, fence=None):
            super().put(key, parts, fence)
            if key == "models/seed0/zarr.json" and self.lies:
                self.lies -= 1
                raise OSError("connection reset after the write")

    storage = Liar(tmp_path / "liar.zarr", lambda write: None)
    with ra.TrajectoryWriter(storage, model_name="seed0", probe_set=probe_set, layers=LAYERS) as recording:
        for step in range(4):
            storage.lies = failures.ATTEMPTS * (step % 2)  # without a look at the store the step would be lost
            recording.append(step, step_arrays(step))
            recording.flush()
    assert_reads_back(tmp_path / "liar.zarr", "seed0", dict.fromkeys(range(4), 0))


def test_a_full_disk_is_reported_and_ends_in_a_whole_store(tmp_path, probe_set):
    full = OSError(errno.ENOSPC, "no space left on device")
    storage = FailingStorage(tmp_path / "full.zarr", lambda write: None)
    recording = ra.TrajectoryWriter(storage, model_name="seed0", probe_set=probe_set, layers=LAYERS)
    for step in range(3):
        recording.append(step, step_arrays(step))
    recording.flush()
    storage.fails = lambda write: full
    recording.append(3, step_arrays(3))
    with pytest.raises(StoreError, match=r"'seed0', step 3.*no space left"):
        recording.flush()
    with pytest.raises(StoreError):
        recording.close()
    assert_reads_back(tmp_path / "full.zarr", "seed0", dict.fromkeys(range(3), 0))
    with ra.TrajectoryWriter(
        tmp_path / "full.zarr", model_name="seed0", probe_set=probe_set, layers=LAYERS
    ) as recording:
        recording.append(3, step_arrays(3))
    assert_reads_back(tmp_path / "full.zarr", "seed0", dict.fromkeys(range(4), 0))


def record_with_outage(storage, probe_set, steps: int, outage: set[int], *, comes_back: bool) -> ra.TrajectoryWriter:
    recording = ra.TrajectoryWriter(
        storage, model_name="seed0", probe_set=probe_set, layers=LAYERS, on_store_error="warn"
    )
    for step in range(steps):
        storage.fails = (lambda write: OSError("gone")) if step in outage else (lambda write: None)
        recording.append(step, step_arrays(step))
        recording.flush()
    if comes_back:
        storage.fails = lambda write: None
    recording.close()
    return recording


def test_gaps_are_told_at_once_and_noted_when_the_store_is_back(tmp_path, probe_set):
    storage = FailingStorage(tmp_path / "away.zarr", lambda write: None)
    with pytest.warns(StoreWarning) as told:
        recording = record_with_outage(storage, probe_set, 5, {1, 2}, comes_back=True)
    assert [str(warning.message).split(" is not")[0] for warning in told] == [
        "step 1 of model 'seed0'",
        "step 2 of model 'seed0'",
    ]
    assert recording.committed == recording.steps == [0, 3, 4]
    tree = ra.open_store(tmp_path / "away.zarr")
    assert [gap["step"] for gap in catalog.gaps(tree, "seed0")] == [1, 2]
    assert ra.verify(tmp_path / "away.zarr", data=True) == []


def test_a_store_gone_at_the_end_is_still_told(tmp_path, probe_set):
    storage = FailingStorage(tmp_path / "end.zarr", lambda write: None)
    with pytest.warns(StoreWarning) as told:
        recording = record_with_outage(storage, probe_set, 2, {1}, comes_back=False)
    assert ["step 1" in str(told[0].message), "finalising" in str(told[1].message)] == [True, True]
    assert [gap["step"] for gap in recording.gaps] == [1]
    assert_reads_back(tmp_path / "end.zarr", "seed0", {0: 0})


def test_a_slow_store_holds_the_training_back_instead_of_filling_memory(tmp_path, probe_set):
    storage = FailingStorage(tmp_path / "slow.zarr", lambda write: None)
    with ra.TrajectoryWriter(storage, model_name="seed0", probe_set=probe_set, layers=LAYERS) as recording:
        storage.fails = lambda write: time.sleep(0.01)
        for step in range(12):
            recording.append(step, step_arrays(step))
            assert len(recording.steps) - len(recording.committed) <= writer_thread.QUEUE_LENGTH + 2
    assert recording.committed == list(range(12))


def test_a_writer_whose_lease_was_taken_by_force_stops_before_its_next_commit(tmp_path, probe_set):
    url = tmp_path / "taken.zarr"
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}
    first = ra.TrajectoryWriter(url, **keywords)
    first.append(0, step_arrays(0))
    first.flush()
    with ra.TrajectoryWriter(url, force=True, **keywords) as second:
        assert second.steps == [0]
        second.append(1, step_arrays(1))
        second.flush()
        first.append(2, step_arrays(2))
        with pytest.raises(LeaseError, match="taken over"):
            first.flush()
        second.append(3, step_arrays(3))
    with pytest.raises(LeaseError):
        first.close()
    assert_reads_back(url, "seed0", {0: 0, 1: 0, 3: 0})


@pytest.mark.parametrize("every", [5, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_repair_goes_on(tmp_path, probe_set, every):
    damaged = tmp_path / "damaged.zarr"
    with ra.TrajectoryWriter(damaged, model_name="seed0", probe_set=probe_set, layers=LAYERS) as recording:
        for step in range(4):
            recording.append(step, step_arrays(step))
    (damaged / "models/seed0/layer.0/c.1.0.0").unlink()
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}
    for number in range(1, 100, every):
        url = tmp_path / f"copy-{number}.zarr"
        shutil.copytree(damaged, url)
        try:
            ra.repair(FailingStorage(url, dying_at(number)))
        except StoreDiedError:
            if (url / "probe/.repair/seed0/zarr.json").exists():
                with pytest.raises(StoreError, match="repair of model 'seed0' was interrupted"):
                    ra.TrajectoryWriter(url, **keywords)
            ra.repair(url)
            assert ra.verify(url, data=True) == []
            assert_reads_back(url, "seed0", {0: 0, 2: 0, 3: 0}, modes=["unconsolidated"])
        else:
            break
    assert 20 < number < 99
