"""Find everything that is wrong with a store, each problem with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from repaudit.errors import CorruptStoreError, UnknownVersionError
from repaudit.names import CHECKSUM, LABEL, LAYER, MODELS, PROBE, SAMPLE, STEP, TEXT
from repaudit.schema import violations
from repaudit.store.encoding import COORDINATE_CHUNK, checksum
from repaudit.store.inspection import ModelInspection
from repaudit.store.layout import DOCUMENT, LEASE, STEP_COLUMNS, chunk_key
from repaudit.store.lease import Holder, abandoned
from repaudit.store.place import open_storage
from repaudit.store.root import nothing_there, read_document, store_attributes
from repaudit.store.storage import TEMPORARY, Storage

KINDS = (
    "missing_chunk",
    "damaged_chunk",
    "damaged_metadata",
    "misaligned",
    "unknown_version",
    "foreign",
    "leftover",
)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store: where, of what kind (one of `KINDS`), and in words."""

    location: str
    kind: str
    message: str


def verify(
    url: str | os.PathLike[str] | Storage, data: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[Problem]:
    """List every problem of a store; an empty list means that none was found.

    Parameters
    ----------
    url : path or URL
    data : bool
        Whether to read every committed step and compare it with its checksum.
    storage_options : mapping, optional
        Handed to fsspec.

    Returns
    -------
    list of Problem
        Each with `location`, `kind` and `message`. A gap that the recorder noted itself is no problem.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is nothing of ours to verify.
    """
    storage = url if isinstance(url, Storage) else open_storage(url, storage_options)
    try:
        own = store_attributes(storage)
    except UnknownVersionError as error:
        return [Problem(DOCUMENT, "unknown_version", str(error))]
    except CorruptStoreError as error:
        return [Problem(DOCUMENT, "damaged_metadata", str(error))]
    if own is None:
        raise nothing_there(storage)
    problems = [*_links(storage), *_root(storage), *_inputs(storage, data)]
    linked = {problem.location for problem in problems if problem.kind == "foreign"}
    for name in storage.children(MODELS):
        key = f"{MODELS}/{name}"
        if name != DOCUMENT and not any(place == key or place.startswith(f"{key}/") for place in linked):
            problems += _model(storage, key, data)
    return problems


def _links(storage: Storage) -> Iterator[Problem]:
    for key in storage.links():
        yield Problem(key, "foreign", f"{key} is a symbolic link: a store holds its own files only.")


def _root(storage: Storage) -> Iterator[Problem]:
    document = read_document(storage, DOCUMENT) or {}
    for violation in violations("root", document):
        yield Problem(DOCUMENT, "damaged_metadata", f"{DOCUMENT}: {violation}")
    if "consolidated_metadata" in document:
        message = "The root carries consolidated metadata, which hides steps committed later from every reader."
        yield Problem(DOCUMENT, "misaligned", message)
    ours = {DOCUMENT, SAMPLE, LABEL, TEXT, PROBE, MODELS}
    for name in storage.children():
        if name not in ours:
            yield Problem(name, "foreign", f"{name} is no part of a repaudit store.")
    for name in storage.children(PROBE):
        if name.endswith(TEMPORARY) and abandoned(name):
            yield Problem(f"{PROBE}/{name}", "leftover", "A write that never finished.")
    yield from _lease(storage, f"{PROBE}/{LEASE}")


def _lease(storage: Storage, key: str) -> Iterator[Problem]:
    data = storage.get(key)
    if data is not None and Holder.parse(data).stale:
        yield Problem(key, "leftover", f"A lease whose holder is gone ({Holder.parse(data)}).")


def _inputs(storage: Storage, data: bool) -> Iterator[Problem]:
    """Check the samples' coordinates and the probe's inputs."""
    keys = [SAMPLE, *(name for name in (LABEL, TEXT) if storage.children(name))]
    try:
        group = read_document(storage, f"{PROBE}/{DOCUMENT}")
    except CorruptStoreError as error:
        yield Problem(f"{PROBE}/{DOCUMENT}", "damaged_metadata", str(error))
        group = None
    if group is None:
        yield Problem(f"{PROBE}/{DOCUMENT}", "damaged_metadata", f"{PROBE}/{DOCUMENT} is missing or cannot be read.")
    else:
        found = violations("probe", group)
        yield from (Problem(f"{PROBE}/{DOCUMENT}", "damaged_metadata", f"{PROBE}: {text}") for text in found)
        keys += [f"{PROBE}/{name}" for name in (group["consolidated_metadata"]["metadata"] if not found else ())]
    for key in keys:
        yield from _input(storage, key, data)


def _input(storage: Storage, key: str, data: bool) -> Iterator[Problem]:
    try:
        document = read_document(storage, f"{key}/{DOCUMENT}")
    except CorruptStoreError as error:
        yield Problem(f"{key}/{DOCUMENT}", "damaged_metadata", str(error))
        return
    if document is None:
        yield Problem(f"{key}/{DOCUMENT}", "damaged_metadata", f"{key}/{DOCUMENT} is missing.")
        return
    rows, chunk_rows = document["shape"][0], document["chunk_grid"]["configuration"]["chunk_shape"][0]
    for chunk in range(-(-rows // chunk_rows)):
        place = f"{key}/{chunk_key(chunk, *(0 for _ in document['shape'][1:]))}"
        if storage.size(place) is None:
            yield Problem(place, "missing_chunk", f"{key} has {rows} samples, but their chunk {chunk} is not there.")
        elif data:
            content = storage.get(place) or b""
            if checksum(content[:-4]).to_bytes(4, "little") != content[-4:]:
                yield Problem(place, "damaged_chunk", f"Chunk {chunk} of {key} does not match its checksum.")


def _model(storage: Storage, key: str, data: bool) -> Iterator[Problem]:
    model = ModelInspection(storage, key)
    if not model.sound:
        kind = "damaged_metadata" if model.document is not None or model.arrays else "foreign"
        yield from (Problem(f"{key}/{DOCUMENT}", kind, fault) for fault in model.faults)
        return
    shapes = list(_shapes(model))
    yield from shapes
    if shapes:
        return
    yield from _columns(model)
    yield from _chunks(model, data)
    lease = storage.get(f"{key}/{LEASE}")
    if lease is None or Holder.parse(lease).stale:  # a living writer's unfinished step is no leftover
        for place in model.leftovers():
            yield Problem(place, "leftover", f"A chunk beyond the {model.committed} committed steps.")
    yield from _lease(storage, f"{key}/{LEASE}")


def _shapes(model: ModelInspection) -> Iterator[Problem]:
    for name, array in model.arrays.items():
        place = f"{model.key}/{name}"
        if array["dimension_names"][0] == STEP and array["shape"][0] != model.committed:
            message = f"{name} has {array['shape'][0]} steps, {model.committed} are committed."
            yield Problem(place, "misaligned", message)
    missing = {STEP, CHECKSUM, LAYER, *STEP_COLUMNS} - model.arrays.keys()
    for name in sorted(missing):
        yield Problem(f"{model.key}/{name}", "damaged_metadata", f"The model's document lacks {name}.")


def _columns(model: ModelInspection) -> Iterator[Problem]:
    committed = model.committed or 0
    steps: list[int] = []
    for name in (*STEP_COLUMNS, CHECKSUM):
        for chunk in range(-(-committed // COORDINATE_CHUNK)):
            values = model.column(name, chunk)
            place = f"{model.key}/{name}/{model.chunk_name(name, chunk)}"
            if values == "missing":
                yield Problem(place, "missing_chunk", f"Chunk {chunk} of {name} is committed, but it is not there.")
            elif isinstance(values, str):
                yield Problem(place, "damaged_chunk", f"Chunk {chunk} of {name} is damaged: {values}.")
            elif name == STEP:
                steps += values[: committed - chunk * COORDINATE_CHUNK]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Problem(f"{model.key}/{STEP}", "misaligned", "The committed steps do not increase.")


def _chunks(model: ModelInspection, data: bool) -> Iterator[Problem]:
    for position, (layer, name) in enumerate(model.layer_keys.items()):
        present = set(model.storage.children(f"{model.key}/{name}"))
        size = model.raw_size(name)
        for index in range(model.committed or 0):
            place = f"{model.key}/{name}/{model.chunk_name(name, index)}"
            if model.chunk_name(name, index) not in present:
                message = f"Step index {index} of layer {layer!r} is committed, but its chunk is not there."
                yield Problem(place, "missing_chunk", message)
            elif data:
                sums = model.column(CHECKSUM, index // COORDINATE_CHUNK)
                known = None if isinstance(sums, str) else sums[index % COORDINATE_CHUNK][position]
                fault = model.step_fault(name, index, known)
                if fault is not None:
                    yield Problem(place, "damaged_chunk", f"Step index {index} of layer {layer!r}: {fault}.")
            elif size is not None and model.storage.size(place) != size:
                message = f"Step index {index} of layer {layer!r}: {model.storage.size(place)} bytes, expected {size}."
                yield Problem(place, "damaged_chunk", message)
