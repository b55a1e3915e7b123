"""Which layers a path matches: its resolution to the modules of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from torch import nn

from repaudit.capture.extract.base_models import base_models
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.layer_roles import in_role, split_role
from repaudit.capture.extract.layer_spec import LayerSpec, as_spec
from repaudit.capture.extract.module_tree import children, join, leads_somewhere, matches_several, matching
from repaudit.capture.extract.path_grammar import Exact, Part, index_text, parse_path, write_path
from repaudit.capture.extract.path_hints import did_you_mean
from repaudit.capture.extract.wrappers import WRAPPER_NAMES, layers_root, network_name, unwrap
from repaudit.errors import LayerPathError

_SHOWN: Final = 12


def resolve_layers(model: nn.Module, specs: Iterable[LayerSpec | str]) -> list[Layer]:
    """Find the modules that specs name, in the order given, each once.

    A path that leads nowhere from the network is followed from its base model: ``layers[*]`` of a Llama with a head
    is ``model.layers[*]``.

    Returns
    -------
    list of Layer
        Each with its name, resolved path, module and spec.

    Raises
    ------
    LayerPathError
        When a part of a path does not resolve (it is quoted, with the children at that point and what may have been
        meant), when no layer was given, or when two different layers would have one name.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [layer.name for layer in resolve_layers(model, ["[*]"])]
    ['0', '1']
    """
    root, held_as = layers_root(model), network_name(unwrap(model))
    layers: dict[str, Layer] = {}
    for spec in map(as_spec, [specs] if isinstance(specs, str | LayerSpec) else specs):
        for layer in _resolve(root, spec, held_as):
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
    return layer.path, layer.point, layer.spec.reduce


def _resolve(root: nn.Module, spec: LayerSpec, held_as: str | None) -> list[Layer]:
    parts = _without_wrappers(parse_path(spec.path), root, held_as)
    path, role = split_role(parts)
    if not role or leads_somewhere(root, parts):
        matches = _matches(root, parts, (), spec.path)
        return [Layer(spec.name_for(path), path, module, spec, spec.extraction_point) for path, module in matches]
    matches = _matches(root, path, role, spec.path)
    return [layer for where, module in matches for layer in in_role(where, module, role, spec)]


def _matches(root: nn.Module, parts: Sequence[Part], role: Sequence[Part], whole: str) -> list[tuple[str, nn.Module]]:
    """Return what a path leads to from the network, or else from its base model."""
    starts = [("", root), *(base_models(root) if any(isinstance(part, str) for part in parts) else ())]
    for where, start in starts:
        if leads_somewhere(start, parts):
            return _followed(where, start, parts)
    hint = next(filter(None, (did_you_mean(start, parts, role) for _, start in starts)), "")
    reached = [_reached(start, parts) for _, start in starts]
    tried = [
        f"{_name(where, parts, role, whole)}{_failure(where, start, parts)}"
        for (where, start), far in zip(starts, reached, strict=True)
        if far == max(reached)  # where the path led further is what was meant
    ]
    raise LayerPathError(f"layer path {'; nor as '.join(tried)}{hint}")


def _followed(where: str, start: nn.Module, parts: Sequence[Part]) -> list[tuple[str, nn.Module]]:
    matches = [(where, start)]
    for part in parts:
        matches = [
            (join(path, name), children(module)[name]) for path, module in matches for name in matching(module, part)
        ]
    return matches


def _reached(start: nn.Module, parts: Sequence[Part]) -> int:
    """Return how many of a path's parts lead somewhere."""
    return max(n for n in range(len(parts)) if leads_somewhere(start, parts[:n]))


def _failure(where: str, start: nn.Module, parts: Sequence[Part]) -> str:
    """Say which part of a path leads nowhere."""
    reached = _reached(start, parts)
    matches, part = _followed(where, start, parts[:reached]), parts[reached]
    if len(matches) > 1 or matches_several(part):
        return f" matches no layer: no module has a child {_shown(part)!r}"
    return _unresolved(*matches[0], part)


def _name(where: str, parts: Sequence[Part], role: Sequence[Part], whole: str) -> str:
    return repr(write_path([*map(Exact, where.split(".")), *parts, *role]) if where else whole)


def _without_wrappers(parts: Sequence[Part], root: nn.Module, held_as: str | None) -> list[Part]:
    kept = [part for part in parts if not (isinstance(part, str) and part in WRAPPER_NAMES)]
    if kept[:2] == ["base_model", "model"] and "base_model" not in root._modules:
        kept = kept[2:]  # a path as PEFT writes it
    elif kept[:1] == ["module"] and "module" not in root._modules:
        kept = kept[1:]  # a path as DistributedDataParallel writes it
    elif kept[:1] in (["network"], [held_as]) and kept[0] not in root._modules:
        kept = kept[1:]  # a path as the training module writes it
    return kept


def _shown(part: Part) -> str:
    return f"[{index_text(part)}]" if isinstance(part, int | slice) else str(part)


def _unresolved(path: str, module: nn.Module, part: Part) -> str:
    text = _shown(part)
    parent = f"{path!r} ({type(module).__name__})" if path else f"the top ({type(module).__name__})"
    names = list(children(module))
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f": {text!r} not found at {parent}; its children: {shown or 'none'}"
