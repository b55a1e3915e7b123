"""The chunks of the coordinates of the steps: as they are written, and as they are read where they may be damaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repaudit.names import CHECKSUM
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import COORDINATE_CHUNK, decode_column, encode_column
from repaudit.store.format.layout import STEP_COLUMNS
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
