"""One model's audits, from the live model to the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from repaudit.capture.distributed import Ranks
from repaudit.capture.extractor import ActivationExtractor
from repaudit.capture.failures import Failures, warn_recorded_before
from repaudit.capture.layers import LayerSpec, resolve_layers
from repaudit.capture.operators import ACTIVATIONS, OPERATORS, check_record, operator_layers, to_store, try_gauge
from repaudit.capture.options import check_choices, check_names
from repaudit.capture.probe import ProbeSet
from repaudit.capture.rehearsal import check_vocabulary
from repaudit.capture.trigger import AuditTrigger, whole_number
from repaudit.capture.wrappers import is_sharded, network
from repaudit.errors import StepOrderError
from repaudit.store.writer import TrajectoryWriter


@dataclass(frozen=True)
class Audit:
    """What was recorded of a model at one step, before it is handed to the store."""

    step: int
    layers: Mapping[str, Any]
    epoch: float | None
    loss: float | None
    wall_time: float


class Recorder:
    """Audits a model in one's own training loop.

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
        With a trigger, :meth:`audit` does nothing at steps that are not due; one of steps, since a loop tells no
        epochs, checkpoints or validations.
    batch_size
        Samples a forward.
    gauge
        A :class:`repaudit.DiffusionGauge`; each audit's operators are then kept in :attr:`trajectory`.
    durable
        Whether each commit is forced to the device.
    on_store_error
        ``"warn"``: a failure of an audit or of the store warns and is counted, and the training goes on; ``"raise"``.
        What is wrong before the first audit (paths, shapes, an unwritable store) raises in any case.
    record
        With a ``gauge``, what the store gets: ``"activations"``; ``"operators"`` in their place, layers
        ``<layer>@operator`` on (step, sample, neighbor) whose attributes tell the gauge's parameters; or ``"both"``.
    if_exists
        What to do with a model that the store holds already: ``"resume"``, ``"error"`` or ``"replace"``.
    split_across_ranks
        Whether, in data-parallel training, each process forwards a share of the probe set; otherwise the first one
        forwards it all and the others do not wait. Where parameters are sharded, all must forward it all.
    model_attrs
        Facts to keep with the model (a config's hash, a seed).
    writer_options
        Further keywords of :class:`repaudit.TrajectoryWriter`, such as ``codec``, ``force`` and ``storage_options``.

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
        batch_size: int = 64,
        gauge: Callable[[torch.Tensor], Any] | None = None,
        durable: bool = True,
        on_store_error: str = "warn",
        *,
        record: str = ACTIVATIONS,
        if_exists: str = "resume",
        split_across_ranks: bool = False,
        model_attrs: Mapping[str, Any] | None = None,
        **writer_options: Any,
    ) -> None:
        check_choices(model_name, trigger, batch_size, gauge, on_store_error)
        check_names(writer_options, (Recorder, TrajectoryWriter))
        check_record(record, gauge)
        self.record = record
        self.store, self.model_name, self.probe_set = store, model_name, probe_set
        self.trigger, self.batch_size, self.gauge = trigger, batch_size, gauge
        self.durable, self.on_store_error, self.if_exists = durable, on_store_error, if_exists
        self.extractor = ActivationExtractor(layer_specs)
        self.trajectory: list[tuple[int, dict[str, Any]]] = []
        self.model_attrs = dict(model_attrs or {})
        self._failures, self._writer_options = Failures(model_name, on_store_error), writer_options
        self._split, self._ranks = split_across_ranks, Ranks()
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self._is_open = False
        self._writer: TrajectoryWriter | None = None
        self._previous: int | None = None
        self._last_steps: list[int] = []
        self._found: frozenset[int] = frozenset()

    @property
    def steps(self) -> list[int]:
        """The steps of this model that are in the store, or on their way there."""
        return self._last_steps if self._writer is None else self._writer.steps

    @property
    def failures(self) -> list[tuple[int, str]]:
        """The steps whose audit failed or could not be stored, each with its reason."""
        return self._failures.all(self._writer)

    @property
    def is_open(self) -> bool:
        """Whether the record is open and this process takes part in its audits."""
        return self._is_open and self._ranks.takes_part

    @property
    def last_recorded(self) -> int | None:
        """The last step in the store, the same on all processes."""
        last: int | None = self._ranks.from_first(self.steps[-1] if self.steps else None)
        return last

    def has(self, step: int) -> bool:
        """Whether a step is recorded, the same on all processes."""
        return bool(self._ranks.from_first(step in self.steps))

    def open(self, model: nn.Module, truncate_after: int | None = None) -> None:
        """Try everything once, before a step is trained: paths, hooks, shapes, and the store.

        Raises
        ------
        LayerPathError, CaptureError, ProbeSetError, StoreError
            Whatever would make audits fail.
        """
        self.close()  # a record left open is our own
        self._ranks = Ranks.of_training(sharded=is_sharded(model), split=self._split)
        if not self._ranks.takes_part:
            self._is_open = True
            return
        self._shapes = self.rehearse(model)
        failure = None
        try:
            if self._ranks.writes:
                self._open_writer(model, truncate_after)
        except Exception as error:  # noqa: BLE001 - raised below, once every process knows
            failure = error
        self._ranks.agree(failure)
        self._is_open = True
        self.if_exists = "resume"  # opened again in this process, it is the same record
        self._previous = self.last_recorded

    def _open_writer(self, model: nn.Module, truncate_after: int | None) -> None:
        shapes, attrs = self._layers(model)
        self._writer = TrajectoryWriter(
            self.store,
            model_name=self.model_name,
            probe_set=self.probe_set,
            layers=shapes,
            durable=self.durable,
            if_exists=self.if_exists,
            truncate_after=truncate_after,
            layer_attrs=attrs,
            model_attrs=self._facts(),
            on_store_error=self.on_store_error,
            **self._writer_options,
        )
        self._found = frozenset(self._writer.steps)
        self._failures.opened(self._writer)

    def _layers(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
        """What the store is to hold: each layer's shape and dtype, and its attributes."""
        shapes: dict[str, Any] = {} if self.record == OPERATORS else dict(self._shapes)
        attrs: dict[str, Mapping[str, Any]] = {
            layer.name: {
                "module_path": layer.path,
                "extraction_point": layer.spec.extraction_point,
                "reduction": layer.spec.reduce,
                "source_dtype": self.extractor.source_dtypes[layer.name],
            }
            for layer in resolve_layers(model, self.extractor.layer_specs)
        }
        if self.gauge is None:
            return shapes, attrs
        operators = try_gauge(self.gauge, self._shapes)
        if self.record != ACTIVATIONS:
            more, own = operator_layers(operators, self.gauge)
            shapes |= more
            attrs |= {name: {**attrs[about["operator_of"]], **about} for name, about in own.items()}
        return shapes, attrs

    def rehearse(self, model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
        """Forward one batch, and give each layer's shape and dtype for the whole probe set."""
        check_vocabulary(network(model), self.probe_set)
        start = self.probe_set.most_left_padded
        first = self.probe_set.select(start, start + self.batch_size)
        n = len(self.probe_set)
        return {
            name: ((n, *value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in self.extractor.extract(model, first, self.batch_size, agree=self._ranks.agree).items()
        }

    def audit(
        self,
        model: nn.Module,
        step: int,
        *,
        epoch: float | None = None,
        loss: float | torch.Tensor | None = None,
    ) -> bool:
        """Record the model after optimizer step ``step``; returns whether it did.

        A step that is recorded already is not recorded again; one that was there before this recorder opened is told
        once, since another training needs another name. Call it on the model as you train it: wrapped,
        compiled, in any mode, inside autocast or not.

        Raises
        ------
        StepOrderError
            When the step lies before the last one of the record.
        ValueError
            When the step is no whole number.
        """
        step = whole_number(step, "step")
        if not self._is_open:
            self.open(model)
        if not self._ranks.takes_part:
            return False
        triggers: tuple[str, ...] = ("manual",)
        if self.trigger is not None:
            triggers = self.trigger.due_at(step, self._previous)
            self._previous = step
        if not triggers:
            return False
        if self.has(step):
            if step in self._found:
                warn_recorded_before(self.model_name, step, max(self._found))
                self._found = frozenset()
            return False
        last = self.last_recorded
        if last is not None and step < last:
            raise StepOrderError(
                f"model {self.model_name!r}: step {step} lies before the last recorded one, {last}; "
                "open the recorder with truncate_after to go back"
            )
        audit = self.take(model, step, epoch=epoch, loss=loss)
        return audit is not None and (self.hand_over(audit, triggers) or not self._ranks.writes)

    def take(
        self, model: nn.Module, step: int, *, epoch: float | None = None, loss: float | torch.Tensor | None = None
    ) -> Audit | None:
        """Forward the probe set; None where that failed and failures are only counted."""
        return self._failures.attempt(step, lambda: self._taken(model, step, epoch, loss), self._writer)

    def _taken(self, model: nn.Module, step: int, epoch: float | None, loss: float | torch.Tensor | None) -> Audit:
        activations = self._activations(model)
        operators: dict[str, Any] = {}
        if self.gauge is not None and self._ranks.writes:
            operators = {name: self.gauge(value) for name, value in activations.items()}
            self.trajectory.append((step, operators))
        layers = to_store(self.record, activations, operators) if self._ranks.writes else {}
        return Audit(step, layers, epoch, _number(loss), time.time())

    def _activations(self, model: nn.Module) -> dict[str, torch.Tensor]:
        ranks = self._ranks
        start, stop = ranks.share(len(self.probe_set))
        if not ranks.split:
            return self.extractor.extract(model, self.probe_set, self.batch_size, agree=ranks.agree)
        own: dict[str, torch.Tensor] = {}
        failure = None
        try:
            if stop > start:
                own = self.extractor.extract(model, self.probe_set.select(start, stop), self.batch_size)
        except Exception as error:  # noqa: BLE001 - raised below, once every process knows
            failure = error
        ranks.agree(failure)
        return ranks.gather(own, self._shapes)

    def hand_over(self, audit: Audit, triggers: Sequence[str]) -> bool:
        """Queue an audit for the store; False where that failed and failures are only counted."""
        writer = self._writer
        if writer is None:
            return False

        def append() -> bool:
            writer.append(
                audit.step,
                audit.layers,
                epoch=audit.epoch,
                loss=audit.loss,
                trigger=",".join(triggers),
                wall_time=audit.wall_time,
                copy=False,
            )
            return True

        return bool(self._failures.attempt(audit.step, append, writer))

    def flush(self) -> None:
        """Wait until everything handed over is committed."""
        if self._writer is not None:
            self._failures.attempt(None, self._writer.flush, self._writer)

    def close(self) -> None:
        """Flush, and give the model's lease back; a later audit opens the record again."""
        self._is_open = False
        if self._writer is not None:
            writer, self._writer = self._writer, None
            self._failures.attempt(None, writer.close, writer)
            self._failures.all(writer)
            self._last_steps = writer.steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _facts(self) -> dict[str, Any]:
        side = self.probe_set.padding_side
        versions = {"torch": str(torch.__version__)}
        return {"versions": versions, **({"padding_side": side} if side else {}), **self.model_attrs}


def _number(loss: float | torch.Tensor | None) -> float | None:
    return float(loss.detach()) if isinstance(loss, torch.Tensor) else loss
