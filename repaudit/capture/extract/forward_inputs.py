"""From a batch of the probe set to the arguments of a network's ``forward``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.extract.completions import Completions
from repaudit.capture.extract.wrappers import has_forward, trained_parts, unwrap
from repaudit.capture.probe_set.probe_set import ATTENTION_MASK
from repaudit.errors import CaptureError, ProbeSetError, RepauditError

_OPTIONAL: Final = frozenset({ATTENTION_MASK, "token_type_ids"})
"""Inputs of a tokenizer that a network may not take: the mask is still used for pooling."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


class ForwardInputs:
    """Compute the positional and keyword arguments with which a network forwards a batch of the probe set.

    Inputs go by name; a single input whose name ``forward`` does not know goes as its first argument; all go as one
    mapping to a ``forward(batch)``. Left padding gets position ids counted from the mask, an encoder-decoder without
    decoder inputs its own tokens shifted right, or where it reads no tokens the start token. Tensors move to the
    network's device, floating-point ones to the dtype of its first parameter; ``use_cache`` is off.

    The network is inspected once, in the constructor: make one per extraction.

    Parameters
    ----------
    model
        The network.
    forward
        What is called in its place, whose parameters then count.

    Examples
    --------
    >>> ForwardInputs(nn.Linear(2, 3)).forms({"x": torch.zeros(1, 2)})[0]
    ((tensor([[0., 0.]]),), {})
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None = None) -> None:
        self._model = unwrap(forward if isinstance(forward, nn.Module) else model)
        self._takes = _Signature(self._model.forward if forward is None else forward)
        self._name = f"{type(self._model).__name__}.forward" if forward is None else _name_of(forward)
        self._accepted, self._takes_any = self._takes.accepted, self._takes.takes_any
        self._can_run = forward is not None or has_forward(self._model)
        self._found: int | None = None
        self._completions = Completions(self._model) if forward is None else None

    def run(self, batch: Mapping[str, torch.Tensor], forward: Callable[[Arguments], None]) -> None:
        """Forward a batch; where a signature leaves two forms of the arguments, the first form that works is kept.

        Raises
        ------
        ProbeSetError
            When the probe set's names do not fit ``forward``'s parameters (both are listed).
        """
        forms = self.forms(batch)
        failure: Exception | None = None
        numbers = range(len(forms)) if self._found is None else [self._found]
        for number in numbers:
            try:
                with _trying() if len(numbers) > 1 else nullcontext():
                    forward(forms[number])
            except RepauditError:
                raise  # a layer's error: the forward understood its inputs
            except Exception as error:  # noqa: BLE001 - raised below, unless the next form works
                failure = failure or error
            else:
                self._found = number
                return
        assert failure is not None, "there is at least one form"  # noqa: S101
        if self._unknown(batch) and forms[0][0] and isinstance(forms[0][0][0], Mapping) and not self._takes.mapping:
            raise ProbeSetError(self._misfit(batch, f"; as one mapping they fail too ({_line(failure)})")) from failure
        passed = ", ".join(f"{name} {value.dtype} {tuple(value.shape)}" for name, value in batch.items())
        failure.add_note(f"in the forward of the probe set: {self._name} was called with {passed}")
        raise failure

    def forms(self, batch: Mapping[str, torch.Tensor]) -> list[Arguments]:
        """Return the arguments for one batch: the form that the signature makes likely first.

        Raises
        ------
        ProbeSetError
            When the probe set's names do not fit ``forward``'s parameters (both are listed).
        """
        if not self._can_run:
            raise CaptureError(_no_forward(self._model))
        moved = self.moved(batch)
        named = {name: value for name, value in moved.items() if self._takes_any or name in self._accepted}
        only = self._takes.only
        is_free = only is not None and only not in moved
        if not self._unknown(batch) and not (is_free and self._takes.is_required):
            return [((), named | ({} if self._completions is None else self._completions(named)))]
        required = [name for name in moved if name != ATTENTION_MASK]
        forms: list[Arguments] = []
        if len(required) == 1 and self._accepted:
            others = {name: value for name, value in named.items() if name not in {required[0], self._accepted[0]}}
            forms.append(((moved[required[0]],), others))
        if is_free:
            forms.insert(0 if self._takes.mapping else len(forms), ((dict(moved),), {}))
        if not forms:
            raise ProbeSetError(self._misfit(batch))
        return forms

    def _unknown(self, batch: Mapping[str, torch.Tensor]) -> list[str]:
        known = {*self._accepted, *_OPTIONAL}
        return [
            name for name, value in batch.items() if not self._takes_any and value is not None and name not in known
        ]

    def _misfit(self, batch: Mapping[str, torch.Tensor], more: str = "") -> str:
        return (
            f"the probe set's inputs {self._unknown(batch)} are not parameters of {self._name}, which takes "
            f"{', '.join(self._accepted)}{more}: name the inputs as it does"
        )

    def copied(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a batch as :meth:`moved` does, for a network that may change it in place."""
        return {name: value.clone() if value is batch[name] else value for name, value in self.moved(batch).items()}

    def moved(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a batch on the network's device, floating-point inputs in its dtype, as they are now."""
        device = next((p.device for p in self._model.parameters() if not p.is_meta), torch.device("cpu"))
        own = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), None)

        def moved(name: str, value: torch.Tensor) -> torch.Tensor:
            dtype = own if value.is_floating_point() and name != ATTENTION_MASK else None
            return value.to(device=device, dtype=dtype or value.dtype, non_blocking=True)

        return {name: moved(name, value) for name, value in batch.items() if value is not None}


class _Signature:
    """What a forward takes: names, any others, and whether it takes one thing alone, perhaps a mapping."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        kinds = inspect.Parameter
        function = forward.forward if isinstance(forward, nn.Module) else forward
        parameters = list(inspect.signature(function).parameters.values())
        named = [p for p in parameters if p.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY}]
        positional = [p for p in parameters if p.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.POSITIONAL_ONLY}]
        required = [p for p in positional if p.default is kinds.empty]
        one = required if len(required) == 1 else [] if required else positional if len(positional) == 1 else []
        self.accepted = [p.name for p in named]
        self.takes_any = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        self.only = one[0].name if one and one[0] is positional[0] else None
        self.is_required = bool(required)
        self.mapping = bool(one) and _is_mapping(one[0].annotation)


@contextmanager
def _trying() -> Iterator[None]:
    """Keep torch from warning where a tensor is asked for a name, as of a mapping."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")
        yield


def _is_mapping(annotation: Any) -> bool:
    """Return whether an annotation, perhaps a text, stands for a mapping."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return any(word in text.lower() for word in ("dict", "mapping", "batchencoding", "batchfeature"))


def _no_forward(model: nn.Module) -> str:
    parts = trained_parts(model)
    several = f", and several parts that could be audited ({', '.join(parts)})" if len(parts) > 1 else ""
    return (
        f"{type(model).__name__} has no forward of its own{several}: pass what is called with the probe set's inputs "
        f"(forward=module.{parts[0] if parts else 'encode'}), or keep the network as self.network"
    )


def _name_of(forward: Callable[..., Any]) -> str:
    return f"the forward that was passed ({getattr(forward, '__qualname__', type(forward).__name__)})"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
