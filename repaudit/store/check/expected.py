"""What the documents of a store must be, as far as the format determines them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer

from repaudit.errors import StoreError
from repaudit.names import SAMPLE, TOKEN, encode_name
from repaudit.store.format.documents import DOCUMENT, FILLS, column_document, dump, group_document
from repaudit.store.format.layout import LOST, START_END
from repaudit.store.format.schema import unbelievable, violations


def refused_by_zarr(document: Mapping[str, Any]) -> str | None:
    """Return why Zarr cannot read arrays with this document, or None."""
    try:
        zarr.open_array(zarr.storage.MemoryStore({DOCUMENT: Buffer.from_bytes(dump(document))}), mode="r")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a document may be wrong in any way
        refuse_without_threads(error)
        return f"{type(error).__name__}: {error}"[:300]
    return None


def refuse_without_threads(error: Exception) -> None:
    """Raise where an error says nothing of the data: Zarr had no thread to decode them, and would wait for it next.

    Raises
    ------
    StoreError
        No thread can be started.
    """
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        raise StoreError(f"{error}: expected a limit of processes that leaves some (ulimit -u)") from error


def differences(document: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """List the parts in which a document is not as expected, its attributes left out.

    Examples
    --------
    >>> differences({"shape": [3]}, {"shape": [2], "attributes": {}})
    ['shape']
    """
    return [part for part in expected if part != "attributes" and document.get(part, []) != expected[part]]


def deviations(document: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """List the parts that a document has, and should not have or has otherwise than expected; and those it lacks.

    Examples
    --------
    >>> deviations({"shape": [3], "more": 1}, {"shape": [3], "attributes": {}})
    ['attributes', 'more']
    """
    known = {"storage_transformers": [], **document} if "storage_transformers" in expected else document
    return [
        part
        for part in sorted(known.keys() | expected.keys())
        if part not in known or part not in expected or known[part] != expected[part]
    ]


def sound_input(document: dict[str, Any] | str, samples: int, key: str) -> dict[str, Any] | None:
    """Return an input's document if it can be right: exactly what the format makes of its shape and dtype."""
    if isinstance(document, str) or unbelievable(document) is not None:
        return None
    wrapped = group_document({}, {"input": document})
    if violations("probe", wrapped, 1) or document["shape"][0] != samples or refused_by_zarr(document) is not None:
        return None
    return None if deviations(document, _input_document(key.rpartition("/")[2], document)) else document


def _input_document(key: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of an input under this key, with the shape and dtype that a document says."""
    name, shape, dimensions = str(document["attributes"]["input"]), document["shape"], document["dimension_names"]
    lost = {LOST: True} if document["attributes"].get(LOST) is True else {}
    rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    possible = [{SAMPLE}, *({f"{key}_{axis}", TOKEN if axis == 1 else START_END} for axis in range(1, len(shape)))]
    fits = len(dimensions) == len(shape) and all(map(set.__contains__, possible, dimensions))
    return column_document(
        shape,
        document["data_type"],
        (rows, *shape[1:]),
        dimensions if fits else (),
        FILLS.get(np.dtype(document["data_type"]).kind),
        {"long_name": name, "input": name, **lost} if encode_name(name) == key else {},
    )
