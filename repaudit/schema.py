"""Checks of a store's documents against the format: sizes that can be believed, and the JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

MOST_STEPS: Final = 10_000_000
MOST_SAMPLES: Final = 100_000_000
MOST_CHUNK_BYTES: Final = 2**31
MOST_ARRAYS: Final = 100_000

_ITEMSIZES: Final = {"float16": 2, "float32": 4, "float64": 8, "string": 64}


def unbelievable(document: Mapping[str, Any]) -> str | None:
    """Say what makes an array's document impossible to trust before anything is allocated for it, or None.

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
        whole = all(isinstance(size, int) and size >= 0 for size in shape) and all(
            isinstance(size, int) and size >= 1 for size in chunks
        )
        if not whole or len(shape) != len(chunks):
            return f"its shape and chunks are {shape} and {chunks}"
        itemsize = _ITEMSIZES.get(document["data_type"], 8)
    except (KeyError, TypeError) as error:
        return f"it is no array document ({type(error).__name__}: {error})"
    if prod(chunks) * itemsize > MOST_CHUNK_BYTES:
        return f"one chunk {chunks} of {document['data_type']} would take {prod(chunks) * itemsize} bytes"
    if len(shape) == 1 and shape[0] > (MOST_STEPS if chunks[0] < shape[0] else MOST_SAMPLES):
        return f"it has {shape[0]} rows"
    return None
