"""One audit: the forward of the probe set over the processes that take part, and the operators of what it saw."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from repaudit.capture.extract.dry_run import check_vocabulary
from repaudit.capture.extract.extractor import ActivationExtractor, Agree
from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.extract.wrappers import is_sharded, network
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.ranks import Ranks
from repaudit.capture.record.recorded_operators import (
    ACTIVATIONS,
    SKETCHES,
    WITH_ACTIVATIONS,
    Record,
    operator_layers,
    to_store,
    try_gauge,
)
from repaudit.errors import AuditWarning, RepauditError
from repaudit.interrupts import was_raised_by_handler
from repaudit.store.write.writer import TrajectoryWriter

Metrics: TypeAlias = Callable[[Mapping[str, torch.Tensor]], Mapping[str, float]]


@dataclass(frozen=True)
class Audit:
    """What was recorded of a model at one step, before it is passed to the store."""

    step: int
    layers: Mapping[str, Any]
    epoch: float | None
    loss: float | None
    wall_time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    activations: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    seconds: float = 0.0

    def append_to(self, writer: TrajectoryWriter, triggers: Sequence[str]) -> bool:
        """Queue it for the store; True, as this raises where it is not."""
        asked, at = ",".join(triggers), self.wall_time
        writer.append(self.step, self.layers, epoch=self.epoch, loss=self.loss, trigger=asked, wall_time=at, copy=False)
        return True

    @property
    def numbers(self) -> dict[str, float]:
        """What the trainer's loggers get, by name."""
        return {**self.metrics, "audit/seconds": self.seconds, "audit/bytes": float(self.nbytes)}

    @property
    def nbytes(self) -> int:
        """Bytes of what the store gets, before compression."""
        return sum(int(value.nbytes) for value in self.layers.values())


class Auditor:
    """Take the audits of one model; the parameters are those of :class:`repaudit.Recorder`."""

    def __init__(
        self,
        probe_set: ProbeSet,
        layer_specs: Sequence[LayerSpec | str] | LayerSpec | str,
        batch_size: int,
        gauge: Callable[[torch.Tensor], Any] | None,
        record: Record,
        split_across_ranks: bool,
        metrics: Metrics | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.probe_set, self.batch_size, self.gauge, self.record = probe_set, batch_size, gauge, record
        self.metrics, self.forward = metrics, forward
        self._measure = metrics
        check = getattr(metrics, "check_probe_set", None)  # of metrics that are of some samples
        if callable(check):
            check(probe_set)
        self.extractor = ActivationExtractor(layer_specs)
        self.trajectory: list[tuple[int, dict[str, Any]]] = []
        self.ranks = Ranks()
        self._split = split_across_ranks
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}

    def begin(self, recorded: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Measure a model from its first audit on: `recorded` reads the first and the last one that there are."""
        of_record = getattr(self.metrics, "of_record", None)
        if not callable(of_record):
            self._measure = self.metrics
            return
        try:
            self._measure = of_record(recorded())
        except Exception as error:
            if was_raised_by_handler(error):
                raise
            self._measure = of_record([])
            warnings.warn(
                f"metrics: the recorded audits cannot be read, and the next one counts as the first ({error})",
                AuditWarning,
                stacklevel=2,
            )

    def meet(self, model: nn.Module) -> bool:
        """Find the processes of the training, and return whether this one takes part in audits."""
        self.ranks = Ranks.of_training(sharded=is_sharded(model), split=self._split)
        return self.ranks.takes_part

    def dry_run(self, model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
        """Forward one batch, and return each layer's shape and dtype for the whole probe set."""
        check_vocabulary(network(model), self.probe_set)
        start = self.probe_set.most_left_padded
        first = self.probe_set.select(start, start + self.batch_size)
        n = len(self.probe_set)
        self._shapes = {
            name: ((n, *value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in self._extract(model, first, self.ranks.agree).items()
        }
        return self._shapes

    @property
    def facts(self) -> dict[str, Any]:
        """What is noted with every model: torch's version, and the side on which texts are padded."""
        side = self.probe_set.padding_side
        return {"versions": {"torch": str(torch.__version__)}, **({"padding_side": side} if side else {})}

    def layers(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
        """Return what the store will hold: each layer's shape and dtype, and its attributes."""
        shapes: dict[str, Any] = dict(self._shapes) if self.record in WITH_ACTIVATIONS else {}
        attrs: dict[str, Mapping[str, Any]] = {
            name: {
                "module_path": layer.path,
                "extraction_point": layer.point,
                "reduction": layer.spec.reduce,
                "model_dtype": self.extractor.source_dtypes[name],
            }
            for name, layer in self.extractor.layers.items()
        }
        if self.gauge is None:
            return shapes, attrs
        operators = try_gauge(self.gauge, self._shapes)
        if self.record != ACTIVATIONS:
            more, described = operator_layers(self.record, operators, self.gauge)
            shapes |= more
            attrs |= {name: {**attrs[name.rpartition("@")[0]], **about} for name, about in described.items()}
        return shapes, attrs

    def take(self, model: nn.Module, step: int, epoch: float | None, loss: float | torch.Tensor | None) -> Audit:
        """Forward the probe set, and compute the operators if there is a gauge."""
        began = time.perf_counter()
        activations = self._activations(model)
        operators: dict[str, Any] = {}
        if self.gauge is not None and self.ranks.writes:
            operators = self._operators(step, self.gauge, activations)
            if self.record != SKETCHES:  # of which there may be very many
                self.trajectory.append((step, operators))
        layers = to_store(self.record, activations, operators) if self.ranks.writes else {}
        value = float(loss.detach()) if isinstance(loss, torch.Tensor) else loss
        numbers = self._numbers(step, activations) if self.metrics is not None and self.ranks.writes else {}
        seconds = time.perf_counter() - began
        return Audit(step, layers, epoch, value, time.time(), dict(numbers), activations, seconds)

    def _operators(
        self, step: int, gauge: Callable[[torch.Tensor], Any], activations: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        """Return the operator of each layer; where the record is of activations, it does without one that fails."""
        operators = {}
        for name, value in activations.items():
            try:
                operators[name] = gauge(value)
            except Exception as error:
                if was_raised_by_handler(error):
                    raise
                if self.record != ACTIVATIONS:
                    if isinstance(error, RepauditError):
                        raise type(error)(f"layer {name!r}: {error}") from error
                    error.add_note(f"in the gauge of layer {name!r}")
                    raise
                warnings.warn(
                    f"gauge: no operator of layer {name!r} at step {step} ({error}); its activations are recorded",
                    AuditWarning,
                    stacklevel=2,
                )
        return operators

    def _numbers(self, step: int, activations: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """Return what the metrics function makes of an audit; where it fails, the audit is recorded without."""
        try:
            if self._measure is None:
                return {}
            copies = {name: values.clone() for name, values in activations.items()}  # what it changes is not recorded
            return {_name(name): _number(value, name) for name, value in dict(self._measure(copies)).items()}
        except Exception as error:
            if was_raised_by_handler(error):
                raise
            warnings.warn(
                f"metrics: none at step {step}, which is recorded without ({type(error).__name__}: {error})",
                AuditWarning,
                stacklevel=2,
            )
            return {}

    def _extract(self, model: nn.Module, probe_set: ProbeSet, agree: Agree | None = None) -> dict[str, torch.Tensor]:
        return self.extractor.extract(model, probe_set, self.batch_size, self.forward, agree)

    def _activations(self, model: nn.Module) -> dict[str, torch.Tensor]:
        ranks = self.ranks
        if not ranks.split:
            return self._extract(model, self.probe_set, ranks.agree)
        start, stop = ranks.share(len(self.probe_set))
        shares: dict[str, torch.Tensor] = {}
        failure = None
        try:
            if stop > start:
                shares = self._extract(model, self.probe_set.select(start, stop))
        except Exception as error:  # noqa: BLE001 - raised below, once every process knows
            failure = error
        ranks.agree(failure)
        return ranks.gather(shares, self._shapes)


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"expected numbers by their names, found {name!r} as a name")
    return name


def _number(value: Any, name: str) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"expected a number as {name!r}, found {value!r}")
    return float(value)
