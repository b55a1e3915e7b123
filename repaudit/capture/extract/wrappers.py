"""The network inside its wrappers: compiled, distributed, checkpointed, of Fabric, PEFT."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, cast

import torch
from torch import nn

WRAPPER_NAMES: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"})
"""Names that wrappers put into module paths; a layer path may omit them."""

_INNER: Final = (*WRAPPER_NAMES, "module")
_MODULE_WRAPPERS: Final = frozenset(
    {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
)

_LIGHTNING: Final = frozenset({"lightning", "pytorch_lightning"})


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside compile, data-parallel, FSDP, checkpoint and Fabric wrappers.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> unwrap(torch.nn.DataParallel(layer)) is layer
    True
    """
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    for name in WRAPPER_NAMES:
        if (inner := child_of(module, name)) is not None:
            return inner
    return child_of(module, "module") if type(module).__name__ in _MODULE_WRAPPERS else None


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule of that name, or None; the children of a TorchScript module have no ``get``."""
    return module._modules[name] if name in module._modules else None  # noqa: SIM401


def network(module: nn.Module) -> nn.Module:
    """Return the network of a training module: its ``.network`` if any (see ``HFTrainerModule``), else itself.

    A training module without a ``forward``, whose ``training_step`` calls a part of it, stands for that part if no
    other one has parameters.
    """
    inner = unwrap(module)
    name = network_name(inner)
    return inner if name is None else unwrap(inner._modules[name])  # type: ignore[arg-type]


def network_name(module: nn.Module) -> str | None:
    """Return under which name a training module holds its network, or None where it is the network itself."""
    if child_of(module, "network") is not None:
        return "network"
    if has_forward(module) or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return None
    parts = trained_parts(module)
    return parts[0] if len(parts) == 1 else None


def trained_parts(module: nn.Module) -> list[str]:
    """Return the names of the children that have parameters and can be called.

    Examples
    --------
    >>> trained_parts(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    ['0']
    """
    return [
        name
        for name, child in module._modules.items()
        if child is not None and has_forward(child) and any(True for _ in child.parameters())
    ]


def has_forward(module: nn.Module) -> bool:
    """Return whether a module has a ``forward`` of its own; containers and many training modules have none."""
    if "forward" in module.__dict__:
        return True
    owner = next((base for base in type(module).__mro__ if "forward" in base.__dict__), nn.Module)
    is_lightnings = owner.__module__.partition(".")[0] in _LIGHTNING and owner.__name__ == "LightningModule"
    return owner is not nn.Module and not is_lightnings


def entry_point(module: nn.Module) -> nn.Module:
    """Return what to call for a forward: the network, or the sharding wrapper around it, which gathers its weights."""
    while True:
        if _is_sharding(module):
            return module
        inner, name = _inner(module), network_name(module)
        if inner is None and name is None:
            return module
        module = inner if inner is not None else module._modules[name]  # type: ignore[assignment, index]


def forward_context(module: nn.Module) -> AbstractContextManager[Any]:
    """Return the precision context in which Fabric's wrapper forwards; a context without effect for other modules."""
    inner: nn.Module | None = module
    while inner is not None:
        if type(inner).__name__ == "_FabricModule":
            context: AbstractContextManager[Any] = cast(Any, inner)._strategy.precision.forward_context()
            return context
        inner = _inner(inner)
    return nullcontext()


def _is_sharding(module: nn.Module) -> bool:
    return any(base.__name__ in {"FullyShardedDataParallel", "FSDPModule"} for base in type(module).__mro__)


def layers_root(module: nn.Module) -> nn.Module:
    """Return where layer paths start: the network, or for a PEFT model the model that holds its adapters."""
    root = network(module)
    return unwrap(root.get_base_model()) if is_peft(root) else root  # type: ignore[operator]


def is_peft(module: nn.Module) -> bool:
    """Return whether a module is a model with PEFT's adapters."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel)


def n_virtual_tokens(module: nn.Module) -> int:
    """Return how many learned tokens PEFT's prompt tuning puts before the inputs; 0 for other models."""
    if not is_peft(module):
        return 0
    config: Any = module.active_peft_config
    return int(config.num_virtual_tokens or 0) if config.is_prompt_learning else 0


def is_sharded(module: nn.Module) -> bool:
    """Return whether parameters are sharded over processes (FSDP, FSDP2, ZeRO): all ranks must then forward whole."""
    return any(_is_sharding(part) for part in module.modules()) or any(
        _is_sharded_tensor(parameter) for parameter in module.parameters()
    )


def _is_sharded_tensor(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id") or type(parameter).__name__ == "DTensor"


def is_offloaded(module: nn.Module) -> bool:
    """Return whether hooks move weights in and out around each forward (accelerate's dispatch)."""
    return any(getattr(part, "_hf_hook", None) is not None for part in module.modules())


def config_of(module: nn.Module) -> Any:
    """Return the Hugging Face config of a network, or None."""
    return getattr(module, "config", None)
