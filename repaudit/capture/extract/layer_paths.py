"""Which layers a path matches: its resolution to the modules of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from repaudit.capture.extract.layer_spec import LayerSpec, as_spec
from repaudit.capture.extract.path_grammar import parse_path
from repaudit.capture.extract.wrappers import WRAPPER_NAMES, layers_root, unwrap
from repaudit.errors import LayerPathError

_SHOWN: Final = 12


@dataclass(frozen=True)
class Layer:
    """A resolved layer: its name in the record, its path, the module there, and the spec that asked for it."""

    name: str
    path: str
    module: nn.Module
    spec: LayerSpec


def resolve_layers(model: nn.Module, specs: Iterable[LayerSpec | str]) -> list[Layer]:
    """Find the modules that specs name, in the order given, each once.

    Returns
    -------
    list of Layer
        Each with its name, resolved path, module and spec.

    Raises
    ------
    LayerPathError
        When a part of a path does not resolve (it is quoted, with the children at that point), when no layer was given,
        or when two different layers would have one name.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [layer.name for layer in resolve_layers(model, ["[*]"])]
    ['0', '1']
    """
    root = layers_root(model)
    layers: dict[str, Layer] = {}
    for spec in map(as_spec, [specs] if isinstance(specs, str | LayerSpec) else specs):
        for layer in _resolve(root, spec):
            known = layers.setdefault(layer.name, layer)
            if _key(known) != _key(layer):
                raise LayerPathError(
                    f"two layers would both be named {layer.name!r} ({known.path} and {layer.path}): "
                    "give them different names; with a pattern the name must hold {path}"
                )
    if not layers:
        raise LayerPathError("expected at least one layer, found none: pass layer specs such as 'model.layers[*]'")
    return list(layers.values())


def _key(layer: Layer) -> tuple[str, str, str]:
    return layer.path, layer.spec.extraction_point, layer.spec.reduce


def _resolve(root: nn.Module, spec: LayerSpec) -> list[Layer]:
    matches: list[tuple[str, nn.Module]] = [("", root)]
    for part in _without_wrappers(parse_path(spec.path), root):
        matches = [m for path, module in matches for m in _children(path, module, part, spec.path, len(matches))]
        if not matches:
            raise LayerPathError(f"layer path {spec.path!r} matches no layer: no module has a child {part!r}")
    return [Layer(spec.name_for(path), path, module, spec) for path, module in matches]


def _without_wrappers(parts: Sequence[str | int | slice], root: nn.Module) -> list[str | int | slice]:
    kept = [part for part in parts if not (isinstance(part, str) and part in WRAPPER_NAMES)]
    if kept[:2] == ["base_model", "model"] and "base_model" not in root._modules:
        kept = kept[2:]  # a path as PEFT writes it
    elif kept[:1] == ["module"] and "module" not in root._modules:
        kept = kept[1:]  # a path as DistributedDataParallel writes it
    elif kept[:1] == ["network"] and "network" not in root._modules:
        kept = kept[1:]  # a path as the training module writes it
    return kept


def _children(
    path: str, module: nn.Module, part: str | int | slice, whole: str, n_matches: int
) -> list[tuple[str, nn.Module]]:
    children = {name: unwrap(child) for name, child in module._modules.items() if child is not None}
    if isinstance(part, str):
        names = [name for name in children if fnmatchcase(name, part)]
        several = n_matches > 1 or "*" in part or "?" in part
    else:
        names = _indexed(module, part, list(children))
        several = n_matches > 1 or isinstance(part, slice)
    if not names and not several:
        raise LayerPathError(_unresolved(path, module, part, whole, list(children)))
    return [(f"{path}.{name}" if path else name, children[name]) for name in names]


def _indexed(module: nn.Module, part: int | slice, names: list[str]) -> list[str]:
    if not isinstance(module, nn.ModuleList | nn.Sequential) and [str(i) for i in range(len(names))] != names:
        return []
    if isinstance(part, slice):
        return names[part]
    return [names[part]] if -len(names) <= part < len(names) else []


def _unresolved(path: str, module: nn.Module, part: str | int | slice, whole: str, children: list[str]) -> str:
    text = part if isinstance(part, str) else f"[{_index_text(part)}]"
    parent = f"{path!r} ({type(module).__name__})" if path else f"the top ({type(module).__name__})"
    shown = ", ".join(children[:_SHOWN]) + (f" and {len(children) - _SHOWN} more" if len(children) > _SHOWN else "")
    return f"layer path {whole!r}: {text!r} not found at {parent}; its children: {shown or 'none'}"


def _index_text(part: int | slice) -> str:
    if isinstance(part, int):
        return str(part)
    return ":".join("" if n is None else str(n) for n in (part.start, part.stop, part.step))
