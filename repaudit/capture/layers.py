"""Layer paths: a small grammar for naming places in a network, and its resolution to modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

from torch import nn

from repaudit.capture.wrappers import WRAPPER_NAMES, layers_root, unwrap
from repaudit.errors import LayerPathError

ExtractionPoint = Literal["output", "input", "hidden_states"]
Reduction = Literal["mean", "last_token", "cls", "all"]

_SEGMENT: Final = re.compile(r"(?P<dot>\.?)(?:(?P<name>[\w*?\-]+)|\[(?P<index>[^\[\]]*)\])")
_INTEGER: Final = re.compile(r"[+-]?\d+")
_SHOWN: Final = 12


@dataclass(frozen=True)
class LayerSpec:
    """A place in the network, what is taken there, and how its tokens are pooled.

    Parameters
    ----------
    path
        Dotted path from the network: names, ``[i]``, ``[-1]``, slices ``[::4]`` and globs (``layers[*]``, ``layer_*``).
    extraction_point
        ``"output"`` of the layer, its ``"input"``, or the entry of the model's own ``"hidden_states"`` that belongs to
        it: entry i + 1 for block i, entry 0 for the embedding layer.
    reduce
        ``"mean"`` over unmasked tokens, the ``"last_token"`` that is not masked, ``"cls"`` (the first one that is not
        masked), or ``"all"`` tokens.
    name
        The layer's name in the record. With a path that matches several layers it must hold ``{path}``.

    Raises
    ------
    LayerPathError
        When the path does not parse.

    Examples
    --------
    >>> LayerSpec("layers[-1]", reduce="cls").name_for("layers.3")
    'layers.3:cls'
    """

    path: str
    extraction_point: ExtractionPoint = "output"
    reduce: Reduction = "mean"
    name: str | None = None

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("extraction_point", self.extraction_point, get_args(ExtractionPoint)),
            ("reduce", self.reduce, get_args(Reduction)),
        ):
            if value not in allowed:
                raise ValueError(f"{field}: expected one of {', '.join(allowed)}, found {value!r}")
        if self.name is not None and not self.name:
            raise ValueError(f"name: expected a layer's name or None, found {self.name!r}")
        parse_path(self.path)

    def name_for(self, resolved: str) -> str:
        """The record's name of the layer at a resolved path."""
        if self.name is not None:
            return self.name.replace("{path}", resolved)
        point = "" if self.extraction_point == "output" else f"@{self.extraction_point}"
        return resolved + point + ("" if self.reduce == "mean" else f":{self.reduce}")


@dataclass(frozen=True)
class Layer:
    """A resolved layer: its name in the record, its path, the module there, and the spec that asked for it."""

    name: str
    path: str
    module: nn.Module
    spec: LayerSpec


def as_spec(spec: LayerSpec | str) -> LayerSpec:
    """Take a plain string for the spec of that path."""
    return LayerSpec(spec) if isinstance(spec, str) else spec


def parse_path(path: str) -> list[str | int | slice]:
    """Split a layer path into child names (or globs), indices and slices.

    Examples
    --------
    >>> parse_path("model.layers[-1].mlp"), parse_path("h[::4]")
    (['model', 'layers', -1, 'mlp'], ['h', slice(None, None, 4)])
    """
    if not isinstance(path, str) or not path:
        raise LayerPathError(f"expected a layer path such as 'model.layers[-1]', found {path!r}")
    parts: list[str | int | slice] = []
    position = 0
    while position < len(path):
        found = _SEGMENT.match(path, position)
        bad_dot = found is not None and (found["dot"] == ".") != (position > 0 and found["name"] is not None)
        if found is None or bad_dot:
            raise LayerPathError(f"layer path {path!r} does not parse at position {position}: {path[position:]!r}")
        parts.append(found["name"] if found["name"] is not None else _parse_index(found["index"].strip(), path))
        position = found.end()
    return parts


def _parse_index(text: str, path: str) -> int | slice:
    if text == "*":
        return slice(None)
    if _INTEGER.fullmatch(text):
        return int(text)
    numbers = [piece.strip() for piece in text.split(":")]
    if len(numbers) in {2, 3} and all(not n or _INTEGER.fullmatch(n) for n in numbers):
        start, stop, step = ([int(n) if n else None for n in numbers] + [None])[:3]
        if step != 0:
            return slice(start, stop, step)
    raise LayerPathError(
        f"layer path {path!r}: expected an integer, a slice or * in brackets, found [{text}]; examples: [0] [-1] [::4]"
    )


def resolve_layers(model: nn.Module, specs: Iterable[LayerSpec | str]) -> list[Layer]:
    """Find the modules that specs name, in the order asked, each (name, place) once.

    Raises
    ------
    LayerPathError
        When a part of a path does not resolve (it is quoted, with the children there), when nothing was asked for, or
        when two different layers would have one name.
    """
    root = layers_root(model)
    found: dict[str, Layer] = {}
    for spec in map(as_spec, [specs] if isinstance(specs, str | LayerSpec) else specs):
        for layer in _resolve(root, spec):
            known = found.setdefault(layer.name, layer)
            if _place(known) != _place(layer):
                raise LayerPathError(
                    f"two layers would both be named {layer.name!r} ({known.path} and {layer.path}): "
                    "give them other names; with a pattern the name must hold {path}"
                )
    if not found:
        raise LayerPathError("expected at least one layer, found none: pass layer specs such as 'model.layers[*]'")
    return list(found.values())


def _place(layer: Layer) -> tuple[str, str, str]:
    return layer.path, layer.spec.extraction_point, layer.spec.reduce


def _resolve(root: nn.Module, spec: LayerSpec) -> list[Layer]:
    places: list[tuple[str, nn.Module]] = [("", root)]
    for part in _without_wrappers(parse_path(spec.path), root):
        places = [child for path, module in places for child in _children(path, module, part, spec.path, len(places))]
        if not places:
            raise LayerPathError(f"layer path {spec.path!r} matches no layer: nothing below has a child {part!r}")
    return [Layer(spec.name_for(path), path, module, spec) for path, module in places]


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
    path: str, module: nn.Module, part: str | int | slice, whole: str, n_places: int
) -> list[tuple[str, nn.Module]]:
    children = {name: unwrap(child) for name, child in module._modules.items() if child is not None}
    if isinstance(part, str):
        names = [name for name in children if fnmatchcase(name, part)]
        several = n_places > 1 or "*" in part or "?" in part
    else:
        names = _indexed(module, part, list(children))
        several = n_places > 1 or isinstance(part, slice)
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
    place = f"{path!r} ({type(module).__name__})" if path else f"the top ({type(module).__name__})"
    shown = ", ".join(children[:_SHOWN]) + (f" and {len(children) - _SHOWN} more" if len(children) > _SHOWN else "")
    return f"layer path {whole!r}: {text!r} not found at {place}; children there: {shown or 'none'}"


def _index_text(part: int | slice) -> str:
    if isinstance(part, int):
        return str(part)
    return ":".join("" if n is None else str(n) for n in (part.start, part.stop, part.step))
