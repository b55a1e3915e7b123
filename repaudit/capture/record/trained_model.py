"""Which model a callback has trained, to tell a training that goes on from that of another model."""

from __future__ import annotations

import weakref
from os import PathLike
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from repaudit.capture.extract.wrappers import is_offloaded, is_sharded, network
from repaudit.capture.record.failed_audits import warn_not_recorded_again, warn_recorded_before
from repaudit.errors import StepOrderError

_MOST_KEPT: Final = 999
_RESUME_TRAINER: Final = (
    "resume from a checkpoint (several models of one callback are numbered by model_name='trial{n}')"
)
_RESUME_LOOP: Final = "go on from a checkpoint with open(model, truncate_after=its step) before the first audit"

Weights: TypeAlias = torch.Tensor
"""The sum and the norm of each parameter: enough to tell trained weights from fresh ones."""


class TrainedModel:
    """The model of the last training: the object, and the weights that it began with, saved and ended with."""

    def __init__(self) -> None:
        self._net: weakref.ref[nn.Module] | None = None
        self._first: Weights | None = None
        self._reached: list[Weights] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: in another process there is no such object."""
        return {**self.__dict__, "_net": None}

    def begin(self, model: nn.Module) -> None:
        """Note a model that was not trained before."""
        self._net, self._first, self._reached = weakref.ref(network(model)), weights(model), []

    def go_on(self, model: nn.Module) -> None:
        """Note the object in which a training goes on."""
        self._net = weakref.ref(network(model))

    def reach(self, model: nn.Module | None = None) -> None:
        """Note the weights that the training has reached, where it ends or saves them."""
        net = model if model is not None else self._net() if self._net is not None else None
        if net is not None and (now := weights(net)) is not None:
            self._reached = [*self._reached[-_MOST_KEPT:], now]

    def is_continued_by(self, model: nn.Module) -> bool:
        """Return whether a training of this model goes on from the last one.

        The same object does, unless its weights are those of the beginning again; so does another with weights that
        the last training has reached.
        """
        same_object = self._net is not None and self._net() is network(model)
        now = weights(model)
        if now is None or self._first is None:
            return same_object
        if equal(now, self._first):
            return same_object and bool(self._reached) and equal(self._reached[-1], self._first)
        return same_object or self._has_reached(now)

    def is_reset(self, model: nn.Module) -> bool:
        """Return whether the weights are none that the last training has reached, as far as that is known."""
        now = weights(model)
        return now is not None and bool(self._reached) and not self._has_reached(now)

    def _has_reached(self, now: Weights) -> bool:
        return any(equal(now, reached) for reached in self._reached)


def refuse_to_join(store: str | PathLike[str], name: str, last: int | None, step: int, *, in_trainer: bool) -> None:
    """Raise a StepOrderError where a training begins before the end of the record: one record holds one training.

    Examples
    --------
    >>> refuse_to_join("runs.zarr", "seed0", last=10, step=10, in_trainer=True)
    """
    if last is not None and last > step:
        how_to_resume = _RESUME_TRAINER if in_trainer else _RESUME_LOOP
        raise StepOrderError(
            f"model {name!r} is recorded up to step {last} in {store}, but this training starts at step {step}: choose "
            f"another model_name or store, or pass if_exists='replace', where it is another one; else {how_to_resume}"
        )


class AuditedModel:
    """The model of the last audit: the object, how often its parameters had been written to, and the smallest of them.

    torch counts what is written in place, but not by fused optimizers: their steps are seen in the values.

    Examples
    --------
    >>> audited, model = AuditedModel(), nn.Linear(2, 1)
    >>> audited.note(model)
    >>> _ = torch.nn.init.ones_(model.bias)
    >>> audited.is_another(model), audited.has_changed(model)
    (False, True)
    """

    def __init__(self) -> None:
        self._net: weakref.ref[nn.Module] | None = None
        self._writes = 0
        self._kept: tuple[weakref.ref[torch.Tensor], torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: in another process there is no such object."""
        return {"_net": None, "_writes": 0, "_kept": None}

    def note(self, model: nn.Module) -> None:
        """Note a model as it is audited."""
        self._net, self._writes = weakref.ref(network(model)), _writes(model)
        smallest = _smallest(model)
        self._kept = None if smallest is None else (weakref.ref(smallest), smallest.detach().clone())

    def check_repeat(self, model: nn.Module, name: str, step: int, before: int | None) -> None:
        """Refuse a recorded step of another model with a StepOrderError; warn where the same has been trained since.

        A step that was the last one `before` this training warns, where nobody knows of which model it is.
        """
        audited_here = self._net is not None and self._net() is network(model)
        if step == before and not audited_here:
            warn_recorded_before(name, step)
            return
        if self.is_another(model):
            raise StepOrderError(
                f"model {name!r}: step {step} is recorded already, of another model object: another model needs a "
                "recorder with another model_name"
            )
        if self.has_changed(model):
            warn_not_recorded_again(name, step)

    def is_another(self, model: nn.Module) -> bool:
        """Return whether another object was audited last."""
        return self._net is not None and self._net() is not network(model)

    def has_changed(self, model: nn.Module) -> bool:
        """Return whether its parameters were written to since the audit, as optimizers do."""
        if self._net is None:
            return False
        now, before = (None, None) if self._kept is None else (self._kept[0](), self._kept[1])
        if _writes(model) != self._writes or now is None or before is None:
            return _writes(model) != self._writes
        same = now.detach().to(before)
        return same.shape == before.shape and not torch.allclose(same, before, rtol=0, atol=0, equal_nan=True)


def _writes(model: nn.Module) -> int:
    return sum(value._version for value in network(model).parameters() if not value.is_inference())


def _smallest(model: nn.Module) -> torch.Tensor | None:
    """Return the smallest parameter that is trained, of those that this process has whole."""
    found = [value for value in network(model).parameters() if value.requires_grad and _has_numbers(value)]
    return min((one for one in found if type(one) is nn.Parameter), key=torch.Tensor.numel, default=None)


def weights(model: nn.Module) -> Weights | None:
    """Return the sum and the norm of each parameter; None where this process does not hold them all.

    Examples
    --------
    >>> weights(nn.Linear(2, 1, bias=False).apply(lambda module: nn.init.constant_(module.weight, 2.0))).tolist()
    [[4.0, 2.8284271247461903]]
    """
    net = network(model)
    values = [value.detach() for value in net.parameters() if _has_numbers(value)]
    if not values or is_sharded(model) or is_offloaded(net):
        return None
    return torch.stack([_sum_and_norm(value) for value in values])


def _sum_and_norm(value: torch.Tensor) -> torch.Tensor:
    total, norm = value.sum(dtype=torch.float64), torch.linalg.vector_norm(value, dtype=torch.float64)
    return torch.stack([total, norm]).cpu()


def _has_numbers(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not (is_lazy(value) or value.is_meta)


def equal(first: Weights, second: Weights) -> bool:
    """Return whether two models have the same weights, but for the order of the sums on another device."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-9, atol=0, equal_nan=True)
