"""Token pooling: from what a hook saw to one row per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch

from repaudit.capture.extract.layer_spec import Reduction
from repaudit.errors import CaptureError

_HALF: Final = frozenset({torch.float16, torch.bfloat16})


def pool(
    activation: torch.Tensor, mask: torch.Tensor | None, reduce: Reduction, layer: str = "activation"
) -> torch.Tensor:
    r"""Pool the tokens of an activation.

    ``mean`` is :math:`\sum_t m_t x_t / \sum_t m_t`, ``last_token`` and ``cls`` the last and the first token with
    :math:`m_t = 1`, computed in float32 for half-precision activations; ``all`` keeps every token and the dtype.

    Parameters
    ----------
    activation
        ``(sample, token, feature)``; ``(sample, feature)`` has no tokens and stays as it is; of feature maps
        ``(sample, feature, height, width)`` the positions count as tokens.
    mask
        ``(sample, token)``, nonzero where a token counts; None counts all. Values at masked positions, NaN included,
        have no influence.

    Returns
    -------
    torch.Tensor
        ``(sample, feature)``, or ``(sample, token, feature)`` for ``all``.

    Raises
    ------
    CaptureError
        When the activation's dims, or its number of tokens against the mask's, do not fit.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> pool(x, torch.tensor([[1, 1, 0]]), "mean").item(), pool(x, torch.tensor([[1, 1, 0]]), "last_token").item()
    (2.0, 3.0)
    """
    if not activation.is_floating_point():
        raise CaptureError(f"layer {layer!r}: expected floating-point values, found {activation.dtype}")
    if activation.ndim == 2:
        return activation if reduce == "all" else _widened(activation)
    if activation.ndim == 4:
        activation, mask = activation.flatten(2).transpose(1, 2), None
    if activation.ndim != 3:
        raise CaptureError(
            f"layer {layer!r}: expected (sample, feature), (sample, token, feature) or (sample, feature, height, "
            f"width), found {tuple(activation.shape)}"
        )
    if reduce == "all":
        return activation
    if mask is not None and mask.shape != activation.shape[:2]:
        raise CaptureError(
            f"layer {layer!r}: the mask has {mask.shape[1]} tokens and the activation {tuple(activation.shape)} has "
            f"{activation.shape[1]} where tokens were expected: check that its second dim is tokens; a model that pads "
            "its inputs (to a multiple of its attention window) needs inputs of such a length; where a layer has other "
            "tokens than the inputs, LayerSpec(..., mask=None) counts all of them"
        )
    everything = mask is None or (mask.device.type == "cpu" and bool(mask.all()))
    keep = None if mask is None or everything else mask.to(device=activation.device, dtype=torch.bool)
    return _REDUCTIONS[reduce](activation, keep)


def _widened(activation: torch.Tensor) -> torch.Tensor:
    return activation.float() if activation.dtype in _HALF else activation


def _mean(activation: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None:
        return _widened(activation).mean(1)
    if keep.device.type == "cpu":  # one sample at a time: a masked copy of them all costs several times the sum
        return torch.stack([_widened(tokens).mean(0) for tokens in _unmasked(activation, keep)])
    values = _widened(activation)
    return values.masked_fill(~keep[..., None], 0).sum(1) / keep.sum(1, keepdim=True).to(values.dtype)


def _unmasked(activation: torch.Tensor, keep: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield each sample's unmasked tokens, as a view where they are contiguous."""
    positions = torch.arange(keep.shape[1])
    starts, stops = keep.to(torch.uint8).argmax(1), (positions * keep).argmax(1) + 1
    whole = (stops - starts == keep.sum(1)).tolist()
    for sample, start, stop, is_whole, kept in zip(
        activation, starts.tolist(), stops.tolist(), whole, keep, strict=True
    ):
        yield sample[start:stop] if is_whole else sample[kept]


def _last_token(activation: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None:
        return _widened(activation[:, -1])
    positions = torch.arange(keep.shape[1], device=keep.device)
    return _at(activation, (positions * keep).argmax(1))


def _first_token(activation: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None:
        return _widened(activation[:, 0])
    return _at(activation, keep.to(torch.uint8).argmax(1))


def _at(activation: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(activation), device=activation.device)
    return _widened(activation[rows, position])


_REDUCTIONS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]]] = {
    "mean": _mean,
    "last_token": _last_token,
    "cls": _first_token,
}
