"""The transformers ``Trainer``: a callback that audits."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from os import PathLike
from types import FrameType
from typing import Any, Final, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import has_length

from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.options import AuditOptions
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.session import AuditSession
from repaudit.capture.record.trigger import ON_CHECKPOINT, ON_VALIDATION_END, AuditTrigger

_IGNORED: Final = "Checkpoint included callbacks not included in current configuration. Ignoring. "
"""What the trainer says of states for which it has no callback of the state's name."""


class AuditTrainerCallback(TrainerCallback):
    """Record the representations of the model that a transformers ``Trainer`` trains.

    Parameters
    ----------
    store, model_name, probe_set, layer_specs, trigger
        As for :class:`repaudit.RepresentationAuditCallback`: ``model_name="trial{n}"`` numbers the models of a
        ``Trainer(model_init=...)`` that trains several times, or of a hyperparameter search.
    options
        See :class:`repaudit.capture.record.options.AuditOptions`.

    Raises
    ------
    ValueError, TypeError
        When an option is unknown or invalid.

    See Also
    --------
    repaudit.RepresentationAuditCallback : The same for Lightning.
    repaudit.Recorder : The same for another training loop.

    Examples
    --------
    >>> import torch
    >>> from repaudit import AuditTrigger, ProbeSet
    >>> callback = AuditTrainerCallback(
    ...     store="run.zarr", model_name="seed0", layer_specs=["model.layers[*]"],
    ...     probe_set=ProbeSet.from_tensors({"input_ids": torch.tensor([[1, 2], [3, 4]])}),
    ...     trigger=AuditTrigger(every_n_steps=10))
    >>> callback.trajectory
    []
    """

    def __init__(
        self,
        store: str | PathLike[str],
        model_name: str,
        probe_set: ProbeSet,
        layer_specs: Sequence[LayerSpec | str] | LayerSpec | str,
        trigger: AuditTrigger | None = None,
        **options: Unpack[AuditOptions],
    ) -> None:
        self.recorder = Recorder(store, model_name, probe_set, layer_specs, **options)
        self.session = AuditSession(self.recorder, trigger)
        self._epoch_began_at = 0

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Refuse Lightning's trainer, which calls this where it misses :attr:`state_key`."""
        raise TypeError(
            f"expected transformers' Trainer, found a Lightning trainer: {type(self).__name__} is for transformers, "
            "use ra.RepresentationAuditCallback"
        )

    @property
    def state_key(self) -> str:
        """What Lightning asks callbacks for: this is none of its own."""
        self.on_exception()
        return ""

    @property
    def trajectory(self) -> list[tuple[int, dict[str, Any]]]:
        """With a ``gauge``: a list of (step, {layer: operator})."""
        return self.recorder.trajectory

    @property
    def _state_key(self) -> str:
        return f"repaudit: {self.session.name} in {self.recorder.store}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Try everything once, and audit the untrained model if that is due."""
        self.recorder.log = partial(_log, args, state, control, _reporters())
        kept: Any = state.stateful_callbacks  # saved with every checkpoint, by the trainer
        if state.global_step > 0:
            self.session.mark_resumed()
            self.session.load_state_dict(kept.get(self._state_key, {}))
        others = calling_callbacks()
        self.session.leave_out_others(others)
        for begin in (getattr(one, "on_audits_begin", None) for one in others):
            if callable(begin):  # what looks at audits is not to miss the first, nor to refuse it once it is stored
                begin(args)
        self.session.start(model, state.global_step, epoch=state.epoch)
        kept.pop(self._state_key, None)
        if (
            self.session.offset or self.session.n
        ):  # else there is nothing to keep, and the trainer knows no such callback
            kept[self._state_key] = self.session.state_dict()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit the step if it is due."""
        self.session.after_step(model, state.global_step, epoch=state.epoch, loss=_last_loss(state))

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the step at which the epoch begins."""
        self._epoch_began_at = state.global_step

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Audit the end of a whole epoch if it is due."""
        if state.global_step == self._epoch_began_at:  # a resume may skip all batches of an epoch
            return
        done = whole_epochs(state, control, train_dataloader)
        if done is not None:
            self._event(state, model, self.session.trigger.due_at_epoch(done), epoch=done)
        self._end(state, control, model)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit with a checkpoint if the trigger says so."""
        if self.session.trigger.on_checkpoint:
            self._event(state, model, (ON_CHECKPOINT,))
        self._end(state, control, model)
        self.session.saved(model)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit after an evaluation if the trigger says so."""
        if self.session.trigger.on_validation_end:
            self._event(state, model, (ON_VALIDATION_END,))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit the end of the training if that is due, commit what was audited, and release the model."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):  # else it is no longer the last step's
            self.session.end(model, state.global_step, epoch=state.epoch)
        self.close()

    def close(self) -> None:
        """Commit what was audited, and release the model, where an exception has ended the training."""
        self.session.close()
        self.recorder.cost.tell(self.recorder.store, self.recorder.model_name)

    def _end(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        """Audit the end before the trainer loads its best model, and tell the loggers all while they listen."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self.session.end(model, state.global_step, epoch=state.epoch)
            self.session.flush()

    def _event(self, state: TrainerState, model: Any, triggers: tuple[str, ...], epoch: float | None = None) -> None:
        epoch = state.epoch if epoch is None else epoch
        self.session.event(model, state.global_step, triggers, epoch=epoch, loss=_last_loss(state))


def _keep_false_alarms_back(record: logging.LogRecord) -> bool:
    """Take the states that callbacks of the trainer do resume from out of its warning of ignored ones.

    The trainer matches states by the names of classes, before a callback can take its own.
    """
    trainer = _restoring_trainer() if str(record.msg).startswith(_IGNORED) else None
    if trainer is None:
        return True
    callbacks = [*trainer.callback_handler.callbacks, trainer.control]
    known = {type(one).__name__ for one in callbacks}
    known |= {one._state_key for one in callbacks if isinstance(one, AuditTrainerCallback)}
    left = [name for name in trainer.state.stateful_callbacks if name not in known]
    record.msg = f"{_IGNORED}({', '.join(left)})"
    return bool(left)


def _restoring_trainer() -> Any:
    """Return the trainer that is warning: a log record does not tell."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if hasattr(caller := frame.f_locals.get("self"), "callback_handler"):
            return caller
        frame = frame.f_back
    return None


logging.getLogger("transformers.trainer").addFilter(_keep_false_alarms_back)


def whole_epochs(state: TrainerState, control: TrainerControl, loader: Any) -> int | None:
    """Return how many whole epochs are done at the end of one; None where the training stops inside it.

    Without a length of the data, the trainer takes ``max_steps`` for that of an epoch, so that its own count is never
    whole. Then the loader tells whether it came to its end, and the trainer's count only in which epoch.

    Examples
    --------
    >>> whole_epochs(TrainerState(epoch=2.0), TrainerControl(), [1, 2, 3])
    2
    >>> whole_epochs(TrainerState(epoch=1 + 10 / 30), TrainerControl(), iter([1, 2, 3]))
    2
    """
    if has_length(loader):
        return int(state.epoch) if float(state.epoch).is_integer() else None
    stopped = control.should_training_stop or control.should_epoch_stop
    came_to_its_end = getattr(loader, "end_of_dataloader", False) if stopped else True
    return ceil(state.epoch) if came_to_its_end else None


def _log(
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    reporters: Sequence[TrainerCallback],
    metrics: Mapping[str, float],
) -> None:
    """Put an audit's metrics into the trainer's history, and pass them to what it reports to."""
    state.log_history.append({**metrics, "step": state.global_step, "epoch": state.epoch or 0.0})
    for reporter in reporters:
        reporter.on_log(args, state, control, logs=dict(metrics))


def _reporters() -> list[TrainerCallback]:
    """Return the trainer's callbacks of ``report_to``."""
    known: Any = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in calling_callbacks() if isinstance(callback, known)]


def calling_callbacks() -> list[TrainerCallback]:
    """Return all callbacks of the trainer that is calling one of them: it does not tell them of each other."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    return list(frame.f_locals["self"].callbacks) if frame is not None else []


def _last_loss(state: TrainerState) -> float | None:
    """Return the loss that the trainer logged last, if it was logged for this step."""
    last = state.log_history[-1] if state.log_history else {}
    return last.get("loss") if last.get("step") == state.global_step else None
