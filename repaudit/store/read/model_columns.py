"""The coordinates of a model's steps that go with its document; what cannot be read of them is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from repaudit.errors import ForeignPathError
from repaudit.names import ATTRS, CHECKSUM, LAYER, STEP
from repaudit.store.format.chunk_limits import MOST_COLUMN_BYTES
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import decode_column, encode_column
from repaudit.store.format.layout import LOST, STEP_COLUMNS
from repaudit.store.format.model_facts import step_chunks
from repaudit.store.format.step_columns import decoded, impossible
from repaudit.store.storage.remote import RemoteStorage
from repaudit.store.storage.storage import Storage, TooLongError

_REQUESTS: Final = 8
"""Requests at once to a service, each of which answers late."""


def read_columns(storage: Storage, key: str, document: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Read what a model's document does not hold itself, and give what a reader is to find in the place of it all.

    Step numbers and the names of the layers come from the document. Epochs, losses, triggers and times that are
    missing or damaged become unknown. Damaged checksums stay what they are: nothing can be read without them.

    Returns
    -------
    (chunks, lost)
        Chunks by key below the model, and the names of coordinates of which values are lost, now or since a repair.
    """
    committed = document["attributes"][ATTRS]["committed"]
    arrays = document["consolidated_metadata"]["metadata"]
    names = [name for name in STEP_COLUMNS if name != STEP]
    wanted = {f"{name}/{chunk}": name for name in names for chunk in _chunks(arrays[name], committed)}
    sums = [f"{CHECKSUM}/{chunk}" for chunk in _chunks(arrays[CHECKSUM], committed)]
    found = dict(zip([*wanted, *sums], _read(storage, key, [*wanted, *sums]), strict=True))
    chunks = {f"{STEP}/{chunk}": data for chunk, data in step_chunks(document).items()}
    chunks |= {path: data for path in sums if (data := found[path]) is not None and _sound_checksums(data)}
    chunks[f"{LAYER}/{chunk_key(0)}"] = _layer_names(arrays)
    recorded = document["attributes"][ATTRS].get(LOST, [])
    lost = {name for name in names if name in recorded} if isinstance(recorded, list) else set()
    unknown: dict[tuple[str, int], bytes] = {}
    for path, name in wanted.items():
        column, length = STEP_COLUMNS[name], arrays[name]["chunk_grid"]["configuration"]["chunk_shape"][0]
        data = found[path]
        values = decoded(data, column.numpy_dtype, length)
        if data is not None and values is not None and impossible(name, values) is None:
            chunks[path] = data
            continue
        lost.add(name)
        if (name, length) not in unknown:
            none = np.array([], dtype=column.numpy_dtype)
            unknown[name, length] = b"".join(encode_column(none, length, column.unknown))
        chunks[path] = unknown[name, length]
    return chunks, sorted(lost)


def _chunks(array: Mapping[str, Any], committed: int) -> Iterator[str]:
    rows, *rest = array["chunk_grid"]["configuration"]["chunk_shape"]
    return (chunk_key(chunk, *(0 for _ in rest)) for chunk in range(-(-committed // rows)))


def _read(storage: Storage, key: str, paths: Sequence[str]) -> list[bytes | None]:
    if isinstance(storage, RemoteStorage) and not storage.is_plain:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(lambda path: storage.get(f"{key}/{path}"), paths))
    return [_short(storage, f"{key}/{path}") for path in paths]


def _short(storage: Storage, key: str) -> bytes | None:
    """Return a chunk; None where it is too long, or a bad sector or somebody's rights keep it from being read."""
    try:
        return storage.get_short(key, MOST_COLUMN_BYTES)
    except ForeignPathError:
        raise
    except (TooLongError, OSError):
        return None


def _sound_checksums(data: bytes) -> bool:
    try:
        return bool(decode_column(data, np.dtype("<u4")))
    except ValueError:
        return False


def _layer_names(arrays: Mapping[str, Any]) -> bytes:
    layers = [array for array in arrays.values() if LAYER in array["attributes"]]
    names = [array["attributes"][LAYER] for array in layers if array["dimension_names"][0] == STEP]
    return b"".join(encode_column(np.array(names, dtype=object), len(names), ""))
