"""The entries of a Hugging Face model's ``hidden_states``, read where the trunk returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from repaudit.capture.extract.base_models import is_pretrained
from repaudit.capture.extract.layer import Layer, StatesEntry
from repaudit.capture.extract.wrappers import unwrap
from repaudit.errors import CaptureError, LayerPathError

_FLAG = "_output_capturing_hooks_installed"


class HiddenStates:
    """Read ``hidden_states`` entries: i + 1 for block i (the last one after the final norm, where the model does so).

    A layer that names an entry comes with the models that return it; for a block that is the nearest Hugging Face model
    above. While hooks are alive the outermost of them that a forward passes through is asked for its hidden states, and
    read as soon as it is done, so that no head needs to run.
    """

    def __init__(self, root: nn.Module, layers: list[Layer]) -> None:
        self._wanted: dict[tuple[nn.Module, ...], list[tuple[Layer, StatesEntry]]] = {}
        for layer in layers:
            entry = _entry_of_block(root, layer) if layer.entry is None else layer.entry
            self._wanted.setdefault(entry.models, []).append((layer, entry))

    @contextmanager
    def hooks(self, record: Callable[[Layer, Any], None]) -> Iterator[None]:
        """Keep the hooks alive inside the block; ``record`` is called with each layer and its entry."""
        with ExitStack() as stack:
            for models, wanted in self._wanted.items():
                running: list[nn.Module] = []
                for model in models:
                    for module in model.modules():
                        if _FLAG not in module.__dict__:
                            stack.callback(module.__dict__.pop, _FLAG, None)
                    stack.callback(model.register_forward_pre_hook(_asker(running), with_kwargs=True).remove)
                    stack.callback(model.register_forward_hook(_reader(running, wanted, record)).remove)
            yield


def _asker(running: list[nn.Module]) -> Callable[[nn.Module, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    def hook(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        running.append(model)
        return args, kwargs | {"output_hidden_states": True}

    return hook


def _reader(
    running: list[nn.Module], wanted: list[tuple[Layer, StatesEntry]], record: Callable[[Layer, Any], None]
) -> Callable[[nn.Module, Any, Any], None]:
    """Return a hook that reads the states of the outermost model."""

    def hook(model: nn.Module, _args: Any, output: Any) -> None:
        del running[running.index(model) :]  # with what a forward that failed left inside
        if running:
            return
        states = getattr(output, "hidden_states", None)
        for layer, entry in wanted:
            if states is None or not entry.fits(len(states)):
                raise CaptureError(
                    f"layer {layer.name!r}: expected {entry} hidden_states of {type(model).__name__}, found "
                    f"{'none' if states is None else len(states)}; name the layer by its path"
                )
            record(layer, states[entry.index])

    return hook


def _entry_of_block(root: nn.Module, layer: Layer) -> StatesEntry:
    """Return a block's entry in the hidden states of its trunk."""
    chain = _chain(root, layer.path)
    trunks = [k for k, module in enumerate(chain[:-1]) if is_pretrained(module)]
    if not trunks:
        raise LayerPathError(
            f"layer {layer.name!r}: hidden_states exist below a Hugging Face model, but none holds {layer.path!r}: "
            "use extraction_point='output'"
        )
    trunk = chain[trunks[-1]]
    names = layer.path.split(".")
    for k in range(trunks[-1], len(chain) - 1):
        if isinstance(chain[k], nn.ModuleList) and k + 1 == len(chain) - 1:
            blocks = list(chain[k]._modules)
            return StatesEntry(blocks.index(names[k]) + 1, len(blocks) + 1, (trunk,))
    if _is_embedding(layer.module, names[-1]):
        return StatesEntry(0, _n_blocks(trunk) + 1, (trunk,))
    raise LayerPathError(
        f"layer {layer.name!r}: hidden_states belong to blocks (such as 'model.layers[3]') and to the embedding layer; "
        f"{layer.path!r} is a {type(layer.module).__name__}: use extraction_point='output'"
    )


def _chain(root: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules along a resolved path, ``root`` first."""
    chain = [root]
    for name in path.split("."):
        child = chain[-1]._modules[name]
        chain.append(unwrap(child) if child is not None else chain[-1])
    return chain


def _is_embedding(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Embedding) or "embed" in name.lower()


def _n_blocks(trunk: nn.Module) -> int:
    """Return the length of the trunk's first list of modules, which holds its blocks."""
    return next((len(part) for part in trunk.modules() if isinstance(part, nn.ModuleList)), 0)
