"""The entries of a Hugging Face model's ``hidden_states``, read where the trunk returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from repaudit.capture.extract.layer_paths import Layer
from repaudit.capture.extract.wrappers import unwrap
from repaudit.errors import CaptureError, LayerPathError

_FLAG = "_output_capturing_hooks_installed"


class HiddenStates:
    """Read ``hidden_states`` entries: i + 1 for block i (the last one after the final norm, where the model does so).

    The nearest Hugging Face model above a block is its trunk. While hooks are alive it is asked for its hidden
    states and read as soon as it is done, so that no head needs to run.
    """

    def __init__(self, root: nn.Module, layers: list[Layer]) -> None:
        self._trunks: dict[nn.Module, list[tuple[Layer, int, int]]] = {}
        for layer in layers:
            trunk, entry, n_blocks = _entry(root, layer)
            self._trunks.setdefault(trunk, []).append((layer, entry, n_blocks))

    @contextmanager
    def hooks(self, record: Callable[[Layer, Any], None]) -> Iterator[None]:
        """Keep the hooks alive inside the block; ``record`` is called with each layer and its entry."""
        with ExitStack() as stack:
            for trunk, wanted in self._trunks.items():
                for module in trunk.modules():
                    if _FLAG not in module.__dict__:
                        stack.callback(module.__dict__.pop, _FLAG, None)
                stack.callback(trunk.register_forward_pre_hook(_ask, with_kwargs=True).remove)
                stack.callback(trunk.register_forward_hook(_reader(wanted, record)).remove)
            yield


def _ask(_trunk: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"output_hidden_states": True}


def _reader(
    wanted: list[tuple[Layer, int, int]], record: Callable[[Layer, Any], None]
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(trunk: nn.Module, _args: Any, output: Any) -> None:
        states = getattr(output, "hidden_states", None)
        for layer, entry, n_blocks in wanted:
            if states is None or len(states) != n_blocks + 1:
                raise CaptureError(
                    f"layer {layer.name!r}: expected {n_blocks + 1} hidden_states of {type(trunk).__name__}, found "
                    f"{'none' if states is None else len(states)}; use extraction_point='output'"
                )
            record(layer, states[entry])

    return hook


def _entry(root: nn.Module, layer: Layer) -> tuple[nn.Module, int, int]:
    """Return the trunk of a layer, the index of its entry, and the number of the trunk's blocks."""
    chain = _chain(root, layer.path)
    trunks = [k for k, module in enumerate(chain[:-1]) if _is_pretrained(module)]
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
            return trunk, blocks.index(names[k]) + 1, len(blocks)
    if _is_embedding(layer.module, names[-1]):
        return trunk, 0, _n_blocks(trunk)
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


def _is_pretrained(module: nn.Module) -> bool:
    return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)


def _is_embedding(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Embedding) or "embed" in name.lower()


def _n_blocks(trunk: nn.Module) -> int:
    """Return the length of the trunk's first list of modules, which holds its blocks."""
    return next((len(part) for part in trunk.modules() if isinstance(part, nn.ModuleList)), 0)
