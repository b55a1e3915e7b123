"""The audits of one training run: which steps are due, once each, across resumes and repeated fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from repaudit.capture.record.audit import Audit
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.trigger import ON_CHECKPOINT, AuditTrigger
from repaudit.errors import StepOrderError

Context = Callable[[], AbstractContextManager[Any]]


class AuditSession:
    """Drive a recorder by a trainer's events.

    An audit is passed to the store when the next step begins, so that every trigger of its step is recorded with it.
    Steps are the trainer's optimizer steps plus an offset, which grows where a second run continues to train the same
    model and counts from zero again.
    """

    def __init__(self, recorder: Recorder, trigger: AuditTrigger) -> None:
        self.recorder, self.trigger = recorder, trigger
        self.offset = 0
        self.last_step: int | None = None
        self._resumed = False
        self._pending: tuple[Audit, list[str]] | None = None
        self.log: Callable[[Mapping[str, float]], None] | None = None
        """Called with the metrics of every audit; the trainer's, so that it stays in this process."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle."""
        return {**self.__dict__, "log": None}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"offset": self.offset, "last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state; later steps will be dropped from the record."""
        self.offset = int(state.get("offset", 0))
        self.last_step = state.get("last_step")
        self._resumed = True

    def mark_resumed(self) -> None:
        """Note that the run resumes from a checkpoint, with or without a state of audits."""
        self._resumed = True

    def forget_resumed(self) -> None:
        """Note that the next run does not resume from what was loaded so far."""
        self._resumed = False

    def start(
        self, model: nn.Module, trainer_step: int, *, epoch: float | None = None, context: Context = nullcontext
    ) -> None:
        """Open the record before the first step, and audit the model as it stands if that is due.

        Raises
        ------
        StepOrderError
            When the record goes further than a run that did not resume.
        """
        if self.recorder.is_open:  # a run that was interrupted
            self.close()
        resumed, self._resumed = self._resumed, False
        if not resumed and self.last_step is not None and trainer_step + self.offset < self.last_step:
            self.offset = self.last_step - trainer_step
        step = trainer_step + self.offset
        with context():
            self.recorder.open(model, truncate_after=step if resumed else None)
        if not self.recorder.is_open:
            return
        last = self.recorder.last_recorded
        if last is not None and last > step:
            self.recorder.close()
            raise StepOrderError(
                f"model {self.recorder.model_name!r} is recorded up to step {last} in {self.recorder.store}, "
                f"but this training starts at step {step}: resume from a checkpoint, choose another model_name or "
                "store, or pass if_exists='replace'"
            )
        self.last_step = step
        triggers = self.trigger.due_at(step) + ((ON_CHECKPOINT,) if resumed and self.trigger.on_checkpoint else ())
        self.event(model, trainer_step, triggers, epoch=epoch, context=context)

    def after_step(
        self,
        model: nn.Module,
        trainer_step: int,
        *,
        epoch: float | None = None,
        loss: float | torch.Tensor | None = None,
        context: Context = nullcontext,
    ) -> None:
        """Audit after an optimizer step if it is due; batches that only accumulate gradients do nothing."""
        step = trainer_step + self.offset
        if self.last_step is not None and step <= self.last_step:
            return
        triggers = self.trigger.due_at(step, self.last_step)
        self.last_step = step
        self.event(model, trainer_step, triggers, epoch=epoch, loss=loss, context=context)

    def event(
        self,
        model: nn.Module,
        trainer_step: int,
        triggers: tuple[str, ...],
        *,
        epoch: float | None = None,
        loss: float | torch.Tensor | None = None,
        context: Context = nullcontext,
    ) -> None:
        """Audit for these triggers; a step that is already audited only gets them added."""
        if not triggers or not self.recorder.is_open:
            return
        step = trainer_step + self.offset
        if self._pending is not None and self._pending[0].step == step:
            self._pending[1].extend(trigger for trigger in triggers if trigger not in self._pending[1])
            return
        self.hand_over()
        if self.recorder.has(step):
            return
        with context():
            audit = self.recorder.take(model, step, epoch=epoch, loss=loss)
        if audit is not None:
            self._pending = (audit, list(triggers))
            if audit.metrics and self.log is not None:
                self.log(audit.metrics)

    def hand_over(self) -> None:
        """Pass the last audit to the store: its step is over."""
        if self._pending is not None:
            (audit, triggers), self._pending = self._pending, None
            self.recorder.hand_over(audit, triggers)

    def flush(self) -> None:
        """Pass the last audit on and wait until all are committed."""
        self.hand_over()
        self.recorder.flush()

    def close(self) -> None:
        """Pass the last audit on, flush and close; another fit opens the record again."""
        self.hand_over()
        self.recorder.close()
