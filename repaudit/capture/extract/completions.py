"""What a Hugging Face model is given beside the inputs that there are: positions, decoder tokens, no cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.extract.base_models import is_pretrained
from repaudit.capture.extract.wrappers import config_of, is_peft
from repaudit.capture.probe_set.probe_set import ATTENTION_MASK
from repaudit.errors import ProbeSetError

_POSITION_COUNTERS: Final = ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds")
"""Methods of networks that count positions themselves, without the padding (the RoBERTa family, ESM, MPNet)."""


class Completions:
    """Compute what a Hugging Face model is given beside the inputs that there are; other models are given nothing.

    Examples
    --------
    >>> Completions(nn.Linear(2, 3))({"input": torch.zeros(1, 2)})
    {}
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._accepted, self._takes_any = _parameters(model)
        self._config = config_of(model) if is_pretrained(model) or is_peft(model) else None

    def __call__(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs to add."""
        config = self._config
        added: dict[str, Any] = {}
        if config is None:
            return added
        if "use_cache" in self._accepted or (self._takes_any and hasattr(config, "use_cache")):
            added["use_cache"] = False
        ids, mask = named.get("input_ids"), named.get(ATTENTION_MASK)
        if getattr(config, "is_encoder_decoder", False) and ids is not None and named.get("decoder_input_ids") is None:
            added["decoder_input_ids"] = _shifted_right(ids, mask, config)
            if mask is not None and "decoder_attention_mask" in self._accepted:
                added["decoder_attention_mask"] = mask
        elif _needs_start(config, named) and "decoder_input_ids" in self._accepted:
            first = next(value for value in named.values() if isinstance(value, torch.Tensor))
            added["decoder_input_ids"] = torch.full((len(first), 1), _start_token(config), device=first.device)
        takes_positions = "position_ids" in self._accepted or self._takes_any
        is_mask = isinstance(mask, torch.Tensor) and mask.ndim == 2
        if takes_positions and is_mask and not bool(mask[:, 0].all()) and not self._counts_positions:  # type: ignore[index]
            added["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)  # type: ignore[union-attr]
        return {name: value for name, value in added.items() if named.get(name) is None}

    def called(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments of a call that another module makes, completed; ``names`` are the samples.

        Raises
        ------
        ProbeSetError
            When it holds tokens that the model does not know.
        """
        named = dict(zip(self._accepted, args, strict=False)) | dict(kwargs)
        ids = named.get("input_ids")
        if isinstance(ids, torch.Tensor):
            check_tokens(self._model, ids, names if names is not None and len(names) == len(ids) else None)
        given = set(self._accepted[: len(args)])
        return dict(kwargs) | {name: value for name, value in self(named).items() if name not in given}

    @cached_property
    def _counts_positions(self) -> bool:
        return any(hasattr(part, name) for part in self._model.modules() for name in _POSITION_COUNTERS)


def check_tokens(model: nn.Module, ids: torch.Tensor, names: Sequence[str] | None = None) -> None:
    """Check that a model has an embedding for every token.

    Raises
    ------
    ProbeSetError
        Naming the first sample with another token.
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return
    if not isinstance(embedding, nn.Embedding) or ids.is_floating_point():
        return
    unknown = (ids < 0) | (ids >= embedding.num_embeddings)
    if bool(unknown.any()):
        row = int(unknown.flatten(1).any(1).nonzero()[0])
        sample = "a sample" if names is None else f"sample {names[row]!r}"
        raise ProbeSetError(
            f"{sample} holds the token {ids[row][unknown[row]][0].item()}, but {type(model).__name__} knows the tokens "
            f"0 to {embedding.num_embeddings - 1}: tokenize the probe set with the model's own tokenizer"
        )


def _parameters(model: nn.Module) -> tuple[list[str], bool]:
    kinds = inspect.Parameter
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY}]
    return named, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def _needs_start(config: Any, named: Mapping[str, Any]) -> bool:
    """Return whether the decoder of a speech or vision model is given nothing to start from."""
    given = [name for name, value in named.items() if value is not None]
    is_given = any(name.startswith("decoder_input") for name in given) or "labels" in given or "input_ids" in given
    has_inputs = any(isinstance(value, torch.Tensor) for value in named.values())
    return bool(getattr(config, "is_encoder_decoder", False)) and has_inputs and not is_given


def _start_token(config: Any) -> int:
    start = getattr(config, "decoder_start_token_id", None)
    return int((getattr(config, "pad_token_id", None) or 0) if start is None else start)


def _shifted_right(ids: torch.Tensor, mask: torch.Tensor | None, config: Any) -> torch.Tensor:
    """Return the tokens shifted right by one, with a start token where the first unmasked one was."""
    start = _start_token(config)
    shifted = ids.roll(1, dims=1)
    first = torch.zeros_like(ids[:, 0]) if mask is None else mask.to(torch.uint8).argmax(1)
    return shifted.scatter(1, first[:, None], start)
