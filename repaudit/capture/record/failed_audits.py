"""What is done about audits that fail: raise, or warn, count, and note the gap in the record."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from repaudit.errors import AuditWarning, LostRankError, StateError, StoreError
from repaudit.interrupts import Shield, was_raised_by_handler
from repaudit.names import STEP
from repaudit.store.write.retrying import OnStoreError
from repaudit.store.write.writer import TrajectoryWriter

Result = TypeVar("Result")


class Failures:
    """The audits of one model that failed, and what its writer could not store since it was opened.

    Parameters
    ----------
    model_name
        Named in the messages.
    policy
        ``"warn"`` or ``"raise"``.
    """

    def __init__(self, model_name: str, policy: OnStoreError) -> None:
        self.model_name, self.policy = model_name, policy
        self._audits: dict[int, str] = {}
        self._stores: dict[int, str] = {}
        self._before: set[int] = set()

    def opened(self, writer: TrajectoryWriter) -> None:
        """Remember the gaps that the record already has: they are from an earlier run."""
        self._before = {gap[STEP] for gap in writer.gaps} - self._audits.keys() - self._stores.keys()

    def all(self, writer: TrajectoryWriter | None) -> list[tuple[int, str]]:
        """Return steps and reasons, including those of the writer."""
        gaps = writer.gaps if writer is not None else []
        self._stores |= {gap[STEP]: gap["reason"] for gap in gaps if gap[STEP] not in self._before}
        return sorted((self._stores | self._audits).items())

    def attempt(self, step: int | None, action: Callable[[], Result], writer: TrajectoryWriter | None) -> Result | None:
        """Turn a failure into a warning and a gap in the record, unless failures are raised."""
        with (
            Shield() as shield
        ):  # tells what a signal's handler raises, also around the block, from what the audit does
            try:
                with shield.lifted():
                    return action()
            except (LostRankError, StateError):
                raise  # the processes are out of step, or the model is no longer as it was: the training must not go on
            except Exception as error:
                if self.policy == "raise" or was_raised_by_handler(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
        at = "closing the store" if step is None else f"the audit at step {step}"
        if step is not None:
            self._audits[step] = reason
            if writer is not None:
                with suppress(StoreError):  # a closed store takes no note: the warning below is still emitted
                    writer.note_gap(step, reason)
        warnings.warn(
            f"model {self.model_name!r}: {at} failed ({reason}); the training goes on, "
            f"{len(self.all(writer))} audits missing so far",
            AuditWarning,
            stacklevel=5,
        )
        return None


def warn_recorded_before(model_name: str, step: int) -> None:
    """Say that the first step of a training is the last one of the record, which stays as it is."""
    warnings.warn(
        f"model {model_name!r} was recorded up to step {step} before: this training goes on from there, and step "
        f"{step} stays as it is; another training needs another model_name, or if_exists='replace'",
        AuditWarning,
        stacklevel=4,
    )


def warn_not_recorded_again(model_name: str, step: int) -> None:
    """Say that a step is not recorded again, though the model has been trained since."""
    warnings.warn(
        f"model {model_name!r}: step {step} is recorded already, and its parameters have changed since: they are not "
        "recorded; pass the number of optimizer steps taken so far",
        AuditWarning,
        stacklevel=4,
    )


def warn_other_weights(model_name: str) -> None:
    """Say that a training goes on from weights which the last one neither ended with nor saved."""
    warnings.warn(
        f"model {model_name!r} starts with weights that its last training neither ended with nor saved, and is "
        "recorded as going on: another training needs another model_name (one like 'trial{n}' numbers them)",
        AuditWarning,
        stacklevel=4,
    )


def warn_taken_over(model_name: str) -> None:
    """Say that a training is no longer recorded, since a later one of this process has its record."""
    warnings.warn(
        f"model {model_name!r}: another training of this process has taken its record over, and this one is no longer "
        "recorded: give each its own model_name",
        AuditWarning,
        stacklevel=4,
    )
