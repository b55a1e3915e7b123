"""What a forward could change in a model's modules, kept and put back: plain state of any depth, buffers, hooks."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from repaudit.errors import StateError

MOST_OBJECTS: Final = 100_000
"""Containers, tensors and generators followed from the attributes of one model."""
LARGEST_TENSOR: Final = 64 << 20
"""Bytes up to which a tensor held outside the buffers is copied; a larger one is only watched."""

_INTERNAL: Final = frozenset(nn.Module().__dict__)
_HOOKS: Final = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_CONTAINERS: Final = (list, dict, set, deque)
_KNOWN: Final = frozenset({list, dict, set, deque, OrderedDict, defaultdict, Counter})
_RANDOM: Final = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_FOLLOWED: Final = (tuple, *_CONTAINERS, torch.Tensor, np.ndarray, *_RANDOM)

_PRESERVING: Final = getattr(torch.autograd, "_unsafe_preserve_version_counter", None)
"""Torch's way to restore a tensor's version; it is not public, and may disappear."""

Restore = Callable[[], None]


class Snapshot:
    """The state of all modules of a model, apart from parameters' values.

    Modes, attributes, the contents of containers, tensors, arrays and random generators among them, buffers, names of
    submodules and parameters, and hooks. Each object keeps its identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self._restores: list[tuple[str, Restore]] = []
        self._followed: dict[int, Any] = {}  # the objects themselves, so that no id is reused
        modules = list(model.named_modules())
        self._modes = [(module, module.training) for _, module in modules]
        for path, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                self._follow(f"{path}: a buffer", list(module.buffers(recurse=False)), is_buffer=True)
            # FSDP's first forward sets up its module permanently
            elif type(module).__name__ != "FullyShardedDataParallel":
                self._keep(path, module)
            self._restores.append((f"{path}: hooks", _hooks(module)))
        self._versions = [(name, parameter, _version(parameter)) for name, parameter in model.named_parameters()]

    def restore(self) -> None:
        """Put everything back, modes first; what fails does not keep the rest from being put back.

        Raises
        ------
        StateError
            Naming what could not be put back.
        """
        for module, mode in self._modes:
            module.training = mode
        failed = []
        for path, restore in self._restores:
            try:
                restore()
            except Exception as error:  # noqa: BLE001 - raised below, once the rest is back
                failed.append(f"{path} ({type(error).__name__}: {error})")
        changed = [name for name, parameter, version in self._versions if _version(parameter) != version]
        failed += [f"parameter {name!r} (changed in place)" for name in changed]
        if failed:
            raise StateError(
                "a forward in evaluation mode changed what cannot be put back, so that an audit would disturb the "
                f"training: {'; '.join(failed[:5])}"
                + (f" and {len(failed) - 5} more" if len(failed) > 5 else "")
                + ("; the model in hand is no longer the trained one: load it again" if changed else "")
            )

    def _keep(self, path: str, module: nn.Module) -> None:
        attributes = {name: value for name, value in module.__dict__.items() if name not in _INTERNAL}
        self._restores.append((f"{path}: attributes", lambda: _restore_attributes(module, attributes)))
        for name, value in attributes.items():
            self._follow(f"{path}.{name}", [value])
        buffers = dict(module._buffers)
        self._restores.append((f"{path}: buffers", lambda: _restore_mapping(module._buffers, buffers)))
        self._follow(f"{path}: a buffer", list(buffers.values()), is_buffer=True)
        for held in (module._modules, module._parameters):
            self._restores.append((f"{path}: new parts", _forget_new(held)))

    def _follow(self, path: str, values: list[Any], *, is_buffer: bool = False) -> None:
        waiting = values
        while waiting:
            value = waiting.pop()
            if not isinstance(value, _FOLLOWED) or isinstance(value, nn.Parameter) or id(value) in self._followed:
                continue
            if len(self._followed) >= MOST_OBJECTS:
                return
            self._followed[id(value)] = value
            if isinstance(value, tuple | list | dict | set | deque):
                waiting += _worth_following(value.values() if isinstance(value, dict) else value)
            if (restore := _restorer(value, is_buffer=is_buffer)) is not None:
                self._restores.append((path, restore))


def _worth_following(values: Iterable[Any]) -> list[Any]:
    if not any(issubclass(kind, _FOLLOWED) for kind in set(map(type, values))):
        return []
    return [value for value in values if isinstance(value, _FOLLOWED)]


def _restorer(value: Any, *, is_buffer: bool) -> Restore | None:
    if isinstance(value, _CONTAINERS):
        return _container(value) if type(value) in _KNOWN else None
    if isinstance(value, torch.Tensor):
        return _tensor(value, is_buffer=is_buffer)
    if isinstance(value, np.ndarray):
        return _array(value)
    return _generator(value)


def _container(value: Any) -> Restore:
    contents = value.copy()

    def restore() -> None:
        if _differs(value, contents):
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(contents)

    return restore


def _differs(container: Any, contents: Any) -> bool:
    if len(container) != len(contents):
        return True
    if isinstance(container, dict):
        return not (all(map(is_, container, contents)) and all(map(is_, container.values(), contents.values())))
    if isinstance(container, set):
        return bool(container != contents)
    return not all(map(is_, container, contents))


def _tensor(value: torch.Tensor, *, is_buffer: bool) -> Restore | None:
    if value.is_meta or value.layout != torch.strided or type(value).__name__ in {"FakeTensor", "DTensor"}:
        return None
    if not is_buffer and value.nbytes > LARGEST_TENSOR:
        return _watched(value)
    kept, version = value.detach().clone(), _version(value)
    preserving = None if _PRESERVING is None or value.is_inference() else _PRESERVING(value)

    def restore() -> None:
        if value.shape != kept.shape or value.dtype != kept.dtype:
            value.data = kept  # keeps the same object
        elif value.device.type != "cpu" and value.is_contiguous():
            with torch.inference_mode(value.is_inference()):
                value.data.copy_(kept)  # a comparison would make the host wait
        elif not _same(value, kept):
            with torch.inference_mode(value.is_inference()):
                value.detach().copy_(kept)
        if preserving is not None and _version(value) != version:
            preserving.__exit__(None, None, None)  # the values are those that a graph alive across the audit has saved

    return restore


def _watched(value: torch.Tensor) -> Restore:
    version = _version(value)

    def restore() -> None:
        if _version(value) != version:
            raise StateError(f"a tensor of {value.nbytes >> 20} MiB that is not a buffer changed in place")

    return restore


def _same(value: torch.Tensor, kept: torch.Tensor) -> bool:
    if torch.equal(value, kept):
        return True
    if not value.is_floating_point():
        return False
    return bool(((value == kept) | (value.isnan() & kept.isnan())).all())


def _array(value: np.ndarray) -> Restore | None:
    if value.dtype.hasobject or value.nbytes > LARGEST_TENSOR:
        return None
    kept = value.copy()

    def restore() -> None:
        if value.tobytes() != kept.tobytes():
            value[...] = kept

    return restore


def _generator(value: Any) -> Restore | None:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _discard(value.set_state(state))
    if isinstance(value, np.random.Generator):
        inner, numpys = value.bit_generator, value.bit_generator.state
        return lambda: setattr(inner, "state", numpys)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    if isinstance(value, random.Random):
        pythons = value.getstate()
        return lambda: value.setstate(pythons)
    return None


def _discard(_value: object) -> None:
    return None


def _restore_attributes(module: nn.Module, kept: dict[str, Any]) -> None:
    attributes = module.__dict__
    for name in [name for name in attributes if name not in kept and name not in _INTERNAL]:
        del attributes[name]
    for name, value in kept.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value


def _restore_mapping(held: dict[str, Any], kept: dict[str, Any]) -> None:
    if _differs(held, kept):
        held.clear()
        held.update(kept)


def _forget_new(held: dict[str, Any]) -> Restore:
    known = set(held)

    def restore() -> None:
        for name in [name for name in held if name not in known]:
            del held[name]

    return restore


def _hooks(module: nn.Module) -> Restore:
    known = {name: set(getattr(module, name)) for name in _HOOKS}

    def restore() -> None:
        for name, keys in known.items():
            hooks = getattr(module, name)
            for key in [key for key in hooks if key not in keys]:
                del hooks[key]

    return restore


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
