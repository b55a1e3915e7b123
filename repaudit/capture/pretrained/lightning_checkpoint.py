"""Lightning checkpoints: reading them, and fitting their weights into a model."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from repaudit.capture.extract.wrappers import WRAPPER_NAMES
from repaudit.errors import PretrainedError

_SHOWN: Final = 2


def read_lightning(path: Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning or Fabric; only tensors and plain values are unpickled.

    A flat state, tensors by name, and the only one in what Fabric saved are taken for the ``state_dict``.

    Raises
    ------
    PretrainedError
        When it is damaged, something else, or holds other objects.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes the unpickler raise
        raise PretrainedError(
            f"{path}: expected a Lightning checkpoint of tensors and plain values, but it cannot be read as one "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): save one with "
            "save_weights_only=True, whose hyperparameters are plain values"
        ) from error
    if isinstance(loaded, dict) and "state_dict" not in loaded:
        states = [state for state in (loaded, *loaded.values()) if _is_state(state)]
        if len(states) == 1:
            return {**loaded, "state_dict": states[0]}
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        held = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, dict) else type(loaded).__name__
        raise PretrainedError(f"{path}: expected a Lightning checkpoint with a 'state_dict', found {held}")
    return loaded


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, torch.Tensor) for part in value.values())


@dataclass(frozen=True)
class Fit:
    """A model's weights inside the state of a training module, and how well they fit."""

    prefixes: Sequence[str]
    weights: Mapping[str, torch.Tensor]
    missing: Sequence[str]
    unknown: Sequence[str]
    reshaped: Sequence[str]

    @property
    def faults(self) -> int:
        """How many weights do not fit."""
        return len(self.missing) + len(self.unknown) + len(self.reshaped)


def fit(state: Mapping[str, torch.Tensor], model: nn.Module) -> Fit:
    """Find a model's weights in the state of the module that trained it.

    Names of wrappers are dropped, and the prefix under which most weights are found (``network.``, ``model.``, or any
    other); what is not under it belongs to other parts of the training module.

    Examples
    --------
    >>> state = {"model.weight": torch.zeros(1, 2), "model.bias": torch.zeros(1), "loss.weight": torch.zeros(3)}
    >>> found = fit(state, nn.Linear(2, 1))
    >>> found.prefixes, sorted(found.weights), found.faults
    (['model.'], ['bias', 'weight'], 0)
    """
    expected = model.state_dict()
    state = {".".join(part for part in key.split(".") if part not in WRAPPER_NAMES): state[key] for key in state}
    hits = Counter(prefix for key in state for prefix in _prefixes(key) if key[len(prefix) :] in expected)
    most = max(hits.values(), default=0)
    prefixes = sorted((prefix for prefix, n in hits.items() if n == most), key=len) or [""]
    inside = {key[len(prefixes[0]) :]: value for key, value in state.items() if key.startswith(prefixes[0])}
    weights = {key: value for key, value in inside.items() if key in expected}
    return Fit(
        prefixes,
        weights,
        [key for key in expected if key not in weights],
        [key for key in inside if key not in expected],
        [key for key, value in weights.items() if value.shape != expected[key].shape],
    )


def _prefixes(key: str) -> list[str]:
    return ["", *(key[: i + 1] for i, sign in enumerate(key) if sign == ".")]


def load_state(path: Path, state: Mapping[str, torch.Tensor], builders: Sequence[Callable[[], nn.Module]]) -> nn.Module:
    """Load a training module's state into the first of several models that it fits best.

    Raises
    ------
    PretrainedError
        When it fits none, or holds several sets of weights that fit.
    """
    fits = []
    for builder in builders:
        with torch.device("meta"):
            fits.append(fit(state, builder()))
    best = min(range(len(fits)), key=lambda i: (fits[i].faults, -len(fits[i].weights)))
    model, found = builders[best](), fits[best]
    if found.faults:
        raise PretrainedError(_misfit(path, model, found, len(state)))
    if len(found.prefixes) > 1:
        raise PretrainedError(
            f"{path}: holds several sets of weights for {type(model).__name__}, under the names "
            f"{', '.join(map(repr, found.prefixes[:4]))}: save the one that is meant in a file of its own"
        )
    model.load_state_dict(found.weights)
    return model


def _misfit(path: Path, model: nn.Module, found: Fit, n_state: int) -> str:
    expected = model.state_dict()
    lines = [f"{path}: its {n_state} weights do not fit {type(model).__name__}, which has {len(expected)}:"]
    if found.missing:
        lines.append(f"  {len(found.missing)} are not in the checkpoint, such as {_some(found.missing)};")
    if found.unknown:
        lines.append(
            f"  {len(found.unknown)} of the checkpoint are unknown to the model, such as {_some(found.unknown)};"
        )
    if found.reshaped:
        name = found.reshaped[0]
        shapes = f"{tuple(found.weights[name].shape)} instead of {tuple(expected[name].shape)}"
        lines.append(f"  {len(found.reshaped)} have another shape, such as {name}: {shapes};")
    return "\n".join([*lines, "  pass the config of the model that was trained (--config)"])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN])
