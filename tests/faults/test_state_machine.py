"""A writer driven at random, against a model in memory: whatever happens, the store shows the committed steps."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import repaudit as ra
from repaudit.errors import LeaseError, StoreError
from repaudit.store.copying import copy_store
from repaudit.store.read.stored_probe_set import StoredProbeSet
from tests.faults.conftest import LAYERS, SAMPLES, FailingStorage, StoreDiedError, assert_reads_back, step_arrays

GOES_ON = ("append", "truncate", "gap", "close")


def pass_term(lease: Path) -> None:
    """Make a lease that of a writer on another host, of which nothing was heard for its term."""
    holder = json.loads(lease.read_text())
    lease.write_text(json.dumps(holder | {"host": "elsewhere", "heartbeat": 0.0, "term": 0.0}))


def go_on(writer: Any, how: str, step: int) -> None:
    """Do something with a writer that must not have any effect; a gap that cannot be noted is told by its end."""
    if how == "append":
        writer.append(step, step_arrays(step, seed=9999))
    elif how == "truncate":
        writer.truncate(0)
    elif how == "gap":
        writer.note_gap(step, "stopped")
    writer.flush()
    writer.close()


class RecordingMachine(RuleBasedStateMachine):
    """Appends, truncations, takeovers, replacements, copies, crashes at any write, repairs and resumptions."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="repaudit-machine-"))
        self.url = self.folder / "store.zarr"
        self.storage: Any = None
        self.writer: Any = None
        self.committed: dict[int, int] = {}
        self.allowed: list[dict[int, int]] = [{}]
        self.seed = 0
        inputs = {"x": np.zeros((SAMPLES, 1))}
        self.probe_set = StoredProbeSet("d" * 64, [str(i) for i in range(SAMPLES)], inputs)

    def teardown(self) -> None:
        if getattr(self, "writer", None) is not None:
            self.storage.fails = lambda write: None
            self.writer.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def attempt(self, action, after: dict[int, int]) -> bool:
        """Do something that commits `after`, or dies on the way; then the store may show either."""
        before = self.committed
        try:
            action()
        except StoreDiedError:
            self.crash([before, after])
            return False
        self.committed, self.allowed = after, [after]
        return True

    def crash(self, allowed: list[dict[int, int]]) -> None:
        if self.writer is not None:
            with contextlib.suppress(StoreError):
                self.writer.close()
        self.writer = None
        self.allowed = allowed
        for state in allowed:
            try:
                assert_reads_back(self.url, "seed0", state, modes=["unconsolidated"])
            except AssertionError:
                continue
            self.committed, self.allowed = state, [state]
            return
        raise AssertionError(f"the store shows none of {allowed}")

    @precondition(lambda self: self.writer is None)
    @rule(dies=st.one_of(st.none(), st.integers(1, 30)), back=st.one_of(st.none(), st.integers(0, 60)))
    def open(self, dies, back) -> None:
        self.seed += 1
        self.storage = FailingStorage(self.url, lambda write: None)
        self.die_after(dies)
        after = {step: seed for step, seed in self.committed.items() if back is None or step <= back}

        def action():
            self.writer = ra.TrajectoryWriter(self.storage, **self.keywords(), truncate_after=back)
            assert self.writer.steps == list(after)

        self.attempt(action, after)

    def keywords(self) -> dict[str, Any]:
        return {"model_name": "seed0", "probe_set": self.probe_set, "layers": LAYERS}

    def die_after(self, writes: int | None) -> None:
        limit = None if writes is None else self.storage.writes + writes
        self.storage.fails = lambda write: StoreDiedError(f"died at {write}") if limit and write >= limit else None

    @precondition(lambda self: self.writer is not None)
    @rule(ahead=st.integers(1, 10), dies=st.one_of(st.none(), st.none(), st.integers(1, 12)))
    def append(self, ahead, dies) -> None:
        self.die_after(dies)
        step = (max(self.committed) if self.committed else -1) + ahead
        writer, seed = self.writer, self.seed

        def action():
            writer.append(step, step_arrays(step, seed))
            writer.flush()

        self.attempt(action, {**self.committed, step: seed})

    @precondition(lambda self: self.writer is not None)
    @rule(back=st.integers(0, 60), dies=st.one_of(st.none(), st.none(), st.integers(1, 12)))
    def truncate(self, back, dies) -> None:
        self.die_after(dies)
        after = {step: seed for step, seed in self.committed.items() if step <= back}
        self.attempt(lambda: self.writer.truncate(back), after)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def close(self) -> None:
        self.die_after(None)
        self.writer.close()
        self.writer = None

    @precondition(lambda self: self.writer is not None)
    @rule(
        ahead=st.integers(1, 10), first=st.booleans(), goes_on=st.sampled_from(["append", "truncate", "gap", "close"])
    )
    def take_over(self, ahead, first, goes_on) -> None:
        """Let a second writer take over after the first one's term; the first one goes on, and must be refused."""
        self.die_after(None)
        stopped, step = self.writer, (max(self.committed) if self.committed else -1) + ahead
        pass_term(self.url / "models/seed0/.lease")
        self.seed += 1
        self.storage = FailingStorage(self.url, lambda write: None)
        self.writer = ra.TrajectoryWriter(self.storage, **self.keywords())
        assert self.writer.steps == list(self.committed)
        if first:
            self.append(ahead, None)
        with pytest.raises(LeaseError):
            go_on(stopped, goes_on, step)
        with contextlib.suppress(LeaseError):
            stopped.close()
        if not first:
            self.append(ahead, None)

    @precondition(lambda self: self.writer is None and self.committed)
    @rule(dies=st.one_of(st.none(), st.integers(1, 30)))
    def replace(self, dies) -> None:
        self.seed += 1
        self.storage = FailingStorage(self.url, lambda write: None)
        self.die_after(dies)

        def action():
            self.writer = ra.TrajectoryWriter(self.storage, **self.keywords(), if_exists="replace")
            assert self.writer.steps == []

        self.attempt(action, {})

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def copy(self, data) -> None:
        steps = data.draw(st.sets(st.sampled_from(sorted(self.committed)), min_size=1))
        target = self.folder / f"copy-{len(list(self.folder.iterdir()))}.zarr"
        assert copy_store(self.url, target, steps=steps) == {"seed0": sorted(steps)}
        assert_reads_back(target, "seed0", {step: self.committed[step] for step in sorted(steps)}, ["unconsolidated"])
        assert ra.verify(target, data=True) == []

    @precondition(lambda self: self.committed)
    @rule()
    def verify(self) -> None:
        """Nothing is ever wrong but what writers that died left behind."""
        assert {problem.kind for problem in ra.verify(self.url, data=True)} <= {"leftover"}

    @precondition(lambda self: self.writer is None and self.committed)
    @rule()
    def repair(self) -> None:
        ra.repair(self.url)
        assert ra.verify(self.url, data=True) == []

    @invariant()
    def the_store_shows_the_committed_steps(self) -> None:
        if hasattr(self, "url"):
            assert_reads_back(self.url, "seed0", self.committed, modes=["unconsolidated"])


RecordingMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
TestRecording = RecordingMachine.TestCase
