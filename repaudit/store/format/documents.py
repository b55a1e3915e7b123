"""Zarr v3 documents: what a group's or an array's ``zarr.json`` says, and how it is read with care."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from repaudit.errors import CorruptStoreError
from repaudit.store.storage.storage import Storage

_DOCUMENT_BYTES: Final = 256 * 2**20
_CHUNK: Final = re.compile(r"c(\.[0-9]+)+")

DOCUMENT: Final = "zarr.json"

FILLS: Final[Mapping[str, Any]] = {"f": "NaN", "i": 0, "u": 0, "b": False}
"""The fill values of inputs, by the kind of their dtype."""


def chunk_key(*indices: int) -> str:
    """Return the key of a chunk below its array: one file each in the array's own directory.

    Examples
    --------
    >>> chunk_key(3, 0)
    'c.3.0'
    """
    return ".".join(["c", *map(str, indices)])


def is_chunk(name: str) -> bool:
    """Return whether a file of this name is a chunk of an array: a copy beside it is not.

    Examples
    --------
    >>> is_chunk("c.3.0"), is_chunk("c.3.0.bak")
    (True, False)
    """
    return _CHUNK.fullmatch(name) is not None


def is_of_array(name: str) -> bool:
    """Return whether a file of this name is part of an array or a group: its document, or a chunk.

    Examples
    --------
    >>> is_of_array("zarr.json"), is_of_array("my-zarr.json")
    (True, False)
    """
    return name == DOCUMENT or is_chunk(name)


def array_document(
    shape: Sequence[int],
    data_type: str,
    chunk_shape: Sequence[int],
    dimensions: Sequence[str],
    *,
    fill: Any,
    codecs: list[dict[str, Any]],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a Zarr v3 array document with one object per chunk, each a file in the array's own directory."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": list(dimensions),
        "storage_transformers": [],
        "attributes": dict(attributes or {}),
    }


def column_document(
    shape: Sequence[int],
    data_type: str,
    chunk_shape: Sequence[int],
    dimensions: Sequence[str],
    fill: Any,
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the document of a coordinate: uncompressed, with a checksum per chunk."""
    serializer: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
    if data_type != "string":
        serializer = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [serializer, {"name": "crc32c"}]
    return array_document(shape, data_type, chunk_shape, dimensions, fill=fill, codecs=codecs, attributes=attributes)


def group_document(
    attributes: Mapping[str, Any], arrays: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return a Zarr v3 group document; with `arrays` it carries their consolidated metadata."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if arrays is not None:
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": dict(arrays)}
    return document


def dump(document: Mapping[str, Any]) -> bytes:
    """Write a document as JSON; NaN is not JSON and raises ValueError."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def read_document(storage: Storage, key: str) -> dict[str, Any] | None:
    """Read a Zarr document, refusing one that is not a JSON object or too large, before it is loaded."""
    size = storage.size(key)
    if size is None:
        return None
    if size > _DOCUMENT_BYTES:
        raise CorruptStoreError(f"{storage.url}: {key} has {size} bytes, expected at most {_DOCUMENT_BYTES}")
    try:
        document = json.loads(storage.get(key) or b"")
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{storage.url}: {key} is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise CorruptStoreError(f"{storage.url}: {key} holds {type(document).__name__}, expected a JSON object")
    return document
