"""Find everything that is wrong with a store, each problem with its location."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, Final

from repaudit.errors import CorruptStoreError, ForeignPathError, UnknownVersionError
from repaudit.names import ATTRS, CHECKSUM, LAYER, MODELS, PROBE, STEP, in_natural_order
from repaudit.store.check.lost_parts import contradicted, is_whole
from repaudit.store.check.model_inspection import ModelInspection
from repaudit.store.check.problem import Kind, Problem
from repaudit.store.check.rebuilt_root import attributes_of
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, chunk_key, is_chunk, read_document
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.layout import COLUMNS, INPUTS_FINGERPRINT, LEASE, STEP_COLUMNS
from repaudit.store.format.model_facts import era_of
from repaudit.store.format.root_document import nothing_there, root_seal
from repaudit.store.format.sample_set import inputs_key
from repaudit.store.format.schema import violations
from repaudit.store.storage.lease import Holder, abandoned
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.storage import Storage, is_staged

_LOOKS: Final = 8
_MOST_LISTED: Final = 1000
"""Missing chunks of one array that are listed singly."""


def verify(
    url: str | os.PathLike[str] | Storage, data: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[Problem]:
    """List every problem of a store; an empty list means that none was found.

    Parameters
    ----------
    url : path or URL
        The store.
    data : bool
        Whether to read every committed step and compare it with its checksum.
    storage_options : mapping, optional
        Passed to fsspec.

    Returns
    -------
    list of Problem
        Each with `location`, `kind` and `message`. A gap that the recorder noted is not a problem.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If the path or URL is not a repaudit store.

    See Also
    --------
    repaudit.repair : Repairs what was found.

    Examples
    --------
    >>> import numpy as np
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> from repaudit.store.write.writer import TrajectoryWriter
    >>> probe_set = StoredProbeSet("abc", ["s0", "s1"], {"x": np.eye(2)})
    >>> with TrajectoryWriter("memory://verify.zarr", model_name="seed0", probe_set=probe_set,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     writer.append(10, {"layer.0": np.ones((2, 3), "float32")})
    >>> verify("memory://verify.zarr", data=True)
    []
    """
    storage = url if isinstance(url, Storage) else open_storage(url, storage_options)
    try:
        attributes = attributes_of(storage)
    except UnknownVersionError as error:
        return [Problem(DOCUMENT, "unknown_version", str(error))]
    except CorruptStoreError as error:
        return [Problem(DOCUMENT, "damaged_metadata", str(error))]
    if attributes is None:
        raise nothing_there(storage)
    problems = [*_links(storage), *_root(storage, attributes, data)]
    linked = {problem.location for problem in problems if problem.kind == "foreign"}
    listed = RootInspection(storage, attributes, None).listed_inputs()
    names: dict[str, str] = {}
    for name in sorted((name for name in storage.children(MODELS) if name != DOCUMENT), key=in_natural_order):
        key = f"{MODELS}/{name}"
        if not any(link == key or link.startswith(f"{key}/") for link in linked):
            try:
                model, found = _looked_at(storage, key, attributes["version"], data)
                problems += [*found, *_unlisted(model, listed)]
            except ForeignPathError as error:
                problems.append(Problem(key, "foreign", str(error)))
                continue
            except (OSError, MemoryError) as error:
                problems.append(Problem(key, "damaged_metadata", f"{key} cannot be read now ({error})"))
                continue
            if names.setdefault(model.name or key, key) != key:
                message = (
                    f"{key} and {names[model.name or key]} are both model {model.name!r}: move one out of the store"
                )
                problems.append(Problem(f"{key}/{DOCUMENT}", "misaligned", message))
    return problems


def _looked_at(storage: Storage, key: str, version: int, data: bool) -> tuple[ModelInspection, list[Problem]]:
    """Return a model with its problems, looking again where steps were dropped while it was looked at."""
    for _ in range(_LOOKS):
        model = ModelInspection(storage, key, version)
        found = list(_model(model, data))
        now = ModelInspection(storage, key, version).document if found else None
        if now is None or model.document is None or era_of(now) == era_of(model.document):
            break
    return model, found


def _links(storage: Storage) -> Iterator[Problem]:
    for key in storage.links():
        yield Problem(key, "foreign", f"{key} is a symbolic link: expected files of the store only")


def _root(storage: Storage, attributes: Mapping[str, Any], data: bool) -> Iterator[Problem]:
    document = read_document(storage, DOCUMENT) or {}
    for violation in violations("root", document, attributes["version"]):
        yield Problem(DOCUMENT, "damaged_metadata", f"{DOCUMENT}: {violation}")
    if (wrong := root_seal(document)) is not None:
        yield Problem(DOCUMENT, "damaged_metadata", f"{DOCUMENT}: {wrong}")
    if "consolidated_metadata" in document:
        message = "the root has consolidated metadata, which hides steps committed later from every reader"
        yield Problem(DOCUMENT, "misaligned", message)
    expected = {DOCUMENT, *COLUMNS, PROBE, MODELS}
    for name in storage.children():
        if name not in expected:
            yield Problem(name, "foreign", f"{name} does not belong to a repaudit store")
    yield from _unfinished(storage, PROBE)
    yield from _lease(storage, f"{PROBE}/{LEASE}")
    root = RootInspection(storage, attributes, document["attributes"].get("coordinates"))
    yield from root.problems()
    for key in root.leftover_inputs():
        yield Problem(key, "leftover", "inputs that were never added whole")
    for key in root.foreign_inputs():
        yield Problem(key, "foreign", f"{key} does not belong to a repaudit store")
    yield from _coordinates(root, data)
    for name in contradicted(root, attributes) if data else ():
        message = f"the chunk of {name} can be read, but is not what the fingerprint of the samples was made of"
        yield Problem(f"{name}/{chunk_key(0)}", "damaged_chunk", message)
    yield from _inputs(root, data)


def _unfinished(storage: Storage, home: str) -> Iterator[Problem]:
    for name in storage.children(home):
        if is_staged(name) and abandoned(name):
            yield Problem(f"{home}/{name}", "leftover", "a write that never finished")


def _lease(storage: Storage, key: str) -> Iterator[Problem]:
    holder = Holder.read(storage, key)
    if holder is not None and holder.stale:
        yield Problem(
            key, "leftover", f"a lease whose holder is gone ({holder}): no step is affected, and repair removes it"
        )


def _coordinates(root: RootInspection, data: bool) -> Iterator[Problem]:
    """Check the chunks of the samples' ids, labels and previews: one chunk each."""
    for name in root.coordinates:
        chunk = f"{name}/{chunk_key(0)}"
        if root.storage.size(chunk) is None:
            yield Problem(chunk, "missing_chunk", f"{name} has {root.samples} samples, but its chunk is missing")
        elif data and root.samples is not None and isinstance(wrong := root.texts(name), str):
            yield Problem(chunk, "damaged_chunk", f"the chunk of {name}: {wrong}")


def _inputs(root: RootInspection, data: bool) -> Iterator[Problem]:
    """Check the chunks of the probe's inputs."""
    for key, array in root.listed_inputs().items():
        path, size = f"{PROBE}/{key}", root.chunk_bytes(array)
        count = -(-array["shape"][0] // array["chunk_grid"]["configuration"]["chunk_shape"][0])
        present = set(root.storage.children(path))
        names = (chunk_key(chunk, *(0 for _ in array["shape"][1:])) for chunk in range(count))
        yield from _missing(path, names, present)
        for name in sorted(filter(is_chunk, present)):
            if root.storage.size(f"{path}/{name}") != size:
                yield Problem(f"{path}/{name}", "damaged_chunk", f"a chunk of {path} does not have {size} bytes")
            elif data and not is_whole(root, f"{path}/{name}", array):
                message = f"a chunk of {path} cannot be read, or does not match its checksum"
                yield Problem(f"{path}/{name}", "damaged_chunk", message)


def _missing(path: str, names: Iterable[str], present: Container[str]) -> Iterator[Problem]:
    """List the chunks that are missing, up to a number that still helps."""
    absent = (name for name in names if name not in present)
    for name in islice(absent, _MOST_LISTED):
        yield Problem(f"{path}/{name}", "missing_chunk", f"chunk {name} of {path} is committed, but missing")
    if next(absent, None) is not None:
        yield Problem(path, "missing_chunk", f"more chunks of {path} are missing than are listed here")


def _model(model: ModelInspection, data: bool) -> Iterator[Problem]:
    storage, key = model.storage, model.key
    if not model.sound:
        kind: Kind = "damaged_metadata" if model.document is not None or model.arrays else "foreign"
        yield from (Problem(f"{key}/{DOCUMENT}", kind, message) for message in model.problems)
        return
    shapes = list(_shapes(model))
    yield from shapes
    if shapes:
        return
    yield from _columns(model)
    yield from _chunks(model, data)
    holder = Holder.read(storage, f"{key}/{LEASE}")
    if holder is None or holder.stale:  # a living writer's unfinished step is not a leftover
        yield from model.outdated()
        for chunk in model.leftovers():
            yield Problem(chunk, "leftover", f"a chunk beyond the {model.committed} committed steps")
        yield from _unfinished(storage, key)
    yield from _lease(storage, f"{key}/{LEASE}")


def _unlisted(model: ModelInspection, listed: Iterable[str]) -> Iterator[Problem]:
    """Find a model that read inputs which the store does not have; version 1 has one encoding for all."""
    facts = {} if model.document is None else model.document["attributes"][ATTRS]
    fingerprint = facts.get(INPUTS_FINGERPRINT)
    if fingerprint is not None and inputs_key(fingerprint) not in {key.partition("/")[0] for key in listed}:
        message = f"the inputs {fingerprint} of model {model.name!r} are not among those of the store"
        yield Problem(f"{PROBE}/{inputs_key(fingerprint)}", "damaged_metadata", message)


def _shapes(model: ModelInspection) -> Iterator[Problem]:
    for name, array in model.arrays.items():
        path = f"{model.key}/{name}"
        if array["dimension_names"][0] == STEP and array["shape"][0] != model.committed:
            message = f"{name} has {array['shape'][0]} steps, expected the {model.committed} committed"
            yield Problem(path, "misaligned", message)
    missing = {STEP, CHECKSUM, LAYER, *STEP_COLUMNS} - model.arrays.keys()
    for name in sorted(missing):
        yield Problem(f"{model.key}/{name}", "damaged_metadata", f"the model's document lacks {name}")


def _columns(model: ModelInspection) -> Iterator[Problem]:
    committed = model.committed or 0
    steps: list[int] = []
    if committed and model.names_problem:
        kind: Kind = "missing_chunk" if model.names_problem == "missing" else "damaged_chunk"
        message = f"the names of the layers cannot be read: {model.names_problem}"
        yield Problem(f"{model.key}/{LAYER}/{chunk_key(0)}", kind, message)
    for name in (*STEP_COLUMNS, CHECKSUM):
        path, count = f"{model.key}/{name}", -(-committed // COORDINATE_CHUNK)
        present = set(model.storage.children(path))
        yield from _missing(path, (model.chunk_name(name, chunk) for chunk in range(count)), present)
        for chunk in range(count):
            if model.chunk_name(name, chunk) not in present:
                continue
            values = model.stored_column(name, chunk)
            known, count_here = model.column(name, chunk), committed - chunk * COORDINATE_CHUNK
            if name == STEP and not isinstance(values, str) and values[:count_here] != known[:count_here]:
                values = "it is not what the model's document says"
            if isinstance(values, str):
                message = f"chunk {chunk} of {name} is damaged: {values}"
                yield Problem(f"{path}/{model.chunk_name(name, chunk)}", "damaged_chunk", message)
            elif name == STEP:
                steps += values[: committed - chunk * COORDINATE_CHUNK]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Problem(f"{model.key}/{STEP}", "misaligned", "the committed steps do not increase")


def _chunks(model: ModelInspection, data: bool) -> Iterator[Problem]:
    committed = model.committed or 0
    for position, (layer, name) in enumerate(model.layer_keys.items()):
        path, size = f"{model.key}/{name}", model.raw_size(name)
        present = model.chunks_present(name)
        names = (model.chunk_name(name, index) for index in range(committed))
        yield from _missing(path, names, set(present.values()))
        for index in sorted(index for index in present if index < committed):
            chunk = f"{path}/{present[index]}"
            wrong = _chunk_problem(model, name, position, index) if data else None
            if not data and size is not None and (stored := model.storage.size(chunk)) != size:
                wrong = f"{stored} bytes, expected {size}"
            if wrong is not None:
                yield Problem(chunk, "damaged_chunk", f"step {_step(model, index)}of layer {layer!r}: {wrong}")


def _step(model: ModelInspection, index: int) -> str:
    """Name a step by its number, as far as that is known, and its index."""
    steps = model.column(STEP, index // COORDINATE_CHUNK)
    place = index % COORDINATE_CHUNK
    known = not isinstance(steps, str) and place < len(steps)
    return f"{int(steps[place])} (index {index}) " if known else f"index {index} "


def _chunk_problem(model: ModelInspection, name: str, position: int, index: int) -> str | None:
    sums = model.column(CHECKSUM, index // COORDINATE_CHUNK)
    return model.step_problem(name, index, None if isinstance(sums, str) else sums[index % COORDINATE_CHUNK][position])
