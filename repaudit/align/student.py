"""The features of a student on some of the probe set, with a gradient."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repaudit.capture.extract.extractor import ActivationExtractor
from repaudit.capture.extract.hooks import Recording
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.capture.extract.layer_spec import LayerSpec, as_spec
from repaudit.capture.extract.wrappers import entry_point, is_offloaded, is_sharded, network
from repaudit.capture.isolate.isolation import eager, same_randomness
from repaudit.errors import CaptureError


class StudentLayer:
    """The one layer of a student that is taught.

    Parameters
    ----------
    spec : LayerSpec or str

    Raises
    ------
    ValueError
        The layer keeps its tokens.
    """

    def __init__(self, spec: LayerSpec | str) -> None:
        self.spec = as_spec(spec)
        if self.spec.reduce == "all":
            raise ValueError(f"layer {self.spec.path!r}: expected one row per sample, found reduce='all'")
        self.extractor = ActivationExtractor([self.spec])
        self._last: tuple[weakref.ref[nn.Module], Recording] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle; hooks belong to one model of this process."""
        return {**self.__dict__, "_last": None}

    def features(self, model: nn.Module, inputs: Mapping[str, Tensor], seed: int | None = None) -> Tensor:
        """Forward inputs as deep as the layer, and return ``(batch, feature)`` with its graph.

        With a seed in the mode of the model, whose dropout keeps a student from learning the samples by heart, by
        random numbers of that seed, so that the task misses none; without one in evaluation mode. Running statistics
        are left alone, and the modes are as before afterwards.

        Raises
        ------
        CaptureError
            The model is sharded, the layer did not fire once, or it gave something else than a row per sample.
        LayerPathError
            The path does not resolve, or names several layers.
        """
        recording = self._recording(model)
        with _forwarding(model, seed), eager(), recording:
            seen = recording.forward(inputs, stop_early=True, call=entry_point(model))
        return self._rows(seen)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Watch the forward that is run inside the block; afterwards the list holds its features."""
        found: list[Tensor] = []
        with self.extractor.capture(model, detach=False) as extractor:
            yield found
        found.append(self._rows(extractor.activations))

    def _recording(self, model: nn.Module) -> Recording:
        net = network(model)
        if self._last is not None and self._last[0]() is net:
            return self._last[1]
        if is_sharded(model) or is_offloaded(net):
            raise CaptureError("expected a model with whole parameters on its device, found a sharded or offloaded one")
        layers = resolve_layers(model, [self.spec])
        if len(layers) != 1:
            raise CaptureError(
                f"expected one layer of the student, found {len(layers)} with {self.spec.path!r}: "
                f"{', '.join(layer.name for layer in layers[:3])} ..."
            )
        recording = Recording(model, layers)
        self._last = weakref.ref(net), recording
        return recording

    def _rows(self, seen: Mapping[str, Tensor]) -> Tensor:
        (name, rows), *_ = seen.items()
        if rows.ndim != 2:
            raise CaptureError(f"layer {name!r}: expected features (sample, feature), found {tuple(rows.shape)}")
        return rows


@contextmanager
def _forwarding(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Forward with random numbers of a seed, or in evaluation mode. Modes are flags: ``eval()`` may do more.

    In evaluation mode in any case are modules that would keep statistics, leave layers out, or be recomputed.
    """
    modes = [(module, module.training) for module in network(model).modules()]
    with same_randomness(model):
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - what models draw from; put back after the block
            random.seed(seed)
        try:
            for module, mode in modes:
                module.training = mode and seed is not None and not _is_stateful(module)
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _is_stateful(module: nn.Module) -> bool:
    keeps = bool(getattr(module, "track_running_stats", False))
    return keeps or bool(getattr(module, "layerdrop", 0)) or bool(getattr(module, "gradient_checkpointing", False))


def has_lazy_parameters(module: nn.Module) -> bool:
    """Return whether a module waits for its first input to know its shape."""
    return any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters())
