"""The grammar of layer paths: names, globs, indices, slices, names in quotes, and a relative depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from repaudit.errors import LayerPathError

_SEGMENT: Final = re.compile(
    r"(?P<dot>\.?)(?:depth:(?P<depth>[^\[\]'\"]*)|(?P<name>[\w*?\-]+)"
    r"|\[\s*(?P<quoted>'[^']+'|\"[^\"]+\")\s*\]|\[(?P<index>[^\[\]]*)\])"
)
_INTEGER: Final = re.compile(r"[+-]?\d+")
_DECIMAL: Final = re.compile(r"\d+(\.\d*)?|\.\d+")
_PLAIN: Final = re.compile(r"[\w\-]+")


class Exact(str):
    """The name of a child as it stands, without wildcards."""

    __slots__ = ()


@dataclass(frozen=True)
class Depth:
    """A relative depth: 0 is what the first block gets, 1 what the last block puts out."""

    value: Fraction

    def __str__(self) -> str:
        return f"depth:{float(self.value):g}"


Part = str | int | slice | Depth


def parse_path(path: str) -> list[Part]:
    """Split a layer path into names of children (or globs), indices and slices; a relative depth may end it.

    Raises
    ------
    LayerPathError
        When the path does not parse, with the position.

    Examples
    --------
    >>> parse_path("model.layers[-1].mlp"), parse_path("h[::4]")
    (['model', 'layers', -1, 'mlp'], ['h', slice(None, None, 4)])

    A child whose name holds other characters goes in brackets and quotes, without wildcards:

    >>> parse_path("experts['en -> de'][0]")
    ['experts', 'en -> de', 0]
    """
    if not isinstance(path, str) or not path:
        raise LayerPathError(f"expected a layer path such as 'model.layers[-1]', found {path!r}")
    parts: list[Part] = []
    position = 0
    while position < len(path):
        segment = _SEGMENT.match(path, position)
        in_brackets = segment is not None and (segment["index"] is not None or segment["quoted"] is not None)
        if segment is None or (segment["dot"] == ".") != (position > 0 and not in_brackets):
            raise LayerPathError(
                f"layer path {path!r} does not parse at position {position}: {path[position:]!r}; names with other "
                "characters go in brackets and quotes, as in layers['a b']"
            )
        parts.append(_part(segment, path))
        position = segment.end()
    if any(isinstance(part, Depth) for part in parts[:-1]):
        raise LayerPathError(f"layer path {path!r}: a relative depth stands for a whole block: nothing can follow it")
    return parts


def _part(segment: re.Match[str], path: str) -> Part:
    if segment["depth"] is not None:
        return _parse_depth(segment["depth"], path)
    if segment["quoted"] is not None:
        return Exact(segment["quoted"][1:-1])
    return segment["name"] if segment["name"] is not None else _parse_index(segment["index"].strip(), path)


def _parse_depth(text: str, path: str) -> Depth:
    if not _DECIMAL.fullmatch(text) or Fraction(text) > 1:
        raise LayerPathError(
            f"layer path {path!r}: expected a relative depth from 0 (what the first block gets) to 1 (what the last "
            f"one puts out), such as depth:0.5, found {text!r}"
        )
    return Depth(Fraction(text))


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
        f"layer path {path!r}: expected an integer, a slice or * in brackets, or a name in quotes, found [{text}]; "
        "examples: [0] [-1] [::4] ['a b']"
    )


def write_path(parts: Sequence[Part]) -> str:
    """Write parts as the layer path that parses into them.

    Examples
    --------
    >>> write_path(["model", "layers", -1, Exact("a b")]), write_path(["h", slice(None, None, 4), "mlp"])
    ("model.layers[-1]['a b']", 'h[::4].mlp')
    """
    return "".join(_written(part) for part in parts).removeprefix(".")


def _written(part: Part) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    if isinstance(part, slice):
        return f"[{index_text(part)}]"
    if isinstance(part, Exact) and not _PLAIN.fullmatch(part):
        quote = '"' if "'" in part else "'"
        return f"[{quote}{part}{quote}]"
    return f".{part}"


def index_text(part: int | slice) -> str:
    """Return an index or a slice as it stands in brackets."""
    if isinstance(part, int):
        return str(part)
    if part == slice(None):
        return "*"
    bounds = f"{'' if part.start is None else part.start}:{'' if part.stop is None else part.stop}"
    return bounds if part.step is None else f"{bounds}:{part.step}"
