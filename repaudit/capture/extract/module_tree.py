"""The tree of a network's modules, without its wrappers: children, and what paths lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from repaudit.capture.extract.path_grammar import Depth, Exact, Part
from repaudit.capture.extract.wrappers import unwrap


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a module by name, wrappers taken off."""
    return {name: unwrap(child) for name, child in module._modules.items() if child is not None}


def matching(module: nn.Module, part: Part) -> list[str]:
    """Return the names of the children that a part of a path matches.

    Examples
    --------
    >>> net = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> matching(net, -1), matching(net, "*"), matching(net, "relu")
    (['1'], ['0', '1'], [])
    """
    names = list(children(module))
    if isinstance(part, Exact):
        return [name for name in names if name == part]
    if isinstance(part, str):
        return [name for name in names if fnmatchcase(name, part)]
    if isinstance(part, Depth):
        return []
    if not isinstance(module, nn.ModuleList | nn.Sequential) and [str(i) for i in range(len(names))] != names:
        return []
    if isinstance(part, slice):
        return names[part]
    return [names[part]] if -len(names) <= part < len(names) else []


def matches_several(part: Part) -> bool:
    """Return whether a part of a path may match several children, or none."""
    return isinstance(part, slice) or (isinstance(part, str) and not isinstance(part, Exact) and _is_glob(part))


def _is_glob(name: str) -> bool:
    return "*" in name or "?" in name


def join(path: str, name: str) -> str:
    """Return the path of a child.

    Examples
    --------
    >>> join("", "layers"), join("model", "layers")
    ('layers', 'model.layers')
    """
    return f"{path}.{name}" if path else name


def leads_somewhere(module: nn.Module, parts: Sequence[Part]) -> bool:
    """Return whether a path resolves below a module."""
    if not parts:
        return True
    inner = children(module)
    return any(leads_somewhere(inner[name], parts[1:]) for name in matching(module, parts[0]))


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all below it, each with its path, the shallowest first."""
    level = [(path, module)]
    while level:
        yield from level
        level = [(join(at, name), child) for at, part in level for name, child in children(part).items()]
