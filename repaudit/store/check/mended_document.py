"""The document of a repaired model: what the old one said where it can be trusted, and what the steps left say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final, Protocol

from repaudit.names import ATTRS, CHECKSUM, LAYER, STEP, decode_name
from repaudit.store.check.model_inspection import ModelInspection
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.keys import safe_key
from repaudit.store.format.layout import INPUTS_FINGERPRINT, LOST, model_document
from repaudit.store.format.provenance import now

_CONFIRMED: Final = frozenset(
    {"name", "committed", "steps", "epoch", "repaired", "unconfirmed", INPUTS_FINGERPRINT, LOST, "truncations"}
)
"""Facts of a model that something else in the store tells as well, or that say how its record was changed."""


class Kept(Protocol):
    """A step that stays: its coordinates, and the names of those that are lost."""

    columns: dict[str, Any]
    unknown: list[str]


def mended_document(model: ModelInspection, rows: Sequence[Kept]) -> dict[str, Any]:
    """Return a model's document with these steps; it names the columns that lost values, and what is unconfirmed."""
    if model.document is not None and model.sound and model.complete:
        document = copy.deepcopy(model.document)
    else:
        name = decode_name(model.key.rpartition("/")[2])
        known = {} if model.document is None else model.document["attributes"][ATTRS]
        read = {array["attributes"].get(INPUTS_FINGERPRINT) for array in model.arrays.values()} - {None}
        facts = {"name": name, "committed": 0, "gaps": [], "created": now()} | copy.deepcopy(known)
        facts |= {INPUTS_FINGERPRINT: read.pop()} if model.version > 1 and len(read) == 1 else {}
        document = model_document(facts, [], 0)
        arrays = document["consolidated_metadata"]["metadata"]
        arrays |= {key: copy.deepcopy(model.arrays[key]) for key in model.layer_keys.values()}
        for key, shape in ((LAYER, [len(model.layer_keys)]), (CHECKSUM, [0, len(model.layer_keys)])):
            arrays[key]["shape"] = shape
            chunk_rows = len(model.layer_keys) if key == LAYER else COORDINATE_CHUNK
            arrays[key]["chunk_grid"]["configuration"]["chunk_shape"] = [chunk_rows, *shape[1:]]
    facts = document["attributes"][ATTRS]
    facts |= {"committed": len(rows), "repaired": now()}
    lost = {name for row in rows for name in row.unknown} - {CHECKSUM}
    if lost:
        facts[LOST] = sorted(lost | set(facts.get(LOST, [])))
    if not model.sealed:
        key = model.key.rpartition("/")[2]
        facts["name"] = facts["name"] if safe_key(str(facts["name"])) == key else decode_name(key)
        facts["unconfirmed"] = sorted(facts.keys() - _CONFIRMED)
    document["attributes"][ATTRS]["steps"] = [int(row.columns[STEP]) for row in rows]
    for array in document["consolidated_metadata"]["metadata"].values():
        if array["dimension_names"][0] == STEP:
            array["shape"][0] = len(rows)
    return document
