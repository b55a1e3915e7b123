"""Repair a store: remove what no commit refers to, drop what cannot be trusted, and never invent data."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from repaudit.errors import CorruptStoreError, ForeignPathError, LeaseError
from repaudit.names import ATTRS, FORMAT_VERSION, LAYER, MODELS, STEP, in_natural_order
from repaudit.store.check.judged_steps import JudgedStep, judged_steps, refuse_intact, refuse_older
from repaudit.store.check.mended_document import mended_document
from repaudit.store.check.model_inspection import ModelInspection
from repaudit.store.check.problem import Problem
from repaudit.store.check.rebuilt_root import is_lost
from repaudit.store.check.root_repair import mend_root, stale_lease
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, read_document
from repaudit.store.format.encoding import COORDINATE_CHUNK, encode_column
from repaudit.store.format.layout import LEASE, REPAIR, STEP_COLUMNS
from repaudit.store.format.model_facts import step_chunks
from repaudit.store.format.root_document import nothing_there, store_attributes
from repaudit.store.format.seal import model_bytes
from repaudit.store.format.step_columns import column_objects
from repaudit.store.storage.fenced import Fenced
from repaudit.store.storage.lease import Holder, Lease, gone
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.storage import Parts, Storage, is_staged


def repair(
    url: str | os.PathLike[str] | Storage, storage_options: Mapping[str, Any] | None = None, *, force: bool = False
) -> list[Problem]:
    """Repair what can be repaired, and report what was lost.

    Leftovers of crashed writers are removed; a step of which any layer is missing or damaged is dropped for all layers,
    since a step is whole or absent; a lost document of a model is rebuilt from the documents of its arrays. An
    interrupted repair continues when called again. Foreign files are never touched.

    Parameters
    ----------
    url : path or URL
        The store.
    storage_options : mapping, optional
        Passed to fsspec.
    force : bool
        Also repair models whose writer seems alive, and drop intact steps whose numbers are lost, or where no other
        step of the model is left.

    Returns
    -------
    list of Problem
        What was repaired; `lost` lists the steps that were dropped.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, UnknownVersionError, LeaseError
        If the path or URL is not a store that this library can repair, or a model has a living writer.
    CorruptStoreError
        If the root document is lost, and with it the ids or hashes of the samples. Also if intact activations would
        have to be dropped, and `force` is not given, or something cannot be read at the moment; nothing of that model
        is changed then.

    See Also
    --------
    repaudit.verify : Lists the problems without changing anything.

    Examples
    --------
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> from repaudit.store.write.writer import TrajectoryWriter
    >>> TrajectoryWriter("memory://repair.zarr", model_name="seed0", layers={"layer.0": ((2, 3), "float32")},
    ...                  probe_set=StoredProbeSet("abc", ["s0", "s1"], {"x": np.eye(2)})).close()
    >>> repair("memory://repair.zarr")
    []
    """
    storage = url if isinstance(url, Storage) else open_storage(url, storage_options)
    attributes = {"version": FORMAT_VERSION} if is_lost(storage) else store_attributes(storage)
    if attributes is None:
        raise nothing_there(storage)
    version = int(attributes["version"])
    if not force:
        _refuse_alive(storage)
    done, refused = list[Problem](), list[str]()
    with _others_go_on(refused, f"{storage.url}: the root"):
        done += mend_root(storage)
    for name in sorted(storage.children(MODELS), key=in_natural_order):
        key = f"{MODELS}/{name}"
        with _others_go_on(refused, f"{storage.url}: {key}", CorruptStoreError, ForeignPathError):
            if name != DOCUMENT and _is_model(storage, key, version):
                done += _mend_model(storage, key, force, version)
    if refused:
        raise CorruptStoreError("; ".join(refused))
    return done


@contextmanager
def _others_go_on(refused: list[str], what: str, *own: type[Exception]) -> Iterator[None]:
    """Note why a part cannot be mended, for its own reasons or since it cannot be read at the moment."""
    try:
        yield
    except own as error:
        refused.append(str(error))
    except (OSError, MemoryError) as error:
        refused.append(f"{what}: {error}; nothing of it was dropped: repair again when all of it can be read")


def _is_model(storage: Storage, key: str, version: int) -> bool:
    try:
        if not storage.children(key):
            return False
        with_document = storage.size(f"{key}/{DOCUMENT}") is not None
        return bool(ModelInspection(storage, key, version, certain=True).layer_keys) or with_document
    except ForeignPathError:
        return False


def _refuse_alive(storage: Storage) -> None:
    """Refuse before anything is touched if any model has a living writer."""
    for name in storage.children(MODELS):
        try:
            holder = None if name == DOCUMENT else Holder.read(storage, f"{MODELS}/{name}/{LEASE}")
        except ForeignPathError:
            continue
        if holder is not None and not gone(storage, f"{MODELS}/{name}/{LEASE}"):
            raise LeaseError(
                f"{storage.url}: {MODELS}/{name} is being written by another writer ({holder}); nothing "
                f"was repaired: wait for it to end, or pass force=True if that writer is known to be dead"
            )


def _mend_model(storage: Storage, key: str, force: bool, version: int) -> list[Problem]:
    done = list(stale_lease(storage, f"{key}/{LEASE}"))
    unfinished = [f"{key}/{name}" for name in storage.children(key) if is_staged(name)]
    lease = Lease(storage, f"{key}/{LEASE}", f"the model at {key}", force=force)  # it clears unfinished writes
    done += [Problem(path, "leftover", "a write that never finished was removed") for path in unfinished]
    storage = Fenced(storage, lease)
    try:
        _replay(storage, key)
        model = ModelInspection(storage, key, version, certain=True)
        if not model.layer_keys:
            raise CorruptStoreError(f"{storage.url}: nothing is left of {key} to rebuild it from: {model.problems}")
        if model.document is None and model.names_problem:
            raise CorruptStoreError(
                f"{storage.url}: of {key} both the document and the names of the layers are lost, so nothing tells "
                f"whose checksums are whose; nothing of this model was changed: restore one of them from a backup"
            )
        leftovers = set(model.leftovers())
        rows = judged_steps(model)
        rebuilt = not model.sound or not model.aligned
        if not force:
            refuse_older(model)
            refuse_intact(model, rows)
        if rebuilt or any(row.problem or row.unknown for row in rows) or (rows and model.names_problem):
            _stage(model, [row for row in rows if not row.problem])
            _replay(storage, key)
            done += _describe(model, rows, rebuilt)
        model = ModelInspection(storage, key, version, certain=True)
        for problem in list(model.outdated()):
            storage.put(problem.location, [dump(model.arrays[problem.location.split("/")[-2]])])
            done.append(Problem(problem.location, problem.kind, f"{problem.message}; it was rewritten"))
        done += _mend_step_numbers(model)
        for chunk in list(model.leftovers()):
            storage.delete(chunk)
            if chunk in leftovers:
                done.append(Problem(chunk, "leftover", "a chunk beyond the committed steps was removed"))
    finally:
        lease.release()
    return done


def _mend_step_numbers(model: ModelInspection) -> Iterator[Problem]:
    """Write the numbers of the steps again where they are not what the model's document says."""
    for index, (name, data) in enumerate(step_chunks(model.document or {}).items()):
        path = f"{model.key}/{STEP}/{name}"
        if model.stored_column(STEP, index) != model.column(STEP, index):
            model.storage.put(path, [data])
            yield Problem(path, "damaged_chunk", "the numbers of the steps were rewritten from the model's document")


def _stage(model: ModelInspection, rows: list[JudgedStep]) -> None:
    """Copy the good steps to where no reader looks; the staged document, written last, makes the repair final."""
    storage, base = model.storage, f"{REPAIR}/{model.key.partition('/')[2]}"
    storage.delete_prefix(base)
    for name in model.layer_keys.values():
        for target, row in enumerate(rows):
            if target != row.index:
                data = storage.get(f"{model.key}/{name}/{model.chunk_name(name, row.index)}") or b""
                storage.put(f"{base}/{name}/{model.chunk_name(name, target)}", [data])
    objects: dict[str, Parts] = {}
    for start in range(0, len(rows), COORDINATE_CHUNK):
        part, chunk = rows[start : start + COORDINATE_CHUNK], start // COORDINATE_CHUNK
        columns = {name: [row.columns[name] for row in part] for name in STEP_COLUMNS}
        objects |= column_objects(base, chunk, columns, [row.checksums for row in part])
    names = np.array(list(model.layer_keys), dtype=object)
    objects[f"{base}/{LAYER}/{chunk_key(0)}"] = encode_column(names, len(names), "")
    storage.put_many(objects)
    storage.put(f"{base}/{DOCUMENT}", [model_bytes(mended_document(model, rows))])


def _replay(storage: Storage, key: str) -> None:
    """Carry out a staged repair, from the start if it was interrupted: every part of it may be done twice."""
    base = f"{REPAIR}/{key.partition('/')[2]}"
    document = read_document(storage, f"{base}/{DOCUMENT}")
    if document is None:
        storage.delete_prefix(base)
        return
    hidden = copy.deepcopy(document)  # while chunks move, readers see no step of this model
    hidden["attributes"][ATTRS] |= {"committed": 0, "steps": []}
    for array in hidden["consolidated_metadata"]["metadata"].values():
        if array["dimension_names"][0] == STEP:
            array["shape"][0] = 0
    storage.put(f"{key}/{DOCUMENT}", [model_bytes(hidden)])
    for staged in list(storage.keys(base)):
        target = f"{key}/{staged.removeprefix(base + '/')}"
        if target != f"{key}/{DOCUMENT}":
            storage.put(target, [storage.get(staged) or b""])
    storage.put_many(
        {
            f"{key}/{name}/{DOCUMENT}": [dump(array)]
            for name, array in document["consolidated_metadata"]["metadata"].items()
        }
    )
    storage.put(f"{key}/{DOCUMENT}", [model_bytes(document)])
    storage.delete(f"{base}/{DOCUMENT}")
    storage.delete_prefix(base)


def _describe(model: ModelInspection, rows: list[JudgedStep], rebuilt: bool) -> Iterator[Problem]:
    if rebuilt:
        kept = len([row for row in rows if not row.problem])
        message = f"the model's document was rebuilt from its arrays; {kept} steps are proven by their checksums"
        yield Problem(f"{model.key}/{DOCUMENT}", "damaged_metadata", message)
    for row in rows:
        step = row.columns[STEP]
        if row.problem:
            known = [int(step)] if step is not None and step >= 0 else []
            message = f"step {step if known else 'of unknown number'} was dropped for all layers: {row.problem}"
            yield Problem(f"{model.key}[{row.index}]", "damaged_chunk", message, known)
    if rows and model.names_problem:
        message = f"the names of the layers ({model.names_problem}) were rewritten from the layers' metadata"
        yield Problem(f"{model.key}/{LAYER}/{chunk_key(0)}", "damaged_chunk", message)
    unknown = sorted({name for row in rows for name in row.unknown})
    if unknown:
        message = f"{', '.join(unknown)}: damaged chunks were replaced by missing values, or by recomputed checksums"
        yield Problem(model.key, "damaged_chunk", message)
