"""The coordinates of a model's steps as its writer keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repaudit.names import CHECKSUM, STEP
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import COORDINATE_CHUNK, decode_column
from repaudit.store.format.layout import STEP_COLUMNS
from repaudit.store.format.model_facts import steps_of
from repaudit.store.format.step_columns import decoded
from repaudit.store.storage.storage import Storage


@dataclass
class Columns:
    """The coordinates by name, the checksums by step, and the names of coordinates of which values are lost."""

    values: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in STEP_COLUMNS})
    checksums: list[list[int]] = field(default_factory=list)
    lost: frozenset[str] = frozenset()


def load_columns(storage: Storage, key: str, document: Mapping[str, Any], count: int) -> Columns:
    """Read the coordinates of a model's committed steps; what is dispensable and damaged is unknown.

    Raises
    ------
    ValueError
        If step numbers or checksums cannot be read.
    """
    chunks = range(-(-count // COORDINATE_CHUNK))
    known = steps_of(document)
    found: dict[str, list[Any]] = {}
    lost = set()
    for name, column in STEP_COLUMNS.items():
        if name == STEP:
            found[STEP] = _step_numbers(storage, key, chunks)[:count] if known is None else known
            continue
        values: list[Any] = []
        for chunk in chunks:
            part = decoded(storage.get(f"{key}/{name}/{chunk_key(chunk)}"), column.numpy_dtype, COORDINATE_CHUNK)
            lost |= {name} if part is None else set()
            values += [column.unknown] * COORDINATE_CHUNK if part is None else part
        found[name] = values[:count]
    width = document["consolidated_metadata"]["metadata"][CHECKSUM]["shape"][1]
    data = [_chunk(storage, f"{key}/{CHECKSUM}/{chunk_key(chunk, 0)}") for chunk in chunks]
    rows = [np.array(decode_column(part, np.dtype("<u4")), "<u4").reshape(-1, width) for part in data]
    return Columns(found, np.concatenate(rows)[:count].tolist(), frozenset(lost))


def _step_numbers(storage: Storage, key: str, chunks: range) -> list[int]:
    data = [_chunk(storage, f"{key}/{STEP}/{chunk_key(chunk)}") for chunk in chunks]
    return [value for part in data for value in decode_column(part, STEP_COLUMNS[STEP].numpy_dtype)]


def _chunk(storage: Storage, key: str) -> bytes:
    data = storage.get(key)
    if data is None:
        raise ValueError(f"{key} is missing")
    return data
