"""Checks of a store's documents against the format: sizes that can be believed, and the JSON Schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from repaudit.names import FORMAT_VERSION

MOST_STEPS: Final = 10_000_000
MOST_SAMPLES: Final = 100_000_000
MOST_CHUNK_BYTES: Final = 2**31
MOST_CHUNKS: Final = 2**20
MOST_STEP_BYTES: Final = 2**40

_ENDING: Final = ".schema.json"
_LONGEST_MESSAGE: Final = 300
_ITEMSIZES: Final = {"float16": 2, "float32": 4, "float64": 8, "string": 64}


def unbelievable(document: Mapping[str, Any]) -> str | None:
    """Return why an array's document cannot be trusted, before anything is allocated for it, or None.

    Examples
    --------
    >>> grid = {"name": "regular", "configuration": {"chunk_shape": [1, 2]}}
    >>> unbelievable({"shape": [3, 2], "data_type": "float32", "chunk_grid": grid}) is None
    True
    >>> unbelievable({"shape": [10**15], "data_type": "int64", "chunk_grid": grid})
    'its shape and chunks are [1000000000000000] and [1, 2]'
    """
    try:
        shape, chunks = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
        whole = all(type(size) is int and size >= 0 for size in shape) and all(
            type(size) is int and size >= 1 for size in chunks
        )
        if not whole or len(shape) != len(chunks) or not isinstance(shape, list) or not isinstance(chunks, list):
            return f"its shape and chunks are {_brief(str(shape))} and {_brief(str(chunks))}"
        itemsize = _ITEMSIZES.get(document["data_type"], 8)
    except (KeyError, TypeError) as error:
        return f"it is not an array document ({type(error).__name__}: {error})"
    if any(not size <= chunk <= max(1, 2 * size) for size, chunk in zip(shape[1:], chunks[1:], strict=True)):
        return (
            f"rows of shape {_brief(str(shape[1:]))} are not one chunk each, which has shape {_brief(str(chunks[1:]))}"
        )
    return _too_large(document, shape, chunks, itemsize)


def _too_large(document: Mapping[str, Any], shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> str | None:
    inner = _inner_chunk(document) or chunks
    if prod(inner) * itemsize > MOST_CHUNK_BYTES:
        return f"one chunk {inner} of {document['data_type']} would take {prod(inner) * itemsize} bytes"
    if prod(chunks) > MOST_CHUNKS * prod(inner):
        return f"one shard {chunks} holds more than {MOST_CHUNKS} chunks {inner}"
    if shape and shape[0] > (MOST_STEPS if chunks[0] < shape[0] else MOST_SAMPLES):
        return f"it has {shape[0]} rows"
    if prod(shape[1:]) * itemsize > MOST_STEP_BYTES:
        return f"one row of {shape} would take {prod(shape[1:]) * itemsize} bytes"
    return None


def _inner_chunk(document: Mapping[str, Any]) -> list[int] | None:
    """Return the shape of the chunks within a shard, which are what is decoded at once."""
    try:
        sharding = document["codecs"][0]
        inner = sharding["configuration"]["chunk_shape"] if sharding["name"] == "sharding_indexed" else None
    except (KeyError, TypeError, IndexError):
        return None
    return inner if isinstance(inner, list) and all(type(size) is int and size >= 1 for size in inner) else None


@cache
def _schemas() -> dict[tuple[int, str], dict[str, Any]]:
    """Read the JSON Schemas of all versions: inside the package in a wheel, at the root of a checkout."""
    packaged = files("repaudit") / "schemas"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "schemas"
    found = {}
    for version in range(1, FORMAT_VERSION + 1):
        for file in (folder / f"v{version}").iterdir():
            if file.name.endswith(_ENDING):
                found[version, file.name.removesuffix(_ENDING)] = json.loads(file.read_text(encoding="utf-8"))
    return found


@cache
def _validator(kind: str, version: int) -> Draft202012Validator:
    schemas = _schemas()
    registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas.values())
    latest = max(number for number, name in schemas if name == kind and number <= version)
    return Draft202012Validator(schemas[latest, kind], registry=registry)


def violations(kind: str, document: Mapping[str, Any], version: int = FORMAT_VERSION) -> list[str]:
    """List every way in which a document breaks the format, each with the path within the document.

    Parameters
    ----------
    kind : {"root", "model", "layer", "probe", "summary", "results"}
    document : mapping
        Parsed JSON.
    version : int
        Of the store. A kind of document that a version did not change keeps to the version before.

    Examples
    --------
    >>> violations("root", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    ["attributes: 'repaudit' is a required property"]
    """
    errors = sorted(
        _validator(kind, version).iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path]
    )
    return [f"{'/'.join(map(str, error.absolute_path)) or 'document'}: {_brief(error.message)}" for error in errors]


def _brief(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 3]}..."
