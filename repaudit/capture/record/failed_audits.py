"""What is done about audits that fail: raise, or tell once, count, and note the gap in the record."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from repaudit.errors import AuditWarning, LostRankError, StateError, StoreError
from repaudit.names import STEP
from repaudit.store.write.writer import TrajectoryWriter

Result = TypeVar("Result")


class Failures:
    """The audits of one model that failed, and what its writer could not store since it was opened.

    Parameters
    ----------
    model_name
        For the messages.
    policy
        ``"warn"`` or ``"raise"``.
    """

    def __init__(self, model_name: str, policy: str) -> None:
        self.model_name, self.policy = model_name, policy
        self._own: dict[int, str] = {}
        self._stores: dict[int, str] = {}
        self._before: set[int] = set()

    def opened(self, writer: TrajectoryWriter) -> None:
        """Take note of the gaps that the record has already: they are an earlier run's."""
        self._before = {gap[STEP] for gap in writer.gaps} - self._own.keys() - self._stores.keys()

    def all(self, writer: TrajectoryWriter | None) -> list[tuple[int, str]]:
        """Steps and reasons, the writer's own among them."""
        gaps = writer.gaps if writer is not None else []
        self._stores |= {gap[STEP]: gap["reason"] for gap in gaps if gap[STEP] not in self._before}
        return sorted((self._stores | self._own).items())

    def attempt(self, step: int | None, action: Callable[[], Result], writer: TrajectoryWriter | None) -> Result | None:
        """Let a failure pass with a warning and a gap in the record, unless failures are to be raised."""
        try:
            return action()
        except (LostRankError, StateError):
            raise  # the processes are out of step, or the model is no longer as it was: the training must not go on
        except Exception as error:
            if self.policy == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
        at = "closing the store" if step is None else f"the audit at step {step}"
        if step is not None:
            self._own[step] = reason
            if writer is not None:
                with suppress(StoreError):  # the store takes nothing more: the failure is told all the same
                    writer.note_gap(step, reason)
        warnings.warn(
            f"model {self.model_name!r}: {at} failed ({reason}); the training goes on, "
            f"{len(self.all(writer))} audits missing so far",
            AuditWarning,
            stacklevel=5,
        )
        return None


def warn_recorded_before(model_name: str, step: int, last: int) -> None:
    """Say once that a model of this name was recorded before, and that its steps stay as they are."""
    warnings.warn(
        f"model {model_name!r} was recorded up to step {last} before: step {step} and others up to there are left as "
        "they are. A training of its own needs another model_name, or if_exists='replace'; one that goes on from a "
        "checkpoint, open(model, truncate_after=step)",
        AuditWarning,
        stacklevel=3,
    )
