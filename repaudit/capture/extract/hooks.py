"""The hooks of one extraction: what they see in a forward, pooled at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from repaudit.capture.extract.completions import Completions
from repaudit.capture.extract.dim_order import arranged
from repaudit.capture.extract.dim_tracking import DimTracker
from repaudit.capture.extract.facts import Call, Facts, are_certain, has_single
from repaudit.capture.extract.forward_inputs import Arguments, ForwardInputs
from repaudit.capture.extract.hidden_states import HiddenStates
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.pooling import pool
from repaudit.capture.extract.token_masks import TokenMasks, outermost_models
from repaudit.capture.extract.wrappers import layers_root, network
from repaudit.errors import ActivationTypeError, CaptureError


class _Stop(BaseException):
    """End a forward once every requested layer has fired; no ``except Exception`` on the way may swallow it."""


class Recording:
    """The hooks of one extraction, and what they saw in the current forward.

    Parameters
    ----------
    model, layers
        What is forwarded, and which of its layers are recorded.
    whole
        Whether a forward must run to its end, whatever happens.
    facts
        What an earlier recording learned of these layers; without it, the first forward tells.
    forward
        What is called in the network's place.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        *,
        whole: bool = False,
        facts: dict[str, Facts] | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        for layer in layers:
            _refuse_script(layer)
        self.layers, self._whole = layers, whole
        self.net = network(model)
        self.facts = {} if facts is None else facts
        self._arguments = ForwardInputs(self.net, forward)
        self.source_dtypes: dict[str, str] = {}
        self._hidden = HiddenStates(layers_root(model), [x for x in layers if x.point == "hidden_states"])
        self._masks = TokenMasks(self.net, layers)
        models = [part for part in outermost_models(self.net) if part is not self.net or forward is not None]
        self._inner = {part: Completions(part) for part in models}
        self._tracker: DimTracker | None = None
        self._completing = self._stop_early = self._is_learning = self._has_single = False
        self._n_samples: int | None = None
        self._names: Sequence[str] | None = None
        self.begin({})

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Forget the last forward; the inputs of the next one hold the masks of its tokens."""
        self._masks.begin(inputs)
        self._seen: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in self.layers}
        self._failure: Exception | None = None
        if self._tracker is not None and self._n_samples is not None:
            if not are_certain(self.facts):
                self.facts.clear()
            self._is_learning, self._has_single = not self.facts, has_single(inputs.values())
            self._tracker.start(inputs, self._n_samples)

    def begin_foreign(self, inputs: Mapping[str, Any]) -> None:
        """Forget the last forward, before one that a caller runs."""
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim]
        self._n_samples = len(tensors[0]) if tensors else None
        self.begin(inputs)

    def __enter__(self) -> Recording:
        self._stack = ExitStack()
        for part, completions in self._inner.items():
            hook = self._on_inner_model(completions)
            self._stack.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)
        self._stack.enter_context(self._masks.watching())
        for layer in self.layers:
            if layer.point == "output":
                handle = layer.module.register_forward_hook(self._on_output(layer))
            elif layer.point == "input":
                handle = layer.module.register_forward_pre_hook(self._on_input(layer), with_kwargs=True)
            else:
                continue
            self._stack.callback(handle.remove)
        self._stack.enter_context(self._hidden.hooks(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forward(
        self,
        batch: Mapping[str, torch.Tensor],
        *,
        stop_early: bool,
        call: Callable[..., Any],
        names: Sequence[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run one forward, check how often every hook fired, and return what they saw; ``names`` are the samples'."""
        self._n_samples, self._names = len(next(iter(batch.values()))), names
        self._stop_early = stop_early and not self._whole and all(map(self._needed, self.layers))
        moved = self._arguments.copied(batch)
        inputs = {name: value.clone() if value.ndim == 2 and "mask" in name else value for name, value in moved.items()}

        def attempt(arguments: Arguments) -> None:
            with self.tracking(), suppress(_Stop):
                self.begin(inputs)
                call(*arguments[0], **arguments[1])

        self._completing = True
        try:
            self._arguments.run(moved, attempt)
        finally:
            self._completing = False
            self._masks.begin({})  # keeps no inputs alive, nor the graph behind them
        self.check()
        return self.seen

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Follow the dims of the first forward, which tells what they mean in all."""
        if self.facts or self._n_samples == 1:  # of one sample, dims cannot be told from others of size 1
            yield
            return
        with DimTracker(_positions(self.net)) as tracker:
            self._tracker = tracker
            try:
                yield
            except Exception:
                self.facts.clear()  # of a forward that did not end
                raise
            finally:
                self._tracker = None

    def check(self) -> None:
        """Raise CaptureError unless every hook fired as often as its spec says."""
        if self._failure is not None:
            raise self._failure
        for layer in self.layers:
            count, call = len(self._seen[layer.name]), layer.spec.call
            kind = f"layer {layer.name!r} ({type(layer.module).__name__})"
            if count == 0:
                raise CaptureError(
                    f"{kind} never fired in a forward of {type(self.net).__name__}: nothing called it; record a module "
                    "that the forward does call"
                )
            if call is None and count > 1:
                raise CaptureError(
                    f"{kind} fired {count} times in one forward: a shared or reused layer has no single activation; "
                    "record the modules around it, or say which call: LayerSpec(..., call=0), call='mean' or 'each'"
                )
            if isinstance(call, int) and not -count <= call < count:
                raise CaptureError(f"{kind} fired {count} times in one forward, and call={call} was asked for")
            known = self.facts.get(layer.name)
            if known is not None and isinstance(call, str) and count != len(known.calls):
                raise CaptureError(
                    f"{kind} fired {count} times in one forward, and {len(known.calls)} times in the first"
                )

    @property
    def seen(self) -> dict[str, torch.Tensor]:
        """The pooled activations of this forward, in the order of the layers."""
        return {name: value for layer in self.layers for name, value in self._called(layer)}

    @property
    def recorded(self) -> dict[str, Layer]:
        """The layer of each of these activations."""
        return {name: layer for layer in self.layers for name, _ in self._called(layer)}

    def _called(self, layer: Layer) -> list[tuple[str, torch.Tensor]]:
        """Return the calls of a layer that are recorded, each with its name."""
        values, call = self._seen[layer.name], layer.spec.call
        if call == "each":
            return [(f"{layer.name}#{number}", value) for number, value in enumerate(values)]
        if call == "mean":
            if len({value.shape for value in values}) > 1:
                shapes = ", ".join(str(tuple(value.shape)) for value in values)
                raise CaptureError(f"layer {layer.name!r}: expected calls of one shape to average, found {shapes}")
            return [(layer.name, torch.stack(values).mean(0))]
        return [(layer.name, values[call or 0])]

    @staticmethod
    def _needed(layer: Layer) -> int:
        """Return how many calls of a layer end a forward; 0 where only its end tells whether there are more."""
        call = layer.spec.call
        if call is None or (isinstance(call, int) and call >= 0):
            return (call or 0) + 1
        return 0

    def _pooled(self, value: torch.Tensor, layer: Layer, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the pooled activation in new memory."""
        n_samples = len(value) if self._n_samples is None else self._n_samples
        known = self.facts.get(layer.name)
        layout = None if known is None else known.layout
        around = self._masks.telling(layer.module) if layout is None else None
        rows, n_positions = arranged(value, layer, n_samples, layout, around)
        if n_positions == 1:
            n_virtual = self._masks.n_virtual(layer, rows.shape[1])
            rows = rows[:, n_virtual:]  # the learned tokens of a prompt are not tokens of the probe set
            call = Call() if known is None else known.call(len(self._seen[layer.name]))
            mask = self._masks.of(layer, rows.shape[1], call) if mask is None else mask
        pooled = pool(rows, mask if n_positions == 1 else None, layer.spec.reduce, layer.name)
        return pooled.clone() if _shares_memory(pooled, value) else pooled

    def _on_inner_model(self, completions: Completions) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args, completions.called(args, kwargs, self._names)) if self._completing else None

        return hook

    def _on_output(self, layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._record(layer, output)

        return hook

    def _on_input(self, layer: Layer) -> Callable[..., None]:
        named = inspect.signature(layer.module.forward).parameters  # in the order of the signature

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *(kwargs[name] for name in named if name in kwargs), *kwargs.values())
            self._record(layer, next((value for value in values if value is not None), None))

        return hook

    def _record(self, layer: Layer, value: Any) -> None:
        try:
            self._keep(layer, value)
        except Exception as error:
            if not self._whole:
                raise
            self._failure = self._failure or error  # raised after the forward: other ranks are still in it
        if self._stop_early and all(len(self._seen[each.name]) >= self._needed(each) for each in self.layers):
            raise _Stop

    def _keep(self, layer: Layer, value: Any) -> None:
        tensor, mask = as_activation(value, layer), None
        if isinstance(tensor, PackedSequence):
            tensor, mask = _unpacked(tensor)
        if self._tracker is not None:
            self._learn(layer, tensor)
        call, number = layer.spec.call, len(self._seen[layer.name])
        is_wanted = not isinstance(call, int) or call < 0 or call == number
        # at once: the rest of the forward may change it in place
        self._seen[layer.name].append(self._pooled(tensor, layer, mask) if is_wanted else tensor.new_empty(0))
        self.source_dtypes[layer.name] = str(tensor.dtype).removeprefix("torch.")

    def _learn(self, layer: Layer, tensor: torch.Tensor) -> None:
        tracker, known = self._tracker, self.facts.get(layer.name)
        if tracker is None or not self._is_learning:
            return
        call = Call(tracker.origins_of(tensor), tracker.are_learned(tensor))
        is_certain = not self._has_single and 1 not in tensor.shape
        now = Facts(tracker.layout_of(tensor), (call,), is_certain)
        self.facts[layer.name] = now if known is None else known.joined(now)


def _positions(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are named as those of positions are, and not as queries' or latents'."""
    named = net.named_parameters()
    return [
        p for name, p in named if "pos" in name.lower() and not ("quer" in name.lower() or "latent" in name.lower())
    ]


def _refuse_script(layer: Layer) -> None:
    if isinstance(layer.module, torch.jit.ScriptModule):
        raise CaptureError(
            f"layer {layer.name!r} is a part of a TorchScript module, on which hooks cannot be registered: record the "
            "model before it is scripted or traced, or a layer around that part"
        )


def _unpacked(packed: PackedSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sequences, padded and in the order of the samples, and their mask."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
    return padded, mask.to(padded.device)


def _shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first is second or first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def as_activation(value: Any, layer: Layer) -> torch.Tensor | PackedSequence:
    """Return the tensor in what a hook saw: itself, the first of a tuple or model output, or the only one of a dict.

    Raises
    ------
    ActivationTypeError
        For anything else, and tensors that are not dense, naming the layer.
    """
    first, rest = value, ""
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        value = {field.name: getattr(value, field.name, None) for field in fields(value)}
    if isinstance(value, Mapping):
        tensors = {name: part for name, part in value.items() if isinstance(part, torch.Tensor)}
        first = value.get("last_hidden_state", next(iter(tensors.values()), None))
        if type(value) is dict and "last_hidden_state" not in value and len(tensors) > 1:
            first, rest = None, f" of {', '.join(map(str, tensors))}, which is ambiguous: record a module inside"
    elif isinstance(value, tuple | list) and value and not isinstance(value, PackedSequence):
        first = value[0]
        rest = "" if isinstance(first, torch.Tensor | PackedSequence) else f" starting with {type(first).__name__}"
    where = f"layer {layer.name!r} ({type(layer.module).__name__})"
    if isinstance(first, torch.Tensor) and (first.layout is not torch.strided or first.is_nested):
        kind = "that is nested" if first.is_nested else f"of layout {first.layout}"
        raise ActivationTypeError(f"{where}: expected a dense tensor, found one {kind}: record another module")
    if isinstance(first, torch.Tensor | PackedSequence):
        return first
    raise ActivationTypeError(
        f"{where}: expected a tensor, a tuple that starts with one, or a model output, found "
        f"{type(value).__name__}{rest}"
    )
