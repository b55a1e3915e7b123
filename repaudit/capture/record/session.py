"""The audits of one training run: which steps are due, once each, across resumes and repeated fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from repaudit.capture.record.failed_audits import warn_other_weights, warn_recorded_before, warn_taken_over
from repaudit.capture.record.options import check_trigger
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.trained_model import TrainedModel, refuse_to_join
from repaudit.capture.record.trigger import AT_END, DEFAULT_TRIGGER, ON_CHECKPOINT, AuditTrigger
from repaudit.errors import StepOrderError

Context = Callable[[], AbstractContextManager[Any]]


class AuditSession:
    """Drive a recorder by a trainer's events.

    An audit is passed to the store as soon as it is taken; a trigger that asks for the same step later is added to it
    there. Steps are the trainer's optimizer steps plus an offset, which grows where a second run continues to train
    the same model and counts from zero again. Another model is recorded under the next number, where the name has a
    place for it (``"trial{n}"``); else it is refused as that of another process would be.
    """

    def __init__(self, recorder: Recorder, trigger: AuditTrigger | None) -> None:
        check_trigger(trigger)
        self.recorder, self.trigger = recorder, trigger or DEFAULT_TRIGGER
        self.name = recorder.model_name
        recorder.in_trainer = True
        recorder.model_name = numbered(self.name, 0)
        self.n = self.offset = 0
        self.last_step: int | None = None
        self._resumed = False
        self._last: tuple[int, list[str]] | None = None
        self._trained = TrainedModel()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"offset": self.offset, "last_step": self.last_step, "n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state; later steps will be dropped from the record."""
        self._number(int(state.get("n", 0)))
        self.offset = int(state.get("offset", 0))
        self.last_step = state.get("last_step")
        self._resumed = True

    def mark_resumed(self) -> None:
        """Note that the run resumes from a checkpoint, with or without a state of audits."""
        self._resumed = True

    def forget_resumed(self) -> None:
        """Note that the next run does not resume from what was loaded so far."""
        self._resumed = False

    def leave_out_others(self, callbacks: Sequence[Any]) -> None:
        """Forget callbacks that listened to a training which ended by an exception, and are not part of this one."""
        for listen in [*self.recorder.listeners]:
            owner = getattr(listen, "__self__", None)  # a function has none
            if owner is not None and not any(one is owner for one in callbacks):
                self.recorder.listeners.remove(listen)

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
            self.recorder.close()
        self._last = None
        resumed, self._resumed = self._resumed, False
        self._recognise(model, trainer_step, resumed=resumed)
        step = trainer_step + self.offset
        with context():
            self.recorder.open(model, truncate_after=step if resumed else None)
        if not self.recorder.is_open:
            return
        last = self.recorder.last_recorded
        try:
            refuse_to_join(self.recorder.store, self.recorder.model_name, last, step, in_trainer=True)
        except StepOrderError:
            self.recorder.close()
            raise
        if last == step and not resumed and self.last_step is None:
            warn_recorded_before(self.recorder.model_name, step)
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
        self.recorder.hear()
        self.event(model, trainer_step, triggers, epoch=epoch, loss=loss, context=context)

    def end(
        self, model: nn.Module, trainer_step: int, *, epoch: float | None = None, context: Context = nullcontext
    ) -> None:
        """Audit the end of the training if the trigger says so."""
        if self.trigger.at_end:
            self.event(model, trainer_step, (AT_END,), epoch=epoch, context=context)

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
        if not triggers or not self._is_open():
            return
        step = trainer_step + self.offset
        if self._last is not None and self._last[0] == step:
            self._add(triggers, self._last[1])
            return
        if self.recorder.has(step):
            return
        with context():
            audit = self.recorder.take(model, step, epoch=epoch, loss=loss)
        if audit is not None:
            self._last = (step, list(triggers))
            self.recorder.hand_over(audit, triggers)

    def saved(self, model: nn.Module) -> None:
        """Note that a checkpoint keeps the model as it is: a later training may start from there."""
        if self.recorder.is_open:
            self._trained.reach(model)

    def flush(self) -> None:
        """Wait until all audits are committed, and compared where they are tracked."""
        self.recorder.flush()
        if self.recorder.track is not None:
            self.recorder.track.close()
        self.recorder.hear()

    def close(self) -> None:
        """Flush and close; another fit opens the record again."""
        if self.recorder.is_open:
            self._trained.reach()
        self.recorder.close()

    def _recognise(self, model: nn.Module, trainer_step: int, *, resumed: bool) -> None:
        """Tell a training that goes on, or resumes, from the first one of another model."""
        if resumed or self.last_step is None:
            self._trained.begin(model)
            return
        is_another = not self._trained.is_continued_by(model)
        if is_another or (self._trained.is_reset(model) and self._is_numbered):
            self.offset, self.last_step = 0, None
            self._trained.begin(model)
            if self._is_numbered:
                self._number(self.n + 1)
            return
        if self._trained.is_reset(model):
            warn_other_weights(self.recorder.model_name)
        self._trained.go_on(model)
        if trainer_step + self.offset < self.last_step:
            self.offset = self.last_step - trainer_step

    @property
    def _is_numbered(self) -> bool:
        return numbered(self.name, 0) != self.name

    def _number(self, n: int) -> None:
        if n != self.n and self._is_numbered:
            self.recorder.begin_another(numbered(self.name, n))
        self.n = n

    def _is_open(self) -> bool:
        if self.recorder.was_taken_over:
            self.recorder.was_taken_over = False
            warn_taken_over(self.recorder.model_name)
        return self.recorder.is_open

    def _add(self, triggers: tuple[str, ...], known: list[str]) -> None:
        new = [trigger for trigger in triggers if trigger not in known]
        if new:
            known += new
            self.recorder.amend(self._last[0] if self._last else 0, known)


def numbered(name: str, n: int) -> str:
    """Return the name of the n-th model that one callback records.

    Examples
    --------
    >>> numbered("trial{n}", 2), numbered("seed0", 2)
    ('trial2', 'seed0')
    """
    return name.replace("{n}", str(n))
