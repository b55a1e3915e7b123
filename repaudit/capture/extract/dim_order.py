"""The order of an activation's dims, from what is known of them or from the module that put it out."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.layout import Layout, unclear
from repaudit.errors import CaptureError

_FEATURES_FIRST: Final = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_FEATURES_LAST: Final = (nn.Linear, nn.LayerNorm)


def arranged(
    value: torch.Tensor, layer: Layer, n_samples: int, known: Layout | None, around: nn.Module | None = None
) -> tuple[torch.Tensor, int]:
    """Return an activation as ``(sample[, position], feature)``, and how many dims its positions had.

    What the spec says holds; else what the first forward told; else what the module's type and parameters tell, or
    those of the module around one without parameters.

    Raises
    ------
    CaptureError
        When the samples are not along the first dim, or nothing tells what the dims are.

    Examples
    --------
    >>> from repaudit import LayerSpec
    >>> conv = nn.Conv1d(3, 8, 1)
    >>> rows, n_positions = arranged(torch.zeros(2, 8, 5), Layer("0", "0", conv, LayerSpec("[0]"), "output"), 2, None)
    >>> rows.shape, n_positions
    (torch.Size([2, 5, 8]), 1)
    """
    if layer.spec.layout is not None:
        layout = Layout.parse(layer.spec.layout)
        return _laid_out(value, layer, n_samples, layout), layout.n_positions
    if value.ndim == 3 and getattr(layer.module, "batch_first", None) is False and layer.point == "output":
        value, known = value.transpose(0, 1), None
    elif known is not None and known.samples_first and len(known.dims) == value.ndim:
        return _laid_out(value, layer, n_samples, known), known.n_positions
    is_other = known is not None and not known.samples_first and len(known.dims) == value.ndim
    if value.ndim == 0 or len(value) != n_samples or is_other:
        hint = f"; if its dims are otherwise, say so: LayerSpec(..., layout='{known}')" if known is not None else ""
        raise CaptureError(
            f"layer {layer.name!r}: expected {n_samples} samples along the first dim, found {tuple(value.shape)}{hint}"
        )
    value = _by_module(value, layer, layer.module if around is None else around)
    return value, value.ndim - 2


def _laid_out(value: torch.Tensor, layer: Layer, n_samples: int, layout: Layout) -> torch.Tensor:
    try:
        return layout.arrange(value, n_samples)
    except ValueError as error:
        raise CaptureError(f"layer {layer.name!r}: {error}") from None


def _by_module(value: torch.Tensor, layer: Layer, telling: nn.Module) -> torch.Tensor:
    """Return an activation with features behind one dim of positions, or before two, by what its module is.

    Convolutions and batch norms put features first, linear layers and layer norms last; of other modules the widths of
    those inside tell, or the sizes of parameters. Where modules with parameters but without convolutions leave it open,
    the features of three dims are last.
    """
    module = layer.module
    if value.ndim not in {3, 4}:
        return value
    if isinstance(module, _FEATURES_FIRST):
        return value.transpose(1, 2) if value.ndim == 3 else value
    if isinstance(module, _FEATURES_LAST):
        return value if value.ndim == 3 else value.permute(0, 3, 1, 2)
    firsts = [part for part in telling.modules() if isinstance(part, _FEATURES_FIRST)]
    sizes = {size for parameter in telling.parameters() for size in parameter.shape}
    if value.ndim == 3 and sizes and not firsts:
        return value.transpose(1, 2) if value.shape[1] in sizes and value.shape[2] not in sizes else value
    widths = {width for part in telling.modules() if (width := _width(part)) is not None}
    if telling is not module:
        widths |= {part.in_channels for part in firsts if isinstance(part, nn.modules.conv._ConvNd)}
    is_first, is_last = value.shape[1] in widths, value.shape[-1] in widths
    if is_first == is_last:
        raise unclear(layer.name, type(module).__name__, tuple(value.shape))
    if value.ndim == 3:
        return value.transpose(1, 2) if is_first else value
    return value if is_first else value.permute(0, 3, 1, 2)


def _width(module: nn.Module) -> int | None:
    """Return how many features a layer puts out."""
    for name in ("out_channels", "num_features", "num_channels", "out_features"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    shape = getattr(module, "normalized_shape", None)
    return shape[-1] if isinstance(shape, tuple) and shape and isinstance(shape[-1], int) else None
