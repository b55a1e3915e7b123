"""Which tokens of a layer count: the mask of the inputs that its part of the network was given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.extract.base_models import is_pretrained
from repaudit.capture.extract.facts import Call
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.layer_spec import AUTO
from repaudit.capture.extract.wrappers import config_of, is_peft, n_virtual_tokens
from repaudit.capture.probe_set.probe_set import ATTENTION_MASK
from repaudit.errors import CaptureError

_DECODER_MASK: Final = "decoder_attention_mask"
_TOKENS: Final = frozenset({"input_ids", "inputs_embeds", "input_values", "input_features"})
"""Names of the inputs whose positions an ``attention_mask`` masks."""
_DECODER_TOKENS: Final = frozenset({"decoder_input_ids", "decoder_inputs_embeds"})


@dataclass
class _Part:
    """A module on the way to layers, and what its last forward was given, by name."""

    module: nn.Module
    parameters: tuple[str, ...]
    decoder: frozenset[nn.Module]
    n_virtual: int
    given: Mapping[str, torch.Tensor] | None = None
    is_masked: bool = False


class TokenMasks:
    """Find the mask of each layer's tokens.

    A layer below Hugging Face models takes the mask that the nearest of them was given, since an image tower that is
    given none masks nothing, and a decoder is given its own. Where it was given none, or one that is made for its
    attention, the mask is that of the same tokens one model further out, and outside of all the probe set's
    ``attention_mask``. Learned rows that stand for no token of the inputs have none.

    Parameters
    ----------
    network
        The root of forwards.
    layers
        What is recorded.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer]) -> None:
        self._inputs: Mapping[str, Any] = {}
        self._above = above = _parents(network)
        parts: dict[nn.Module, _Part] = {}
        self._ways: dict[str, list[_Part]] = {}
        for layer in layers:
            way = [module for module in _way(layer.module, above) if is_pretrained(module) or n_virtual_tokens(module)]
            self._ways[layer.name] = [parts.setdefault(module, _part(module)) for module in way]
        self._outermost = [parts.setdefault(module, _part(module)) for module in outermost_models(network)]
        self._parts = list(parts.values())

    def telling(self, module: nn.Module) -> nn.Module:
        """Return a module, or the nearest around it with parameters."""
        return next((one for one in _way(module, self._above) if next(one.parameters(), None) is not None), module)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the modules on the way are given by the forwards inside the block."""
        with ExitStack() as stack:
            for part in self._parts:
                stack.callback(part.module.register_forward_pre_hook(_noter(part), with_kwargs=True).remove)
            yield

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Forget the last forward; these are the inputs of the next."""
        self._inputs = inputs
        for part in self._parts:
            part.given = None

    def of(self, layer: Layer, tokens: int, call: Call) -> torch.Tensor | None:
        """Return the mask ``(sample, token)`` of a layer with so many tokens, or None where all count.

        Parameters
        ----------
        call
            What is known of this call of the layer.

        Raises
        ------
        CaptureError
            When the spec names a mask that is not among the inputs, or nothing tells which one is meant.
        """
        name = layer.spec.mask
        if name is None:
            return None
        if name != AUTO:
            mask = self._named(name)
            if mask is None:
                raise CaptureError(
                    f"layer {layer.name!r}: expected a mask (sample, token) {name!r} among the probe set's inputs, "
                    f"found {', '.join(self._inputs) or 'none'}"
                )
            return mask
        if call.are_learned:
            return None
        mask = self._found(layer, tokens, call.origins)
        if mask is not None and call.are_learned is None and mask.shape[1] == tokens:
            raise CaptureError(
                f"layer {layer.name!r}: its {tokens} tokens are as many as the mask's and the learned rows (queries "
                "or latents) that it depends on: say LayerSpec(..., mask=None) where they are those, or the name of "
                "the input that masks them"
            )
        if mask is not None and not self._masks(mask, call.origins):
            self._ask(layer, tokens, [name for name in self._fitting(tokens) if name != ATTENTION_MASK])
            return None
        return None if mask is None else self._of_frames(layer, mask, tokens)

    def n_virtual(self, layer: Layer, tokens: int) -> int:
        """Return how many learned tokens of a prompt stand before those of the probe set."""
        for part in self._ways[layer.name]:
            ids = (part.given or {}).get("input_ids")
            if part.n_virtual and ids is not None and tokens == ids.shape[1] + part.n_virtual:
                return part.n_virtual
        return 0

    def _found(self, layer: Layer, tokens: int, origins: frozenset[str]) -> torch.Tensor | None:
        models = [part for part in self._ways[layer.name] if part.given is not None]
        prompted = [part for part in models if part.n_virtual]
        if not models:
            mask = _mask(self._inputs.get(ATTENTION_MASK))
            return self._of_another_name(layer, tokens, origins) if mask is None else mask
        feeds: list[torch.Tensor] | None = None
        for part in prompted[-1:] or models:  # inside a prompted model, the mask is that of the prompt as well
            given = part.given or {}
            fed = None if feeds is None else _names_of(feeds, given)
            decoding = layer.module in part.decoder if fed is None else bool(fed & _DECODER_TOKENS)
            if fed is not None and not fed & (_TOKENS | _DECODER_TOKENS):
                return None  # tokens that the model made itself, or an image
            if decoding and given.keys() & (_DECODER_TOKENS | {_DECODER_MASK}):
                return _mask(given.get(_DECODER_MASK))
            mask = given.get(ATTENTION_MASK)
            if (found := _mask(mask)) is not None:
                return found
            if mask is None and not given.keys() & _TOKENS:
                return None
            feeds = None if part.is_masked else [value for name, value in given.items() if name in _TOKENS]
        is_fed = feeds is None or _names_of(feeds, self._inputs) & _TOKENS
        return _mask(self._inputs.get(ATTENTION_MASK)) if is_fed else None

    def _masks(self, mask: torch.Tensor, origins: frozenset[str]) -> bool:
        """Return whether a mask is one of inputs that a layer depends on."""
        masked = self._inputs.keys() & _TOKENS or {
            name
            for name, value in self._inputs.items()
            if isinstance(value, torch.Tensor) and not _is_mask(name, value) and value.shape[:2] == mask.shape
        }
        return not origins or not masked or bool(masked & origins)

    def _named(self, name: str) -> torch.Tensor | None:
        """Return an input that is a mask; a ``padding_mask`` is true where a token does not count."""
        mask = _mask(self._inputs.get(name))
        return mask == 0 if mask is not None and _is_padding(name, mask) else mask

    def _of_another_name(self, layer: Layer, tokens: int, origins: frozenset[str]) -> torch.Tensor | None:
        """Return the mask that a model inside the network was given for the same inputs, or torch's padding mask."""
        for part in self._outermost:
            given = part.given or {}
            mask = _mask(given.get(ATTENTION_MASK))
            tensors = [value for name, value in given.items() if name in _TOKENS]
            if mask is not None and mask.shape[1] == tokens and _names_of(tensors, self._inputs) & origins:
                return mask
        fitting = self._fitting(tokens)
        if len(fitting) == 1 and _is_padding(fitting[0], self._inputs[fitting[0]]):
            shape = self._inputs[fitting[0]].shape
            masked = [name for name in origins if self._inputs[name].shape[:2] == shape]
            if len(masked) == 1:
                return self._named(fitting[0])
        self._ask(layer, tokens, fitting)
        return None

    def _fitting(self, tokens: int) -> list[str]:
        """Return the names of the masks (sample, token) of so many tokens among the inputs."""
        return [
            name
            for name, value in self._inputs.items()
            if _is_mask(name, value) and value.ndim == 2 and value.shape[1] == tokens
        ]

    def _ask(self, layer: Layer, tokens: int, fitting: Sequence[str]) -> None:
        if fitting:
            raise CaptureError(
                f"layer {layer.name!r}: the probe set holds {', '.join(map(repr, fitting))}, and nothing tells whether "
                f"one of them masks its {tokens} tokens: say so, LayerSpec(..., mask={fitting[0]!r}), where nonzero "
                "counts, or mask=None"
            )

    def _of_frames(self, layer: Layer, mask: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return the mask of a speech model's frames, where the mask is that of the sound they were made of."""
        if mask.shape[1] == tokens:
            return mask
        for part in self._ways[layer.name]:
            count = getattr(part.module, "_get_feat_extract_output_lengths", None)
            if count is None or int(count(torch.tensor(mask.shape[1]))) != tokens:
                continue
            reduce = getattr(part.module, "_get_feature_vector_attention_mask", None)
            if reduce is not None:
                frames: torch.Tensor = reduce(tokens, mask)
                return frames
            lengths: torch.Tensor = count(mask.sum(-1))
            return torch.arange(tokens, device=mask.device)[None] < lengths[:, None]
        return mask


def _part(module: nn.Module) -> _Part:
    decoder: frozenset[nn.Module] = frozenset()
    if is_pretrained(module) and getattr(config_of(module), "is_encoder_decoder", False):
        found = getattr(module, "get_decoder", lambda: None)() or getattr(module, "decoder", None)
        decoder = frozenset(found.modules()) if isinstance(found, nn.Module) else decoder
    return _Part(module, tuple(inspect.signature(module.forward).parameters), decoder, n_virtual_tokens(module))


def _noter(part: _Part) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(part.parameters, args, strict=False)) | kwargs
        part.given = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        part.is_masked = named.get(ATTENTION_MASK) is not None

    return hook


def _names_of(tensors: Sequence[torch.Tensor], inputs: Mapping[str, Any]) -> set[str]:
    return {name for name, value in inputs.items() if any(_same(value, tensor) for tensor in tensors)}


def _is_mask(name: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and "mask" in name


def _is_padding(name: str, mask: torch.Tensor) -> bool:
    return name.endswith("padding_mask") and not mask.is_floating_point()


def _mask(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None


def _same(first: Any, second: torch.Tensor) -> bool:
    if first is second:
        return True
    if not isinstance(first, torch.Tensor) or first.shape != second.shape or first.device != second.device:
        return False
    return first.dtype == second.dtype and bool(torch.equal(first, second))


def outermost_models(network: nn.Module) -> list[nn.Module]:
    """Return the Hugging Face models of a network that are in no other, the network itself included."""
    if is_pretrained(network) or is_peft(network):
        return [network]
    return [model for child in network.children() for model in outermost_models(child)]


def _parents(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the module around each module, the first one where it has several."""
    above: dict[nn.Module, nn.Module] = {}
    for module in network.modules():
        for child in module.children():
            above.setdefault(child, module)
    return above


def _way(module: nn.Module, above: Mapping[nn.Module, nn.Module]) -> list[nn.Module]:
    """Return a module and those around it, the nearest first."""
    way = [module]
    while (outer := above.get(way[-1])) is not None and outer not in way:
        way.append(outer)
    return way
