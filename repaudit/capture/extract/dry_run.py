"""What is checked once before a model is audited: its parameters, its vocabulary, and the effect of padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.extract.completions import check_tokens
from repaudit.capture.extract.hooks import Recording
from repaudit.capture.probe_set.probe_set import ATTENTION_MASK, ProbeSet
from repaudit.errors import CaptureError, ProbeSetError

_TOLERANCE: Final = {torch.float16: 0.05, torch.bfloat16: 0.05}
"""Relative difference allowed between half-precision forwards of different length; 0.01 for other dtypes."""


def check_initialized(model: nn.Module) -> None:
    """Refuse lazy modules that have not seen an input: the audit instead of the training would initialise them.

    Raises
    ------
    CaptureError
        Naming the first such parameter.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise CaptureError(
                f"{type(model).__name__}: {name!r} is a lazy parameter without a shape, and an audit must not "
                "initialise it: forward one batch before the training starts"
            )


def check_vocabulary(model: nn.Module, probe_set: ProbeSet) -> None:
    """Check that the model has an embedding for every token of the probe set.

    Raises
    ------
    ProbeSetError
        Naming the first sample with another token.
    """
    ids = probe_set.inputs.get("input_ids")
    if ids is not None:
        check_tokens(model, ids, probe_set.ids)


def dry_run(recording: Recording, probe_set: ProbeSet, call: Callable[..., Any]) -> None:
    """Forward the sample with the most left padding, twice in one batch and whole; then without its padding.

    This finds a hook that fires again after the deepest layer, samples that are not along the first dim even where a
    batch has as many samples as tokens, and a model whose positions count the padding.

    Raises
    ------
    CaptureError
        When a hook did not fire once, or what it saw cannot be pooled.
    ProbeSetError
        When left padding changes what the model computes, or that cannot be checked.
    """
    row = probe_set.most_left_padded
    batch = {name: value[[row, row]] for name, value in probe_set.inputs.items()}
    names = [probe_set.ids[row]] * 2
    recording.forward(batch, stop_early=False, call=call, names=names)
    mask = batch.get(ATTENTION_MASK)
    if mask is None or bool(mask[0, 0]):
        return
    padded, n_padding = recording.seen, int(mask[0].to(torch.uint8).argmax())
    try:
        recording.forward(_without_padding(batch, n_padding), stop_early=False, call=call, names=names)
    except CaptureError as error:
        raise ProbeSetError(
            f"sample {probe_set.ids[row]!r} is padded on the left, and {type(recording.net).__name__} cannot be "
            f"forwarded without that padding, to check whether its positions count it ({error}): pad on the right "
            "(tokenizer.padding_side = 'right')"
        ) from error
    for name, expected in recording.seen.items():
        with_padding = padded[name][:, n_padding:] if padded[name].ndim == 3 else padded[name]
        if with_padding.shape != expected.shape:
            continue
        dtype = getattr(torch, recording.source_dtypes[recording.recorded[name].name])
        difference = float((with_padding - expected).float().norm() / expected.float().norm().clamp_min(1e-30))
        if not difference <= _TOLERANCE.get(dtype, 0.01):
            raise ProbeSetError(
                f"sample {probe_set.ids[row]!r} is padded on the left, and {type(recording.net).__name__} computes "
                f"other values than without padding (layer {name!r}, by {difference:.0%}), since its "
                "positions count the padding: pad on the right (tokenizer.padding_side = 'right'), or give "
                "'position_ids' among the probe set's inputs if its forward takes them"
            )


def _without_padding(batch: Mapping[str, torch.Tensor], n_padding: int) -> dict[str, torch.Tensor]:
    """Cut the first tokens from every input that has as many tokens as the mask, except a decoder's."""
    length = batch[ATTENTION_MASK].shape[1]
    return {
        name: value[:, n_padding:]
        if value.ndim > 1 and value.shape[1] == length and not name.startswith("decoder_")
        else value
        for name, value in batch.items()
    }
