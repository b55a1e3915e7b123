"""How much a stored chunk may take, before it is read or decoded: as it is stored, and by its own header."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

import numpy as np

MOST_COLUMN_BYTES: Final = 2**28
"""A longer chunk of a coordinate is damaged."""

HEADER: Final = 16
"""Bytes at the beginning of a chunk that tell what it takes."""

_SLACK: Final = 4096
"""Bytes by which what does not compress may grow: headers and checksums."""

_TEXT_BYTES: Final = 2**20


def most_stored(array: Mapping[str, Any]) -> int:
    """Return the most bytes that a stored chunk of an array may have."""
    shape: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"]
    if array["data_type"] == "string":
        return most_of_texts(prod(shape))
    return 2 * _decoded(shape, array) + _SLACK


def most_of_texts(count: int) -> int:
    """Return the most bytes that so many texts may take.

    Examples
    --------
    >>> most_of_texts(3) == MOST_COLUMN_BYTES
    True
    """
    return max(MOST_COLUMN_BYTES, count * _TEXT_BYTES)


def announces_too_much(head: bytes, array: Mapping[str, Any], *, whole: bool) -> str | None:
    """Return what a chunk's own header says if that is more than its values take, or None.

    Parameters
    ----------
    head : bytes
        The first :data:`HEADER` bytes.
    array : mapping
        The array's document.
    whole : bool
        Whether it is a whole object, or a part of one.
    """
    chunk, codecs = array["chunk_grid"]["configuration"]["chunk_shape"], array["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        if whole:
            return None
        chunk, codecs = codecs[0]["configuration"]["chunk_shape"], codecs[0]["configuration"]["codecs"]
    if array["data_type"] == "string" and whole and int.from_bytes(head[:4], "little") > prod(chunk):
        return f"it holds more texts than its chunk of {chunk}"
    if "blosc" not in [codec["name"] for codec in codecs] or not (whole or _is_inner(head)):
        return None
    taken, most = int.from_bytes(head[4:8], "little"), _decoded(chunk, array)
    return f"it would take {taken} bytes, expected at most {most}" if taken > most else None


def _is_inner(head: bytes) -> bool:
    """Return whether a part of a shard is a chunk, and not the index: it begins with the version of blosc's format."""
    return head[:1] == b"\x02"


def _decoded(chunk: list[int], array: Mapping[str, Any]) -> int:
    return prod(chunk) * int(np.dtype(array["data_type"]).itemsize)
