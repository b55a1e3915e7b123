"""Names of groups, variables, dimensions and attributes, and the safe keys that stand for them on disk."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

__version__: Final = "0.1.0"
"""Version of this library."""

FORMAT_VERSION: Final = 2
"""Version of the on-disk format of the stores that this library makes; it reads, checks and continues earlier ones."""

ATTRS: Final = "repaudit"
"""The attribute of a group under which repaudit keeps its own metadata."""

MODELS: Final = "models"
PROBE: Final = "probe"

MODEL: Final = "model"
LAYER: Final = "layer"
STEP: Final = "step"
SAMPLE: Final = "sample"
TOKEN: Final = "token"
FEATURE: Final = "feature"
NEIGHBOR: Final = "neighbor"
COMPONENT: Final = "component"
SCALE: Final = "scale"
SCALE_NAME: Final = "scale_name"

KEPT: Final = "merged/operator"
GAUGES: Final = "gauges"
ENTRY: Final = "entry"
VALUE: Final = "value"
ENTRY_INDICES: Final = {
    "layer_index": "index of the entry's layer",
    "scale_index": "index of the entry's scale",
    "step_index": "index of the entry's step",
    "row": "index of the sample that the transition leaves",
    "column": "index of the sample that it reaches",
}
"""How the merged operators of an analysis are kept: where, and the columns of the list of their entries."""

BY_DEPTH: Final = "depth "
"""How the notes begin that say how layers were matched by depth."""

SOURCE: Final = "source"
"""The attribute of a model that was not in training: where its weights came from."""

EPOCH: Final = "epoch"
WALL_TIME: Final = "wall_time"
TRIGGER: Final = "trigger"
LOSS: Final = "loss"
CHECKSUM: Final = "checksum"
LABEL: Final = "label"
TEXT: Final = "text"
THUMBNAIL: Final = "thumbnail"
SHA256: Final = "sha256"
RAW: Final = "raw"
OF_SAMPLE: Final = "of_sample"
POSITION: Final = "position"
"""Of a token in the place of a sample: which sample it is of, and its place among the tokens of that, from 0."""

KIND: Final = "kind"
OPERATOR: Final = "operator"
"""The ``kind`` of a layer that holds diffusion operators, and the end of its name."""

SPARSE: Final = "sparse"
"""Says of a layer of operators that the gauge made them sparse: most entries are 0."""

OPERATOR_OF: Final = "operator_of"
GAUGE: Final = "gauge"

SKETCH: Final = "sketch"
"""The ``kind`` of a layer that holds sketches of operators, the end of its name, and the attribute that describes
them."""

SKETCH_OF: Final = "sketch_of"
NUMBER: Final = "number"
"""The dim of the numbers of a sketch."""

STEP_COORDINATES: Final = (STEP, EPOCH, WALL_TIME, TRIGGER, LOSS)
"""Variables of a model that describe its steps; every other variable on dim ``step`` is a layer."""

_RESERVED: Final = frozenset(
    {"", ".", "..", "zarr.json", *STEP_COORDINATES, SAMPLE, LABEL, TEXT, SHA256, TOKEN, FEATURE, LAYER, CHECKSUM}
)
_UNRESERVED: Final = "@:+=,[]() "


_INDEX: Final = re.compile(r"\[(\*|-?\d+|(?:-?\d+)?:(?:-?\d+)?)\]")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern stands for: itself if it is one, else those that it matches, in their order.

    ``*`` and ``?`` stand for any text and any character, ``[*]``, ``[2]``, ``[-1]`` and ``[1:4]`` behind a name for
    the numbers below it, as in the paths of layers.

    Examples
    --------
    >>> matching("model.layers[-1]", ["model.norm", "model.layers.0", "model.layers.1"])
    ['model.layers.1']
    >>> matching("seed*", ["seed0", "other", "seed10"])
    ['seed0', 'seed10']
    >>> matching("[-1]", ["0", "1", "norm"])
    ['1']
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    pieces = _INDEX.split(pattern)  # text, index, text, index, ..., text
    text = r"\.(\d+)".join(re.escape(piece).replace(r"\*", ".*").replace(r"\?", ".") for piece in pieces[::2])
    text = text.removeprefix(r"\.") if len(pieces) > 1 and not pieces[0] else text  # the numbers of a bare Sequential
    found = {name: hit.groups() for name in names if (hit := re.fullmatch(text, name, re.DOTALL))}
    for place, index in enumerate(pieces[1::2]):
        count = max((int(numbers[place]) for numbers in found.values()), default=-1) + 1
        allowed = _numbers(index, count)
        found = {name: numbers for name, numbers in found.items() if int(numbers[place]) in allowed}
    return list(found)


def matching_models(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the models that a pattern stands for; where none is, those of several stores that it matches in theirs.

    Examples
    --------
    >>> matching_models("bert*", ["base:bert-0", "tiny:bert-0", "llama"])
    ['base:bert-0', 'tiny:bert-0']
    """
    names = list(names)
    return matching(pattern, names) or matching(f"*:{pattern}", names)


def matching_layers(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the layers that a pattern stands for; where none is, those whose path behind a model's base it matches.

    Examples
    --------
    >>> matching_layers("h[*]", ["transformer.h.0", "transformer.h.1", "transformer.ln_f"])
    ['transformer.h.0', 'transformer.h.1']
    """
    names = list(names)
    return matching(pattern, names) or matching(f"*.{pattern}", names)


def meant_layer(layer: str, names: Iterable[str]) -> str:
    """Return the only layer that a name stands for, as a path behind a model's base does; the name itself if none is.

    Examples
    --------
    >>> meant_layer("layers.1", ["model.layers.0", "model.layers.1"]), meant_layer("h", ["model.norm"])
    ('model.layers.1', 'h')
    """
    found = matching_layers(layer, names) if isinstance(layer, str) else []
    return found[0] if len(found) == 1 else layer


def beside(path: Path, is_one: Callable[[Path], bool] = Path.exists) -> str:
    """Return the name most like that of a path among those of its kind in the same folder; empty where there is none.

    Examples
    --------
    >>> beside(Path("/nowhere/runs.zarr"))
    ''
    """
    try:
        names = [one.name for one in path.parent.iterdir() if is_one(one)]
    except OSError:  # there is no such folder, or it is not for us to read
        return ""
    return next(iter(difflib.get_close_matches(path.name, names, 1)), "")


def at_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in the place of ``~``, as stores are found; an unknown ``~name`` stays.

    Examples
    --------
    >>> at_home("~/runs.zarr") == Path.home() / "runs.zarr", at_home("runs.zarr")
    (True, PosixPath('runs.zarr'))
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path refuses an unknown name


def in_natural_order(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Return the key by which names are sorted as a reader counts: seed2 before seed10.

    Examples
    --------
    >>> sorted(["seed10", "seed2", "width 8/seed1", "seed0"], key=in_natural_order)
    ['seed0', 'seed2', 'seed10', 'width 8/seed1']
    """
    pieces = re.split(r"([0-9]+)", name)  # text, number, text, ..., text; a number of any length is compared as text
    numbers = [number.lstrip("0") for number in (*pieces[1::2], "")]
    return [(text, len(number), number) for text, number in zip(pieces[::2], numbers, strict=True)], name


def _numbers(index: str, count: int) -> range:
    """Return the numbers below ``count`` that an index, a slice or ``*`` stands for."""
    if index == "*":
        return range(count)
    if ":" not in index:
        number = int(index) if int(index) >= 0 else int(index) + count
        return range(number, number + 1)
    first, last = (int(end) if end else None for end in index.split(":"))
    return range(count)[first:last]


def encode_name(name: str) -> str:
    """Turn any name into one safe Zarr key segment; the real name belongs in the attributes.

    Percent-encodes separators, control characters and everything outside printable ASCII, a leading dot or
    underscore pair that Zarr reserves, and whole names that the format itself uses.

    Returns
    -------
    str
        One path segment in printable ASCII, from which :func:`decode_name` recovers the name.

    Examples
    --------
    >>> encode_name("model.layers.3")
    'model.layers.3'
    >>> encode_name("../escape"), encode_name("zarr.json")
    ('%2E%2E%2Fescape', '%7A%61%72%72%2E%6A%73%6F%6E')
    """
    if name in _RESERVED:
        return "".join(f"%{byte:02X}" for byte in name.encode()) or "%"
    key = quote(name, safe=_UNRESERVED)
    if key.startswith((".", "__", " ")) or key.endswith((".", " ")):
        return "".join(f"%{byte:02X}" if chr(byte) in "._ " else chr(byte) for byte in key.encode())
    return key


def decode_name(key: str) -> str:
    """Return the name that :func:`encode_name` made a key of.

    Examples
    --------
    >>> decode_name(encode_name("a/b c")) == "a/b c"
    True
    """
    return "" if key == "%" else unquote(key)
