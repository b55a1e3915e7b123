"""The grammar of layer paths: names, globs, indices and slices."""

from __future__ import annotations

import re
from typing import Final

from repaudit.errors import LayerPathError

_SEGMENT: Final = re.compile(r"(?P<dot>\.?)(?:(?P<name>[\w*?\-]+)|\[(?P<index>[^\[\]]*)\])")
_INTEGER: Final = re.compile(r"[+-]?\d+")


def parse_path(path: str) -> list[str | int | slice]:
    """Split a layer path into child names (or globs), indices and slices.

    Raises
    ------
    LayerPathError
        When the path does not parse, with the position.

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
        segment = _SEGMENT.match(path, position)
        bad_dot = segment is not None and (segment["dot"] == ".") != (position > 0 and segment["name"] is not None)
        if segment is None or bad_dot:
            raise LayerPathError(f"layer path {path!r} does not parse at position {position}: {path[position:]!r}")
        parts.append(segment["name"] if segment["name"] is not None else _parse_index(segment["index"].strip(), path))
        position = segment.end()
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
