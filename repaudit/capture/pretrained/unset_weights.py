"""Layers that cannot be recorded, since their numbers would come from weights that a checkpoint does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from repaudit.capture.extract.extractor import ActivationExtractor
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.errors import PretrainedError


def refuse_unset(
    place: str, model: nn.Module, unset: Mapping[str, torch.Tensor], layers: Sequence[LayerSpec], probe_set: ProbeSet
) -> None:
    """Refuse layers that hold a weight which was not in the checkpoint, or whose output changes with it.

    Parameters
    ----------
    unset
        The model's tensors that were not in the checkpoint, by name; they hold arbitrary numbers.

    Raises
    ------
    PretrainedError
        Naming the first such layer, and weights.
    """
    if not unset:
        return
    resolved = resolve_layers(model, layers)
    for layer in resolved:
        inside = [name for name, tensor in unset.items() if layer.entry is None and _holds(layer, tensor)]
        if inside:
            raise _refused(place, layer, inside)
    sample = probe_set.select(0, 1)
    extractor = ActivationExtractor(layers)
    before = extractor.extract(model, sample)
    with _changed([tensor for tensor in unset.values() if tensor.is_floating_point()]):
        after = ActivationExtractor(layers).extract(model, sample)
    for name, layer in extractor.layers.items():
        if not torch.equal(before[name], after[name]):
            raise _refused(place, layer, list(unset))


def _holds(layer: Layer, tensor: torch.Tensor) -> bool:
    if layer.point == "input":
        return False
    return any(own is tensor for own in (*layer.module.parameters(), *layer.module.buffers()))


@contextmanager
def _changed(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Put other numbers into tensors inside the block."""
    kept = [tensor.detach().clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.rand(tensor.shape, generator=generator).to(tensor) + 0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, kept, strict=True):
                tensor.copy_(values)


def _refused(place: str, layer: Layer, names: Sequence[str]) -> PretrainedError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return PretrainedError(
        f"{place}: layer {layer.name!r} would be computed with weights that are not in the checkpoint ({shown}), that "
        "is from random numbers: leave it out, or record a checkpoint that holds them"
    )
