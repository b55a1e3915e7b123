"""The transformers ``Trainer``: a callback that audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.options import AuditOptions
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.session import AuditSession
from repaudit.capture.record.trigger import ON_CHECKPOINT, ON_VALIDATION_END, AuditTrigger


class AuditTrainerCallback(TrainerCallback):
    """Record the representations of the model that a transformers ``Trainer`` trains.

    Parameters
    ----------
    store, model_name, probe_set, layer_specs, trigger
        As for :class:`repaudit.RepresentationAuditCallback`.
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
        self.session = AuditSession(self.recorder, trigger or AuditTrigger(at_start=True, every_n_epochs=1))

    @property
    def trajectory(self) -> list[tuple[int, dict[str, Any]]]:
        """With a ``gauge``: a list of (step, {layer: operator})."""
        return self.recorder.trajectory

    @property
    def _state_key(self) -> str:
        return f"repaudit: {self.recorder.model_name} in {self.recorder.store}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Try everything once, and audit the untrained model if that is due."""
        self.session.log = partial(_log, state)
        kept: Any = state.stateful_callbacks  # saved with every checkpoint, by the trainer
        if state.global_step > 0:
            self.session.mark_resumed()
            if self._state_key in kept:
                self.session.load_state_dict(kept[self._state_key])
        self.session.start(model, state.global_step, epoch=state.epoch)
        kept[self._state_key] = self.session.state_dict()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Pass the audit of the last step to the store."""
        self.session.hand_over()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit the step if it is due."""
        self.session.after_step(model, state.global_step, epoch=state.epoch, loss=_last_loss(state))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit the end of a whole epoch if it is due."""
        if state.epoch is not None and float(state.epoch).is_integer():  # else the training stops inside an epoch
            self._event(state, model, self.session.trigger.due_at_epoch(int(state.epoch)))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit with a checkpoint if the trigger says so."""
        if self.session.trigger.on_checkpoint:
            self._event(state, model, (ON_CHECKPOINT,))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Audit after an evaluation if the trigger says so."""
        if self.session.trigger.on_validation_end:
            self._event(state, model, (ON_VALIDATION_END,))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Commit what was audited, and release the model."""
        self.session.close()

    def _event(self, state: TrainerState, model: Any, triggers: tuple[str, ...]) -> None:
        self.session.event(model, state.global_step, triggers, epoch=state.epoch, loss=_last_loss(state))


def _log(state: TrainerState, metrics: Mapping[str, float]) -> None:
    """Put an audit's metrics into the trainer's history."""
    state.log_history.append({**metrics, "step": state.global_step, "epoch": state.epoch or 0.0})


def _last_loss(state: TrainerState) -> float | None:
    """Return the loss that the trainer logged last, if it was logged for this step."""
    last = state.log_history[-1] if state.log_history else {}
    return last.get("loss") if last.get("step") == state.global_step else None
