"""A store that dies at any one write of a whole run shows what was committed, no more and no less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import repaudit as ra
from repaudit.errors import RepauditError
from tests.faults.conftest import (
    LAYERS,
    FailingStorage,
    StoreDiedError,
    assert_reads_back,
    dying_at,
    open_plainly,
    step_arrays,
)


def record(storage, probe_set, acknowledged: dict[int, int]) -> None:
    """Record, resume from an older checkpoint and go on; `acknowledged` follows what flush has promised."""
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}
    with ra.TrajectoryWriter(storage, **keywords) as writer:
        for step in (0, 10, 20):
            writer.append(step, step_arrays(step))
            writer.flush()
            acknowledged[step] = 0
    with ra.TrajectoryWriter(storage, truncate_after=10, **keywords) as writer:
        acknowledged.pop(20, None)
        for step in (15, 20):
            writer.append(step, step_arrays(step, seed=1))
            writer.flush()
            acknowledged[step] = 1


FINAL = {0: 0, 10: 0, 15: 1, 20: 1}
HISTORY = [{}, {0: 0}, {0: 0, 10: 0}, {0: 0, 10: 0, 20: 0}, {0: 0, 10: 0, 15: 1}, FINAL]


def writes_of_a_run(tmp_path: Path, probe_set) -> int:
    storage = FailingStorage(tmp_path / "whole.zarr", lambda write: None)
    record(storage, probe_set, {})
    return storage.writes


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_crash_between_any_two_writes_leaves_the_committed_steps(first, tmp_path, probe_set):
    total = writes_of_a_run(tmp_path, probe_set)
    assert total > 60
    for number in range(first, total + 1, 3):
        url = tmp_path / f"died-{number}.zarr"
        acknowledged: dict[int, int] = {}
        with pytest.raises(StoreDiedError):
            record(FailingStorage(url, dying_at(number)), probe_set, acknowledged)
        seen = committed_history(url, acknowledged)
        assert_reads_back(url, "seed0", seen)
        healthy = FailingStorage(url, lambda write: None)
        record(healthy, probe_set, {}) if not seen else finish(healthy, probe_set, seen)
        assert_reads_back(url, "seed0", FINAL, modes=["unconsolidated"])
        assert ra.verify(url, data=True) == []


def committed_history(url: Path, acknowledged: dict[int, int]) -> dict[int, int]:
    """Find which moment of the run the store shows: the last acknowledged one, or the one just after it."""
    models = open_plainly(url, "unconsolidated")
    steps = tuple(models["seed0"].step.values.tolist()) if "seed0" in models else ()
    # A truncation is a commit too: the store may already show it before the step that follows.
    allowed = [moment for moment in HISTORY if tuple(moment) == steps]
    assert allowed, f"{steps} was never committed"
    assert set(acknowledged) <= set(steps) or steps == (0, 10), (acknowledged, steps)
    return allowed[0]


def finish(storage, probe_set, seen: dict[int, int]) -> None:
    """Go on after the crash as a run resumed from the checkpoint at step 10 would."""
    keywords = {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}
    with ra.TrajectoryWriter(storage, truncate_after=10, **keywords) as writer:
        for step, seed in FINAL.items():
            if step not in writer.steps:
                writer.append(step, step_arrays(step, seed))


def test_readers_see_committed_steps_during_every_write(tmp_path, probe_set):
    url = tmp_path / "watched.zarr"
    acknowledged: dict[int, int] = {}
    moments: list[tuple[int, ...]] = []

    def look(write: int) -> None:
        moment = committed_history(url, {})
        assert_reads_back(url, "seed0", moment, modes=["unconsolidated"])
        if not moments or moments[-1] != tuple(moment):
            moments.append(tuple(moment))

    watched: Callable[[int], None] = look
    record(FailingStorage(url, watched), probe_set, acknowledged)
    assert moments == [(), (0,), (0, 10), (0, 10, 20), (0, 10), (0, 10, 15), (0, 10, 15, 20)]


def test_a_write_refused_by_the_store_reaches_the_training_thread(tmp_path, probe_set):
    with pytest.raises(RepauditError, match="died at write 25"):
        record(FailingStorage(tmp_path / "one.zarr", dying_at(25)), probe_set, {})
