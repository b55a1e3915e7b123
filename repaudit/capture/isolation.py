"""Forwarding a model so that its training cannot tell: randomness, modes, buffers and hooks end as they began."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import nn

_PLAIN: Final = (bool, int, float, str, type(None), torch.Tensor)
_HOOKS: Final = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, eagerly and without gradients, and leave no trace of it.

    Restored, whatever happens inside: the random states of Python, NumPy, torch and the model's devices; ``training``
    of every module; buffers and plain attributes that a forward changes; hooks that a forward registers. Gradients
    are not touched, nor is the cache of a surrounding autocast.

    Examples
    --------
    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    >>> with undisturbed(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    with ExitStack() as stack:
        stack.enter_context(same_randomness(model))
        stack.enter_context(same_state(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager())
        for device_type in {"cpu", *(parameter.device.type for parameter in model.parameters())}:
            if torch.is_autocast_enabled(device_type):
                dtype = torch.get_autocast_dtype(device_type)
                stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def same_randomness(model: nn.Module) -> Iterator[None]:
    """Give Python, NumPy, torch and the model's devices the random states back that they had."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type not in {"cpu", "meta"}}
    own, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_devices = {device: torch.get_device_module(device.type).get_rng_state(device) for device in devices}
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.set_rng_state(torchs)
        for device, state in on_devices.items():
            torch.get_device_module(device.type).set_rng_state(state, device)


@contextmanager
def same_state(model: nn.Module) -> Iterator[None]:
    """Give every module its mode, buffers, plain attributes and hooks back.

    Calling ``train()`` or ``eval()`` would not do: a frozen BatchNorm would thaw, and overridden ones have effects.
    """
    saved = [(module, _Snapshot(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, snapshot in saved:
            snapshot.restore(module)


class _Snapshot:
    """What of one module a forward could change."""

    def __init__(self, module: nn.Module) -> None:
        # FSDP's first forward sets itself up on its module, once and for good
        self.is_own = type(module).__name__ != "FullyShardedDataParallel"
        self.plain = {
            k: v for k, v in module.__dict__.items() if isinstance(v, _PLAIN) and (self.is_own or k == "training")
        }
        self.held = {
            k: (v, v.copy()) for k, v in module.__dict__.items() if type(v) in {list, dict, set} and k[0] != "_"
        }
        self.buffers = {
            name: (buffer, buffer._version, buffer.detach().clone())
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_meta
        }
        self.hooks = {name: list(getattr(module, name)) for name in _HOOKS}

    def restore(self, module: nn.Module) -> None:
        self._restore_plain(module.__dict__)
        for container, contents in self.held.values():
            if _differs(container, contents):
                _refill(container, contents)
        for name, (buffer, version, value) in self.buffers.items():
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            if buffer._version != version:
                buffer.detach().copy_(value)
        for name, known in self.hooks.items():
            hooks = getattr(module, name)
            for key in [key for key in hooks if key not in known]:
                del hooks[key]

    def _restore_plain(self, attributes: dict[str, Any]) -> None:
        new = [k for k, v in attributes.items() if isinstance(v, _PLAIN) and k not in self.plain]
        for name in new if self.is_own else []:
            del attributes[name]
        for name, value in self.plain.items():
            if attributes.get(name, self) is not value:
                attributes[name] = value


def _differs(container: Any, contents: Any) -> bool:
    if len(container) != len(contents):
        return True
    if isinstance(container, dict):
        return any(k not in container or container[k] is not v for k, v in contents.items())
    if isinstance(container, list):
        return any(a is not b for a, b in zip(container, contents, strict=True))
    return bool(container != contents)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(contents)
    else:
        container.update(contents)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code eagerly inside the block, so that hooks fire and nothing is compiled anew."""
    stance: AbstractContextManager[Any] | None = None
    if "torch._dynamo" in sys.modules:  # nothing can be compiled without it, and importing it takes seconds
        stance = torch.compiler.set_stance("force_eager")
    with ExitStack() as stack:
        if stance is not None:
            stack.enter_context(stance)
        yield
