"""What a model's document says of the record itself: under which epoch it was written, and which steps it holds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from repaudit.names import ATTRS, STEP
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import encode_column
from repaudit.store.format.layout import STEP_COLUMNS


def epoch_of(document: Mapping[str, Any]) -> int:
    """Return how many writers have had a model; 0 where its document tells none.

    Examples
    --------
    >>> epoch_of({"attributes": {"repaudit": {"epoch": 3}}}), epoch_of({})
    (3, 0)
    """
    epoch = _facts(document).get("epoch", 0)
    return epoch if type(epoch) is int else 0


def truncations_of(document: Mapping[str, Any]) -> int:
    """Return how often steps were dropped from a record; 0 where its document tells nothing of it."""
    count = _facts(document).get("truncations", 0)
    return count if type(count) is int else 0


def era_of(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what is the same of two documents of a model if steps were only added between them.

    Examples
    --------
    >>> era_of({"attributes": {"repaudit": {"epoch": 2, "truncations": 1, "committed": 7}}})
    (2, 1, None)
    """
    return epoch_of(document), truncations_of(document), _facts(document).get("repaired")


def steps_of(document: Mapping[str, Any]) -> list[int] | None:
    """Return the steps that a model's document names, or None where it does not name as many as it has.

    Examples
    --------
    >>> steps_of({"attributes": {"repaudit": {"committed": 2, "steps": [0, 10]}}})
    [0, 10]
    """
    facts = _facts(document)
    steps, committed = facts.get("steps"), facts.get("committed")
    if not isinstance(steps, list) or len(steps) != committed or any(type(step) is not int for step in steps):
        return None
    rising = all(earlier < later for earlier, later in pairwise([-1, *steps]))
    return list(steps) if rising and (not steps or steps[-1] < 2**63) else None


def step_chunks(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the chunks of a model's coordinate `step`, by their names within the array, from its document."""
    steps = steps_of(document)
    if not steps:
        return {}
    column, values = STEP_COLUMNS[STEP], np.array(steps, dtype=STEP_COLUMNS[STEP].numpy_dtype)
    size = document["consolidated_metadata"]["metadata"][STEP]["chunk_grid"]["configuration"]["chunk_shape"][0]
    return {
        chunk_key(start // size): b"".join(encode_column(values[start : start + size], size, column.fill))
        for start in range(0, len(values), size)
    }


def _facts(document: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = document.get("attributes")
    facts = attributes.get(ATTRS) if isinstance(attributes, dict) else None
    return facts if isinstance(facts, dict) else {}
