"""The hooks of one extraction: what they see in a forward, pooled at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from repaudit.capture.extract.forward_inputs import ForwardInputs
from repaudit.capture.extract.hidden_states import HiddenStates
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.pooling import pool, tokens_before_features
from repaudit.capture.extract.wrappers import config_of, layers_root, n_virtual_tokens, network
from repaudit.capture.probe_set.probe_set import ATTENTION_MASK
from repaudit.errors import ActivationTypeError, CaptureError


class _Stop(BaseException):
    """End a forward once every requested layer has fired; no ``except Exception`` on the way may swallow it."""


class Recording:
    """The hooks of one extraction, and what they saw in the current forward."""

    def __init__(self, model: nn.Module, layers: list[Layer], *, whole: bool = False) -> None:
        self.layers, self._whole = layers, whole
        self.net = network(model)
        self._arguments = ForwardInputs(self.net)
        self.source_dtypes: dict[str, str] = {}
        self._hidden = HiddenStates(layers_root(model), [x for x in layers if x.point == "hidden_states"])
        self._decoder = _decoder_parts(self.net)
        self._n_virtual = n_virtual_tokens(self.net)
        self._stop_early = False
        self._n_samples: int | None = None
        self.begin({})

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Forget the last forward; the inputs of the next one hold the masks of its tokens."""
        self._inputs = inputs
        self._seen: dict[str, torch.Tensor] = {}
        self._fired: dict[str, int] = {layer.name: 0 for layer in self.layers}
        self._failure: Exception | None = None

    def __enter__(self) -> Recording:
        self._stack = ExitStack()
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
        self, batch: Mapping[str, torch.Tensor], *, stop_early: bool, call: Callable[..., Any]
    ) -> dict[str, torch.Tensor]:
        """Run one forward, check that every hook fired once, and return what they saw."""
        self.begin(batch)
        self._stop_early = stop_early and not self._whole
        self._n_samples = len(next(iter(batch.values())))
        args, kwargs = self._arguments(batch)
        with suppress(_Stop):
            call(*args, **kwargs)
        self.check()
        return self.seen

    def check(self) -> None:
        """Raise CaptureError unless every hook fired once."""
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
        """Return the pooled activation in new memory; a decoder's tokens are masked by the decoder's mask."""
        inputs = self._inputs
        mask = _mask(inputs.get(ATTENTION_MASK))
        if layer.module in self._decoder:
            has_tokens = inputs.get("decoder_input_ids") is not None
            mask = _mask(inputs.get("decoder_attention_mask", None if has_tokens else mask))
        mask = _of_frames(self.net, mask, value)
        pooled = pool(self._without_prompt(value, inputs), mask, layer.spec.reduce, layer.name)
        return pooled.clone() if _shares_memory(pooled, value) else pooled

    def _without_prompt(self, value: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Drop the learned tokens of a prompt, which are not tokens of the probe set."""
        ids = inputs.get("input_ids")
        if not self._n_virtual or ids is None or value.ndim != 3 or value.shape[1] != ids.shape[1] + self._n_virtual:
            return value
        return value[:, self._n_virtual :]

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
        if self._stop_early and all(self._fired.values()):
            raise _Stop

    def _keep(self, layer: Layer, value: Any) -> None:
        tensor = tokens_before_features(as_activation(value, layer), layer.module)
        if self._n_samples is not None and (tensor.ndim == 0 or len(tensor) != self._n_samples):
            raise CaptureError(
                f"layer {layer.name!r}: expected {self._n_samples} samples along the first dim, found "
                f"{tuple(tensor.shape)}"
            )
        self._fired[layer.name] += 1
        if self._fired[layer.name] == 1:  # at once: the rest of the forward may change it in place
            self._seen[layer.name] = self._pooled(tensor, layer)
        self.source_dtypes[layer.name] = str(tensor.dtype).removeprefix("torch.")


def _mask(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None


def _of_frames(net: nn.Module, mask: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor | None:
    """Return the mask of a speech model's frames, where the mask is that of the waveform they were made of."""
    n_frames, to_frames = (
        getattr(net, f"_get_{name}", None) for name in ("feat_extract_output_lengths", "feature_vector_attention_mask")
    )
    if mask is None or n_frames is None or to_frames is None or value.ndim != 3 or value.shape[1] == mask.shape[1]:
        return mask
    if value.shape[1] != int(n_frames(torch.tensor(mask.shape[1]))):
        return mask
    frames: torch.Tensor = to_frames(value.shape[1], mask)
    return frames


def _shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first is second or first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _decoder_parts(net: nn.Module) -> set[nn.Module]:
    """Return the modules of an encoder-decoder's decoder."""
    if not getattr(config_of(net), "is_encoder_decoder", False):
        return set()
    decoder = getattr(net, "get_decoder", lambda: None)() or getattr(net, "decoder", None)
    return set(decoder.modules()) if isinstance(decoder, nn.Module) else set()


def as_activation(value: Any, layer: Layer) -> torch.Tensor:
    """Return the tensor in what a hook saw: itself, the first of a tuple or model output, or the only one of a dict.

    Raises
    ------
    ActivationTypeError
        For anything else, naming the layer.
    """
    first, rest = value, ""
    if isinstance(value, Mapping):
        tensors = {name: part for name, part in value.items() if isinstance(part, torch.Tensor)}
        first = value.get("last_hidden_state", next(iter(tensors.values()), None))
        if type(value) is dict and "last_hidden_state" not in value and len(tensors) > 1:
            first, rest = None, f" of {', '.join(map(str, tensors))}, which is ambiguous: record a module inside"
    elif isinstance(value, tuple | list) and value:
        first = value[0]
        rest = "" if isinstance(first, torch.Tensor) else f" starting with {type(first).__name__}"
    if isinstance(first, torch.Tensor):
        return first
    raise ActivationTypeError(
        f"layer {layer.name!r} ({type(layer.module).__name__}): expected a tensor, a tuple that starts with one, or a "
        f"model output, found {type(value).__name__}{rest}"
    )
