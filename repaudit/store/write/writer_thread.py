"""The writer's thread: it commits what is queued, in order, and keeps what went wrong for the caller's thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

from numpy.typing import NDArray

from repaudit.names import STEP
from repaudit.store.write.amending import amend_trigger
from repaudit.store.write.commit import ModelRecord, StepRow
from repaudit.store.write.retrying import OnStoreError, as_store_error, retrying

_LOGGER = logging.getLogger(__name__)

QUEUE_LENGTH: Final = 2
"""Steps that may wait; then `put` blocks, so that memory stays bounded."""


@dataclass
class QueuedStep:
    """A step to be committed."""

    row: StepRow
    arrays: Mapping[str, NDArray[Any]]


@dataclass
class QueuedGap:
    """A step that is not in the record, to be noted."""

    step: int
    reason: str


@dataclass
class QueuedTrigger:
    """What asked for the step that was queued last, with all that is known now."""

    step: int
    trigger: str


@dataclass
class QueuedTruncation:
    """A truncation, and the event that tells when it is done."""

    after_step: int
    done: threading.Event = field(default_factory=threading.Event)


Queued: TypeAlias = QueuedStep | QueuedGap | QueuedTrigger | QueuedTruncation


class WriterThread:
    """The only thread that changes a model's record, and a bounded queue to it.

    `committed` and `gaps` follow the record; `error` and `warnings` hold what the caller's thread does not know yet.
    """

    def __init__(self, record: ModelRecord, on_store_error: OnStoreError) -> None:
        self.record, self.on_store_error = record, on_store_error
        self.committed = record.steps
        self.warnings: list[str] = []
        self.error: BaseException | None = None
        self.failed = False
        self._noted = record.gaps
        self._unnoted: list[tuple[int, str]] = []
        self.cpu_seconds = 0.0
        """That the thread has taken from whatever else runs in the process."""
        self.queue: queue.Queue[Queued | None] = queue.Queue(QUEUE_LENGTH)
        self.thread = threading.Thread(target=self._work, name=f"repaudit-writer-{record.model_name}", daemon=True)
        self.thread.start()

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """The steps that are not in the record, each with its reason; noted in the store or not yet."""
        unnoted = [{STEP: step, "reason": reason} for step, reason in self._unnoted]
        return [*(dict(gap) for gap in self._noted), *unnoted]

    def _work(self) -> None:
        while True:
            item = self.queue.get()
            try:
                if item is None:
                    self._note_gaps()
                    self._guard(self.record.finalise, "finalising", self.on_store_error)
                    return
                if isinstance(item, QueuedTruncation):  # the caller waits for it: a failure is always raised
                    what = f"truncation after step {item.after_step}"
                    self._guard(partial(self._truncate, item.after_step), what, "raise")
                    item.done.set()
                elif isinstance(item, QueuedTrigger):
                    action = partial(retrying(), amend_trigger, self.record, item.step, item.trigger)
                    self._guard(action, f"trigger of step {item.step}", self.on_store_error)
                elif isinstance(item, QueuedGap):
                    self._unnoted.append((item.step, item.reason))
                    self._note_gaps()
                elif self.error is None and not self.failed:
                    self._guard(partial(self._store, item), item.row[STEP], self.on_store_error)
                    self._note_gaps()
            finally:
                self.cpu_seconds = time.thread_time()
                self.queue.task_done()

    def _store(self, item: QueuedStep) -> None:
        retrying()(self.record.append, item.row, item.arrays)
        self.committed = self.record.steps

    def _truncate(self, after_step: int) -> None:
        retrying()(self.record.truncate, after_step)
        self.committed = self.record.steps
        self._noted = self.record.gaps
        self._unnoted = [gap for gap in self._unnoted if gap[0] <= after_step]

    def _note_gaps(self) -> None:
        """Commit what could not be stored, as soon as the store takes it."""
        try:
            while self._unnoted:
                self.record.record_gap(*self._unnoted[0])
                del self._unnoted[0]
                self._noted = self.record.gaps
        except Exception as error:  # noqa: BLE001 - the gaps wait in `_unnoted` for the next occasion
            _LOGGER.info("model %r: %d gaps cannot be noted yet: %s", self.record.model_name, len(self._unnoted), error)

    def _guard(self, action: Callable[[], None], what: int | str, policy: OnStoreError) -> None:
        """Run one action of this thread; its failure is kept for the caller's thread, or becomes a gap."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a store raises must reach the training thread
            _LOGGER.warning("model %r, %s: %s", self.record.model_name, what, error)
            if policy == "raise":
                self.error = as_store_error(error, self.record.model_name, what)
                return
            reason = f"{type(error).__name__}: {error}"
            if isinstance(what, int):
                self._unnoted.append((what, reason))
                missing = f"is not in the store ({reason}); {len(self.gaps)} missing so far"
                self.warnings.append(f"step {what} of model {self.record.model_name!r} {missing}")
            else:
                self.warnings.append(f"model {self.record.model_name!r}, {what}: {reason}")
