"""Hooks that record activations during a forward, and the extraction of a whole probe set."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from repaudit.capture.hidden import HiddenStates
from repaudit.capture.inputs import forward_arguments
from repaudit.capture.isolation import eager, same_parameters, undisturbed
from repaudit.capture.layers import Layer, LayerSpec, as_spec, resolve_layers
from repaudit.capture.pooling import pool
from repaudit.capture.probe import ATTENTION_MASK, ProbeSet
from repaudit.capture.wrappers import (
    config_of,
    entry_point,
    is_offloaded,
    is_sharded,
    layers_root,
    n_virtual_tokens,
    network,
)
from repaudit.errors import ActivationTypeError, CaptureError


class _Stop(BaseException):
    """Ends a forward once every requested layer has fired; no ``except Exception`` on the way may swallow it."""


class ActivationExtractor:
    """Records the activations of the layers that specs name.

    Parameters
    ----------
    layer_specs
        Layer specs, or plain paths.

    Examples
    --------
    >>> from repaudit import ProbeSet
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> extractor = ActivationExtractor(["[0]", LayerSpec("[-1]", extraction_point="input")])
    >>> activations = extractor.extract(model, ProbeSet.from_tensors({"input": torch.eye(2)}))
    >>> {name: tuple(value.shape) for name, value in activations.items()}
    {'0': (2, 3), '2@input': (2, 3)}
    """

    def __init__(self, layer_specs: Sequence[LayerSpec | str] | LayerSpec | str) -> None:
        specs = [layer_specs] if isinstance(layer_specs, str | LayerSpec) else list(layer_specs)
        self.layer_specs = [as_spec(spec) for spec in specs]
        self.activations: dict[str, torch.Tensor] = {}
        self.source_dtypes: dict[str, str] = {}
        self._seen_whole: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets; which models were seen whole is of this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_seen_whole"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._seen_whole = weakref.WeakSet()

    def extract(
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        batch_size: int = 32,
        forward: Callable[..., Any] | None = None,
        agree: Callable[[Exception | None], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Forward the probe set through the model, which ends as it began, and give the pooled activations.

        The model runs in evaluation mode, eagerly, without gradients, and only as deep as the deepest layer asked
        for. The first batch ever seen of a model runs whole, so that a layer which fires again later is found.

        Parameters
        ----------
        model
            The model as it is trained, wrapped or not; it is not moved.
        probe_set
            The inputs.
        batch_size
            Samples a forward; the result does not depend on it.
        forward
            What to call with a batch's inputs instead of the network itself.
        agree
            Called after every batch with what went wrong in it, or None; it raises where one of several processes
            failed, so that none goes on alone (see :meth:`repaudit.capture.distributed.Ranks.agree`).

        Returns
        -------
        dict of str to torch.Tensor
            For each layer a CPU tensor ``(sample[, token], feature)``.

        Raises
        ------
        LayerPathError
            When a path does not resolve.
        CaptureError
            When a hook fired several times in one forward, or never, or what it saw cannot be pooled.
        """
        layers = resolve_layers(model, self.layer_specs)
        net = network(model)
        whole = is_sharded(model) or is_offloaded(net)
        pieces = _Pieces(len(probe_set))
        with ExitStack() as stack:
            if net not in self._seen_whole and not whole:
                stack.enter_context(same_parameters(net))
            stack.enter_context(undisturbed(model))
            recording = stack.enter_context(_Recording(model, layers, whole=whole))
            for batch in probe_set.batches(batch_size):
                failure = None
                try:
                    recording.forward(batch, stop_early=net in self._seen_whole, call=forward or entry_point(model))
                    self._seen_whole.add(net)
                    pieces.add(recording.seen)
                except Exception as error:
                    if agree is None:
                        raise
                    failure = error
                if agree is not None:
                    agree(failure)
        self.source_dtypes = recording.source_dtypes
        self.activations = pieces.finish()
        return dict(self.activations)

    @contextmanager
    def capture(self, model: nn.Module, *, detach: bool = True) -> Iterator[ActivationExtractor]:
        """Record the forwards that are run inside the block; afterwards :attr:`activations` holds them.

        The model's mode and gradients are the caller's. Compiled models run eagerly inside the block, since hooks
        would not fire otherwise. Several forwards are joined along the samples. The mask comes from the forward's own
        ``attention_mask``.

        Parameters
        ----------
        model
            The model that is forwarded inside the block.
        detach
            Copy to the CPU without gradients; False keeps device and graph, for objectives on activations.

        Raises
        ------
        CaptureError
            When a hook fired never, or several times in one forward.
        """
        layers = resolve_layers(model, self.layer_specs)
        net = network(model)
        joined: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
        self.activations = {}

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recording.begin(_named(net, args, kwargs))  # what an earlier forward left, where it failed, is void

        def after(*_: Any) -> None:
            recording.check()
            for name, value in recording.seen.items():
                joined[name].append(value.detach().cpu() if detach else value)
            recording.begin({})

        with ExitStack() as stack:
            stack.enter_context(eager())
            recording = stack.enter_context(_Recording(model, layers))
            stack.callback(net.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
            stack.callback(net.register_forward_hook(after).remove)
            yield self
            if not all(joined.values()):
                after()
        self.source_dtypes = recording.source_dtypes
        self.activations = {name: torch.cat(values) for name, values in joined.items()}


def _named(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(net.forward).parameters, args, strict=False)) | dict(kwargs)


def _mask(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None


def _shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first is second or first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _decoder_parts(net: nn.Module) -> set[nn.Module]:
    """The modules of an encoder-decoder's decoder."""
    if not getattr(config_of(net), "is_encoder_decoder", False):
        return set()
    decoder = getattr(net, "get_decoder", lambda: None)() or getattr(net, "decoder", None)
    return set(decoder.modules()) if isinstance(decoder, nn.Module) else set()


def as_activation(value: Any, layer: Layer) -> torch.Tensor:
    """The tensor of what a hook saw: itself, the first of a tuple, or the first of a model output.

    Raises
    ------
    ActivationTypeError
        For anything else, naming the layer.
    """
    first = value
    if isinstance(value, Mapping):
        first = value.get("last_hidden_state", next(iter(value.values()), None))
    elif isinstance(value, tuple | list) and value:
        first = value[0]
    if isinstance(first, torch.Tensor):
        return first
    raise ActivationTypeError(
        f"layer {layer.name!r} ({type(layer.module).__name__}): expected a tensor, a tuple that starts with one, or a "
        f"model output, found {type(value).__name__}"
        + ("" if first is value else f" starting with {type(first).__name__}")
    )


class _Pieces:
    """The activations of all samples, filled batch by batch into CPU tensors that are made anew for every audit."""

    def __init__(self, n_samples: int) -> None:
        self._n = n_samples
        self._start = 0
        self._whole: dict[str, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        size = len(next(iter(batch.values())))
        for name, value in batch.items():
            target = self._whole.get(name)
            if target is None:
                target = torch.empty(
                    (self._n, *value.shape[1:]), dtype=value.dtype, pin_memory=value.device.type == "cuda"
                )
                self._whole[name] = target
            if value.shape[1:] != target.shape[1:]:
                raise CaptureError(
                    f"layer {name!r}: samples {self._start} on have shape {tuple(value.shape[1:])}, those before "
                    f"{tuple(target.shape[1:])}: one layer must have one shape"
                )
            target[self._start : self._start + size].copy_(value, non_blocking=True)
            if value.device.type != "cpu":
                self._devices.add(value.device)
        self._start += size

    def finish(self) -> dict[str, torch.Tensor]:
        for device in self._devices:
            torch.get_device_module(device.type).synchronize(device)
        return self._whole


class _Recording:
    """The hooks of one extraction, and what they saw in the current forward."""

    def __init__(self, model: nn.Module, layers: list[Layer], *, whole: bool = False) -> None:
        self.layers, self._whole = layers, whole
        self.net = network(model)
        self.source_dtypes: dict[str, str] = {}
        self._hidden = HiddenStates(
            layers_root(model), [x for x in layers if x.spec.extraction_point == "hidden_states"]
        )
        self._decoder = _decoder_parts(self.net)
        self._n_virtual = n_virtual_tokens(self.net)
        self._stop_early = False
        self._n_samples: int | None = None
        self.begin({})

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Forget the forward before; the inputs of the one to come hold the masks of its tokens."""
        self._inputs = inputs
        self._seen: dict[str, torch.Tensor] = {}
        self._fired: dict[str, int] = {layer.name: 0 for layer in self.layers}
        self._failure: Exception | None = None

    def __enter__(self) -> _Recording:
        self._stack = ExitStack()
        for layer in self.layers:
            if layer.spec.extraction_point == "output":
                handle = layer.module.register_forward_hook(self._on_output(layer))
            elif layer.spec.extraction_point == "input":
                handle = layer.module.register_forward_pre_hook(self._on_input(layer), with_kwargs=True)
            else:
                continue
            self._stack.callback(handle.remove)
        self._stack.enter_context(self._hidden.hooks(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forward(self, batch: Mapping[str, torch.Tensor], *, stop_early: bool, call: Callable[..., Any]) -> None:
        """Run one forward and see that every hook fired once."""
        self.begin(batch)
        self._stop_early = stop_early and not self._whole
        self._n_samples = len(next(iter(batch.values())))
        args, kwargs = forward_arguments(self.net, batch)
        with suppress(_Stop):
            call(*args, **kwargs)
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure
        for layer in self.layers:
            count = self._fired[layer.name]
            if count == 0:
                raise CaptureError(
                    f"layer {layer.name!r} ({type(layer.module).__name__}) never fired in a forward of "
                    f"{type(self.net).__name__}: nothing called it; record a module that the forward does call"
                )
            if count > 1:
                raise CaptureError(
                    f"layer {layer.name!r} ({type(layer.module).__name__}) fired {count} times in one forward: a "
                    "shared or reused layer has no single activation; record the modules around it"
                )

    @property
    def seen(self) -> dict[str, torch.Tensor]:
        """The pooled activations of this forward, in the order of the layers."""
        return {layer.name: self._seen[layer.name] for layer in self.layers}

    def _pooled(self, value: torch.Tensor, layer: Layer) -> torch.Tensor:
        """The pooled activation, a tensor of its own; a decoder's tokens are masked by its own mask."""
        inputs = self._inputs
        mask = _mask(inputs.get(ATTENTION_MASK))
        if layer.module in self._decoder:
            own_tokens = inputs.get("decoder_input_ids") is not None
            mask = _mask(inputs.get("decoder_attention_mask", None if own_tokens else mask))
        pooled = pool(self._without_prompt(value, inputs), mask, layer.spec.reduce, layer.name)
        return pooled.clone() if _shares_memory(pooled, value) else pooled

    def _without_prompt(self, value: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Leave out the learned tokens of a prompt, which stand for no token of the probe set."""
        ids = inputs.get("input_ids")
        if not self._n_virtual or ids is None or value.ndim != 3 or value.shape[1] != ids.shape[1] + self._n_virtual:
            return value
        return value[:, self._n_virtual :]

    def _on_output(self, layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._record(layer, output)

        return hook

    def _on_input(self, layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._record(layer, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    def _record(self, layer: Layer, value: Any) -> None:
        try:
            self._keep(layer, value)
        except Exception as error:
            if not self._whole:
                raise
            self._failure = self._failure or error  # raised after the forward: other ranks are in the middle of it
        if self._stop_early and all(self._fired.values()):
            raise _Stop

    def _keep(self, layer: Layer, value: Any) -> None:
        tensor = as_activation(value, layer)
        if self._n_samples is not None and (tensor.ndim == 0 or len(tensor) != self._n_samples):
            raise CaptureError(
                f"layer {layer.name!r}: expected {self._n_samples} samples along the first dim, found "
                f"{tuple(tensor.shape)}"
            )
        self._fired[layer.name] += 1
        if self._fired[layer.name] == 1:  # now, since what comes later in the forward may change it in place
            self._seen[layer.name] = self._pooled(tensor, layer)
        self.source_dtypes[layer.name] = str(tensor.dtype).removeprefix("torch.")
