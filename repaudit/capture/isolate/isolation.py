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

from repaudit.capture.isolate.snapshot import Snapshot
from repaudit.capture.isolate.unlogged import unlogged
from repaudit.errors import LostRankError, StateError

LARGEST_COPIED: Final = 1 << 30
"""Bytes of parameters up to which they are copied while a new model is tried, so that they can be put back."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, eagerly and without gradients, and leave no trace of it.

    Restored, whatever happens inside: the random states of Python, NumPy, torch and the model's devices; ``training``
    of every module; buffers, attributes, and the containers, tensors and random generators among them, that a forward
    changes; hooks that a forward registers. Gradients are not touched, nor is the cache of a surrounding autocast. What
    a Lightning module's forward logs goes nowhere.

    Raises
    ------
    StateError
        When the block changed what cannot be put back.

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
        stack.enter_context(_slow_attention())
        stack.enter_context(unlogged(model))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())  # a stopped forward may have left another
        stack.enter_context(_same_autocast(model))
        for device_type in {"cpu", *(device.type for device in devices_of(model))}:
            if torch.is_autocast_enabled(device_type):
                dtype = torch.get_autocast_dtype(device_type)
                stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def same_randomness(model: nn.Module) -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch and the model's devices after the block."""
    devices = {device for device in devices_of(model) if device.type != "cpu"}
    pythons, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_devices = {device: torch.get_device_module(device.type).get_rng_state(device) for device in devices}
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        torch.set_rng_state(torchs)
        for device, state in on_devices.items():
            torch.get_device_module(device.type).set_rng_state(state, device)


def devices_of(model: nn.Module) -> set[torch.device]:
    """Return the devices that a model computes on; one that accelerate offloads computes where its hooks say.

    Examples
    --------
    >>> devices_of(nn.Linear(2, 2)), devices_of(nn.Linear(2, 2, device="meta"))
    ({device(type='cpu')}, set())
    """
    hooks = [hook for part in model.modules() if (hook := getattr(part, "_hf_hook", None)) is not None]
    hooks += [inner for hook in hooks for inner in getattr(hook, "hooks", ())]
    targets = [getattr(hook, "execution_device", None) for hook in hooks]
    found = {torch.device(target) for target in targets if target is not None}
    return {device for device in found | {value.device for value in model.parameters()} if device.type != "meta"}


@contextmanager
def same_state(model: nn.Module) -> Iterator[None]:
    """Restore every module's mode, attributes, buffers and hooks after the block.

    Calling ``train()`` or ``eval()`` would not do: a frozen BatchNorm would thaw, and overridden ones have effects.

    Raises
    ------
    StateError
        When something cannot be put back; everything else is.
    """
    snapshot = Snapshot(model)
    try:
        yield
    finally:
        snapshot.restore()


@contextmanager
def same_parameters(model: nn.Module) -> Iterator[None]:
    """Check that a forward in evaluation mode does not change the parameters; those of small models are put back.

    Raises
    ------
    StateError
        Naming those that changed, and whether they are as they were.
    """
    before = {name: shape_sum_norm(parameter) for name, parameter in model.named_parameters()}
    copies = _copies(model)
    failure = None
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:  # noqa: BLE001 - raised below, once the parameters are compared
        failure = error
    changed = [name for name, parameter in model.named_parameters() if shape_sum_norm(parameter) != before.get(name)]
    if changed:
        raise StateError(
            f"a forward in evaluation mode changes the parameters {', '.join(changed[:5])}: an audit would change "
            f"the training; make the model change them in training mode only; {_put_back(model, changed, copies)}"
        ) from failure
    if failure is not None:
        raise failure


def _copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the values of a model's parameters on the CPU, or nothing of a large model."""
    values = {name: value.detach() for name, value in model.named_parameters() if shape_sum_norm(value) is not None}
    if sum(value.nbytes for value in values.values()) > LARGEST_COPIED:
        return {}
    return {name: value.to("cpu", copy=True) for name, value in values.items()}


def _put_back(model: nn.Module, names: list[str], copies: dict[str, torch.Tensor]) -> str:
    parameters = dict(model.named_parameters())
    if not all(name in copies and parameters[name].shape == copies[name].shape for name in names):
        return "the model in hand is no longer the trained one: load it again"
    for name in names:
        parameters[name].data.copy_(copies[name])
    return "they are put back"


def shape_sum_norm(parameter: torch.Tensor) -> tuple[object, ...] | None:
    """Return a parameter's shape, sum and norm, which reveal a change; None where it has no floating-point values.

    The sum and the norm are texts of float64 numbers, so that NaN equals NaN.

    Examples
    --------
    >>> shape_sum_norm(torch.tensor([3.0, 4.0]))
    ((2,), '7.0', '5.0')
    """
    if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
        return None
    value = parameter.detach()
    if not value.is_floating_point() or value.layout != torch.strided:
        return None
    total, norm = value.sum(dtype=torch.float64), torch.linalg.vector_norm(value, dtype=torch.float64)
    return tuple(value.shape), str(total.item()), str(norm.item())


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Disable torch's fused encoder path, which skips padded positions and the calls of the layers."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _same_autocast(model: nn.Module) -> Iterator[None]:
    """Restore autocast after the block: an interrupt inside a forward may leave that of the model switched on."""
    kept = [
        (device_type, torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type))
        for device_type in {"cpu", *(parameter.device.type for parameter in model.parameters())}
        if device_type != "meta"
    ]
    is_cached = torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(is_cached)
        for device_type, enabled, dtype in kept:
            torch.set_autocast_enabled(device_type, enabled)
            torch.set_autocast_dtype(device_type, dtype)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code eagerly inside the block, so that hooks fire and nothing is recompiled."""
    stance: AbstractContextManager[Any] | None = None
    if "torch._dynamo" in sys.modules:  # nothing can be compiled without it, and importing it takes seconds
        stance = torch.compiler.set_stance("force_eager")
    with ExitStack() as stack:
        if stance is not None:
            stack.enter_context(stance)
        yield
