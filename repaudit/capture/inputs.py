"""From a batch of the probe set to the arguments of a network's ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.probe import ATTENTION_MASK
from repaudit.capture.wrappers import config_of, unwrap
from repaudit.errors import ProbeSetError

_OPTIONAL: Final = frozenset({ATTENTION_MASK, "token_type_ids"})
"""Inputs that a tokenizer gives and that a network may not take: the mask still serves the pooling."""


def forward_arguments(
    model: nn.Module, batch: Mapping[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Give the positional and keyword arguments with which ``model`` forwards a batch.

    Inputs go by name; a single input whose name ``forward`` does not know goes as its first argument. Left padding
    gets position ids counted from the mask, an encoder-decoder without decoder inputs its own tokens shifted right.
    Tensors move to the network's device, floating-point ones to its dtype where it has just one; ``use_cache`` is off.

    Raises
    ------
    ProbeSetError
        When the probe set's names do not fit ``forward``'s parameters (both are listed).
    """
    accepted, takes_any = _parameters(unwrap(model))
    moved = _moved(model, {name: value for name, value in batch.items() if value is not None})
    named = {name: value for name, value in moved.items() if takes_any or name in accepted}
    left_over = [name for name in moved if name not in named and name not in _OPTIONAL]
    if left_over:
        required = [name for name in moved if name != ATTENTION_MASK]
        if len(required) != 1 or not accepted:
            raise ProbeSetError(
                f"the probe set's inputs {left_over} are no parameters of {type(unwrap(model)).__name__}.forward, "
                f"which takes {', '.join(accepted)}: name the inputs as it does"
            )
        return (moved[required[0]],), {name: value for name, value in named.items() if name != accepted[0]}
    return (), named | _additions(model, named, accepted, takes_any=takes_any)


def _parameters(model: nn.Module) -> tuple[list[str], bool]:
    kinds = inspect.Parameter
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in {kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY}]
    return named, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def _moved(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    dtype = _one_dtype(model)
    moved = {}
    for name, value in batch.items():
        target = dtype if value.is_floating_point() and name != ATTENTION_MASK else None
        moved[name] = value.to(device=device, dtype=target or value.dtype, non_blocking=True)
    return moved


def _one_dtype(model: nn.Module) -> torch.dtype | None:
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _additions(
    model: nn.Module, named: Mapping[str, torch.Tensor], accepted: list[str], *, takes_any: bool
) -> dict[str, Any]:
    config = config_of(unwrap(model))
    added: dict[str, Any] = {}
    if config is None:
        return added
    if "use_cache" in accepted or (takes_any and hasattr(config, "use_cache")):
        added["use_cache"] = False
    ids, mask = named.get("input_ids"), named.get(ATTENTION_MASK)
    if getattr(config, "is_encoder_decoder", False) and ids is not None and "decoder_input_ids" not in named:
        added["decoder_input_ids"] = _shifted_right(ids, config)
        if mask is not None and "decoder_attention_mask" in accepted:
            added["decoder_attention_mask"] = mask
    if mask is not None and _needs_positions(model, mask) and ("position_ids" in accepted or takes_any):
        added["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return {name: value for name, value in added.items() if name not in named}


def _needs_positions(model: nn.Module, mask: torch.Tensor) -> bool:
    """Left padding shifts positions, save where the network itself counts them (the RoBERTa family)."""
    counts_itself = any(hasattr(part, "create_position_ids_from_input_ids") for part in model.modules())
    return not counts_itself and not bool(mask[:, 0].all())


def _shifted_right(ids: torch.Tensor, config: Any) -> torch.Tensor:
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(config, "pad_token_id", None) or 0
    shifted = ids.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted
