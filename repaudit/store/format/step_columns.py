"""The chunks of the coordinates of the steps: as they are written, and as they are read where they may be damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repaudit.names import CHECKSUM, WALL_TIME
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import COORDINATE_CHUNK, decode_column, encode_column
from repaudit.store.format.layout import STEP_COLUMNS
from repaudit.store.format.values import MOST_SECONDS
from repaudit.store.storage.storage import Parts

_CRC_BYTES = 4
_COUNT_BYTES = 4


def decoded(data: bytes | None, dtype: np.dtype[Any], length: int) -> list[Any] | None:
    """Return the values of a chunk of so many rows, or None where it is missing or damaged.

    Examples
    --------
    >>> decoded(b"not a chunk", np.dtype("<f8"), 2) is None
    True
    """
    if data is None or not _plausible(data, dtype, length):
        return None
    try:
        values = decode_column(data, dtype)
    except Exception:  # noqa: BLE001 - a damaged chunk may fail anywhere in the decoder
        return None
    return values if len(values) == length else None


def impossible(name: str, values: Sequence[Any]) -> str | None:
    """Return why the values of a coordinate cannot be right, though its checksum is, or None.

    Examples
    --------
    >>> impossible("wall_time", [0, 10**18]), impossible("loss", [0.5])
    ('it holds a time that cannot be represented', None)
    """
    known = [value for value in values if value != STEP_COLUMNS[name].unknown] if name == WALL_TIME else []
    return "it holds a time that cannot be represented" if any(abs(one) > MOST_SECONDS * 1e6 for one in known) else None


def _plausible(data: bytes, dtype: np.dtype[Any], length: int) -> bool:
    """Return whether a chunk's size, or the number of texts that it announces, is right: before room is made for it."""
    if dtype.kind == "O":
        return int.from_bytes(data[:_COUNT_BYTES], "little") == length
    return len(data) == length * dtype.itemsize + _CRC_BYTES


def column_objects(key: str, chunk: int, columns: Mapping[str, list[Any]], sums: list[list[int]]) -> dict[str, Parts]:
    """Return one chunk of every coordinate, and of the checksums of so many steps, by key."""
    objects: dict[str, Parts] = {}
    for name, column in STEP_COLUMNS.items():
        values = np.array(columns[name], dtype=column.numpy_dtype)
        objects[f"{key}/{name}/{chunk_key(chunk)}"] = encode_column(values, COORDINATE_CHUNK, column.numpy_fill)
    crcs = np.array(sums, dtype="<u4").reshape(len(sums), -1)
    objects[f"{key}/{CHECKSUM}/{chunk_key(chunk, 0)}"] = encode_column(crcs, COORDINATE_CHUNK, 0)
    return objects
