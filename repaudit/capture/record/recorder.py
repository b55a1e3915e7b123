"""One model's audits, from the live model to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Self, Unpack, cast

import torch
from torch import nn
from xarray import DataTree

from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.audit import Audit, Auditor
from repaudit.capture.record.cost import Cost
from repaudit.capture.record.failed_audits import Failures
from repaudit.capture.record.open_records import hold, let_go, take_over
from repaudit.capture.record.options import (
    WRITER_OPTIONS,
    AuditOptions,
    check_arguments,
    check_loss,
    checked_options,
    step_of,
)
from repaudit.capture.record.recorded_operators import warn_of_other_gauges
from repaudit.capture.record.trained_model import AuditedModel, refuse_to_join
from repaudit.capture.record.trigger import AuditTrigger
from repaudit.errors import StepOrderError
from repaudit.interrupts import Shield
from repaudit.store.read.activations import first_and_last
from repaudit.store.read.reader import open_store
from repaudit.store.write.writer import TrajectoryWriter


class Recorder:
    """Audit a model in a training loop.

    Parameters
    ----------
    store
        Path or URL of the trajectory store.
    model_name
        The model's name there.
    probe_set
        The inputs that are forwarded at every audit.
    layer_specs
        What to record.
    trigger
        With a trigger, :meth:`audit` does nothing at steps that are not due. Only triggers by step are accepted, since
        the recorder does not see epochs, checkpoints or validations.
    options
        See :class:`repaudit.capture.record.options.AuditOptions`.

    Attributes
    ----------
    latest : dict of str to float
        The numbers of the last audit, and the last spreads of ``track``: pass them to what you log with.

    Raises
    ------
    ValueError, TypeError
        When an option is unknown or invalid.

    See Also
    --------
    repaudit.RepresentationAuditCallback : The same for Lightning.
    repaudit.AuditTrainerCallback : The same for the transformers ``Trainer``.
    repaudit.open_store : Reads what was recorded.

    Examples
    --------
    >>> import repaudit as ra
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> probe_set = ra.ProbeSet.from_tensors({"input": torch.eye(2)})
    >>> with ra.Recorder(store="memory://loop.zarr", model_name="seed0", probe_set=probe_set, layer_specs=["[*]"]) as r:
    ...     audited = [r.audit(model, step) for step in (0, 10)]
    >>> r.steps
    [0, 10]
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
        check_arguments(store, model_name, probe_set, trigger)
        chosen = checked_options(trigger, options)
        self.store, self.model_name, self.probe_set, self.trigger = store, model_name, probe_set, trigger
        self.if_exists = chosen["if_exists"]
        self.auditor = Auditor(
            probe_set, layer_specs, chosen["batch_size"], chosen["gauge"], chosen["record"],
            chosen["split_across_ranks"], chosen["metrics"], chosen["forward"])  # fmt: skip
        self.track = chosen["track"]
        self.listeners: list[Callable[[int, Mapping[str, Any]], None]] = []
        """Called with the step and activations of every audit, in the training's thread; what one raises ends it."""
        self.log: Callable[[Mapping[str, float]], None] | None = None
        """Called with the numbers of every audit, where they are asked for; the trainer's own loggers."""
        self.latest, self.cost = dict[str, float](), Cost()
        self.model_attrs = dict(chosen["model_attrs"] or {})
        self._options, self._audited = chosen, AuditedModel()
        self._failures = Failures(model_name, chosen["on_store_error"])
        self.in_trainer = self.was_taken_over = self._is_open = False
        self._writer: TrajectoryWriter | None = None
        self._previous: int | None = None
        self._last_steps: list[int] = []
        self._recorded_before: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: in another process there is nobody who listens."""
        return self.__dict__ | {"listeners": [], "log": None}

    def begin_another(self, model_name: str) -> None:
        """Record another model from now on, with the same options."""
        self.close()
        self.model_name, self.if_exists = model_name, self._options["if_exists"]
        self._failures = Failures(model_name, self._options["on_store_error"])
        self._last_steps, self.auditor.trajectory, self.latest = [], [], {}

    def __repr__(self) -> str:
        return f"Recorder({str(self.store)!r}, {self.model_name!r}, steps={len(self.steps)})"

    @property
    def steps(self) -> list[int]:
        """The steps of this model that are in the store, or queued for it."""
        return self._last_steps if self._writer is None else self._writer.steps

    @property
    def trajectory(self) -> list[tuple[int, dict[str, Any]]]:
        """With a ``gauge``: a list of (step, {layer: operator})."""
        return self.auditor.trajectory

    @property
    def failures(self) -> list[tuple[int, str]]:
        """The steps whose audit failed or could not be stored, each with its reason."""
        return self._failures.all(self._writer)

    @property
    def is_open(self) -> bool:
        """Whether the record is open and this process takes part in its audits."""
        return self._is_open and self.auditor.ranks.takes_part

    @property
    def last_recorded(self) -> int | None:
        """The last step in the store, the same on all processes."""
        return cast("int | None", self.auditor.ranks.from_first(self.steps[-1] if self.steps else None))

    def has(self, step: int) -> bool:
        """Return whether a step is recorded, the same on all processes."""
        return bool(self.auditor.ranks.from_first(step in self.steps))

    def open(self, model: nn.Module, truncate_after: int | None = None) -> None:
        """Try everything once, before a step is trained: paths, hooks, shapes, and the store.

        Parameters
        ----------
        model
            The model as it is trained, wrapped or not.
        truncate_after
            Where the training resumes from a checkpoint: its step; what was recorded later is dropped.

        Raises
        ------
        LayerPathError, CaptureError, ProbeSetError, StoreError
            Whatever would make audits fail.
        """
        self.close()  # a record left open is this recorder's
        if not self.auditor.meet(model):
            self._is_open = True
            return
        cost, failure = Cost(), None
        self.dry_run(model)
        try:
            if self.auditor.ranks.writes:
                if self.track is not None:
                    self.track.prepare(self.store)
                with Shield():  # else a writer might belong to nobody
                    self._open_writer(model, truncate_after)
                self.auditor.begin(self._first_and_last)
        except Exception as error:  # noqa: BLE001 - raised below, once every process knows
            failure = error
        self.auditor.ranks.agree(failure)
        self._is_open, self.was_taken_over, self.cost = True, False, cost.opened()
        self._previous = self._recorded_before = self.last_recorded
        self.if_exists = "resume"  # opened again by this recorder: the same record

    def _open_writer(self, model: nn.Module, truncate_after: int | None) -> None:
        shapes, attrs = self.auditor.layers(model)
        take_over(self.store, self.model_name, in_trainer=self.in_trainer)
        self._writer = TrajectoryWriter(
            self.store,
            model_name=self.model_name,
            probe_set=self.probe_set,
            layers=shapes,
            if_exists=self.if_exists,
            truncate_after=truncate_after,
            layer_attrs=attrs,
            model_attrs={**self.auditor.facts, **self.model_attrs},
            **{name: self._options[name] for name in WRITER_OPTIONS},  # type: ignore[arg-type]
        )
        hold(self.store, self.model_name, self, self._writer, in_trainer=self.in_trainer)
        self._failures.opened(self._writer)
        warn_of_other_gauges(self._tree, self.model_name, attrs)

    def _tree(self) -> DataTree:
        return open_store(self.store, self._options["storage_options"])

    def _first_and_last(self) -> Sequence[Mapping[str, Any]]:
        return first_and_last(self._tree(), self.model_name)

    def dry_run(self, model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
        """Forward one batch, and return each layer's shape and dtype for the whole probe set."""
        return self.auditor.dry_run(model)

    def audit(
        self, model: nn.Module, step: int, *, epoch: float | None = None, loss: float | torch.Tensor | None = None
    ) -> bool:
        """Record the model after an optimizer step.

        A step that is already recorded is not recorded again, and warns if the model has been trained since. Call it on
        the model as you train it: wrapped, compiled, in any mode, inside autocast or not.

        Parameters
        ----------
        model
            The model as it is trained.
        step
            Optimizer steps taken so far.
        epoch, loss
            Recorded with the step where known.

        Returns
        -------
        bool
            Whether the step was recorded now.

        Raises
        ------
        StepOrderError
            When the step is before the last one of the record (another training needs another name), or recorded of
            another model.
        ValueError
            When the step is not a whole number, or the loss several; a TypeError where step and model are in each
            other's place.
        CaptureError, StoreError
            When the audit failed and ``on_store_error="raise"``; a :class:`repaudit.errors.StateError` in any case.
        """
        step = step_of(model, step)
        check_loss(loss)
        if not self._is_open:
            self.open(model)
        if not self.auditor.ranks.takes_part:
            return False
        with self.cost.waiting():
            before, self._recorded_before = self._recorded_before, None
            refuse_to_join(self.store, self.model_name, before, step, in_trainer=False)
            triggers: tuple[str, ...] = ("manual",)
            if self.trigger is not None:
                triggers = self.trigger.due_at(step, self._previous)
                self._previous = step
            if not triggers:
                return False
            if self.has(step):
                self._audited.check_repeat(model, self.model_name, step, before)
                return False
            if (last := self.last_recorded) is not None and step < last:
                raise StepOrderError(
                    f"model {self.model_name!r}: step {step} is before the last recorded one, {last}; to go back, "
                    "open(model, truncate_after=step) first"
                )
            audit = self.take(model, step, epoch=epoch, loss=loss)
            self._audited.note(model)
            return audit is not None and (self.hand_over(audit, triggers) or not self.auditor.ranks.writes)

    def take(
        self, model: nn.Module, step: int, *, epoch: float | None = None, loss: float | torch.Tensor | None = None
    ) -> Audit | None:
        """Forward the probe set; return None if that failed and failures only warn."""
        taken = self.cost.waited(lambda: self.auditor.take(model, step, epoch, loss))
        audit = self._failures.attempt(step, taken, self._writer)
        if audit is not None and self.auditor.ranks.writes:
            for listen in self.listeners:
                listen(step, audit.activations)
        return audit

    def hand_over(self, audit: Audit, triggers: Sequence[str]) -> bool:
        """Queue an audit for the store; return False if that failed and failures only warn."""
        if (writer := self._writer) is None:
            return False
        queued = self.cost.waited(lambda: audit.append_to(writer, triggers))
        stored = bool(self._failures.attempt(audit.step, queued, writer))
        if stored:
            self.cost.add(audit)
            if self.track is not None:
                self.track.audited(self.model_name, audit.step, audit.activations)
        self.latest = {name: one for name, one in self.latest.items() if name.startswith("spread/")} | audit.numbers
        if audit.metrics and self.log is not None:
            self.log(audit.numbers)
        self.hear()
        return stored

    def hear(self) -> None:
        """Take what has become known of earlier audits, and pass it on."""
        for _, numbers in self.track.news() if self.track is not None else ():
            self.latest |= numbers
            if self.log is not None:
                self.log(numbers)

    def amend(self, step: int, triggers: Sequence[str]) -> None:
        """Record all that asked for an audit which is already handed over."""
        if (writer := self._writer) is not None:
            self._failures.attempt(None, lambda: writer.amend_trigger(step, ",".join(triggers)), writer)

    def flush(self) -> None:
        """Wait until everything queued is committed."""
        if self._writer is not None:
            self._failures.attempt(None, self.cost.waited(self._writer.flush), self._writer)

    def close(self) -> None:
        """Flush, and release the model's lease; a later audit opens the record again."""
        self._is_open = False
        writer = self._writer
        if writer is not None:
            self._failures.attempt(None, self.cost.waited(writer.close), writer)
            self._writer = None  # only now: where an interrupt ends the wait, it is closed later
            let_go(writer)
            if self.track is not None:
                self.track.close()
                self.hear()
            self._failures.all(writer)
            self._last_steps = self.cost.closed(writer)
            if not self.in_trainer:  # whose callback tells it at the end of the training
                self.cost.tell(self.store, self.model_name)

    def lose(self) -> None:
        """Close the record, since another training of this process takes it over, or the process ends."""
        self.close()
        self.cost.tell(self.store, self.model_name)
        self.was_taken_over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
