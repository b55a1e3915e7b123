"""Repair a store: remove what no commit refers to, drop what cannot be trusted, and never invent data."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repaudit.errors import CorruptStoreError, ForeignPathError, LeaseError
from repaudit.names import ATTRS, CHECKSUM, FORMAT_VERSION, LAYER, MODELS, STEP, in_natural_order
from repaudit.store.check.mended_document import mended_document
from repaudit.store.check.model_inspection import ModelInspection
from repaudit.store.check.problem import Problem
from repaudit.store.check.rebuilt_root import is_lost
from repaudit.store.check.root_repair import mend_root, stale_lease
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, read_document
from repaudit.store.format.encoding import COORDINATE_CHUNK, checksum, encode_column
from repaudit.store.format.layout import LEASE, REPAIR, STEP_COLUMNS
from repaudit.store.format.model_facts import step_chunks, truncations_of
from repaudit.store.format.root_document import nothing_there, store_attributes
from repaudit.store.format.seal import model_bytes
from repaudit.store.format.step_columns import column_objects
from repaudit.store.storage.fenced import Fenced
from repaudit.store.storage.lease import Holder, Lease, gone
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.storage import TEMPORARY, Parts, Storage


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
        have to be dropped, and `force` is not given; nothing of that model is changed then.

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
    done = list(mend_root(storage))
    refused: list[str] = []
    for name in sorted(storage.children(MODELS), key=in_natural_order):
        if name == DOCUMENT:
            continue
        key = f"{MODELS}/{name}"
        try:
            if not storage.children(key):
                continue
            with_document = storage.size(f"{key}/{DOCUMENT}") is not None
            model = ModelInspection(storage, key, version)
        except ForeignPathError:
            continue
        if with_document or model.layer_keys:
            try:
                done += _mend_model(storage, key, force, version)
            except (CorruptStoreError, ForeignPathError) as error:  # the other models are mended all the same
                refused.append(str(error))
    if refused:
        raise CorruptStoreError("; ".join(refused))
    return done


class _IntactError(CorruptStoreError):
    """A repair would erase activations that their checksums prove."""


def _refuse_alive(storage: Storage) -> None:
    """Refuse before anything is touched if any model has a living writer."""
    for name in storage.children(MODELS):
        try:
            data = None if name == DOCUMENT else storage.get(f"{MODELS}/{name}/{LEASE}")
        except ForeignPathError:
            continue
        if data is not None and not gone(storage, f"{MODELS}/{name}/{LEASE}"):
            raise LeaseError(
                f"{storage.url}: {MODELS}/{name} is being written by another writer ({Holder.parse(data)}); nothing "
                f"was repaired: wait for it to end, or pass force=True if that writer is known to be dead"
            )


def _mend_model(storage: Storage, key: str, force: bool, version: int) -> list[Problem]:
    done = list(stale_lease(storage, f"{key}/{LEASE}"))
    unfinished = [f"{key}/{name}" for name in storage.children(key) if name.endswith(TEMPORARY)]
    lease = Lease(storage, f"{key}/{LEASE}", f"the model at {key}", force=force)  # it clears unfinished writes
    done += [Problem(path, "leftover", "a write that never finished was removed") for path in unfinished]
    storage = Fenced(storage, lease)
    try:
        _replay(storage, key)
        model = ModelInspection(storage, key, version)
        if not model.layer_keys:
            raise CorruptStoreError(f"{storage.url}: nothing is left of {key} to rebuild it from: {model.problems}")
        if model.document is None and model.names_problem:
            raise CorruptStoreError(
                f"{storage.url}: of {key} both the document and the names of the layers are lost, so nothing tells "
                f"whose checksums are whose; nothing of this model was changed: restore one of them from a backup"
            )
        leftovers = set(model.leftovers())
        rows = _judge(model)
        rebuilt = not model.sound or not model.aligned
        if not force:
            _refuse_older(model)
            _refuse_intact(model, rows)
        if rebuilt or any(row.problem or row.unknown for row in rows) or (rows and model.names_problem):
            _stage(model, [row for row in rows if not row.problem])
            _replay(storage, key)
            done += _describe(model, rows, rebuilt)
        model = ModelInspection(storage, key, version)
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


@dataclass
class _Row:
    """One step as found: its coordinates, the checksum of each layer, what is wrong with it."""

    index: int
    columns: dict[str, Any]
    checksums: list[int]
    problem: str | None
    unknown: list[str]
    intact: bool = False


def _refuse_intact(model: ModelInspection, rows: list[_Row]) -> None:
    """Refuse to drop proven activations for a damaged column, or all of a model for one damaged part."""
    nameless = [row.index for row in rows if row.problem and row.intact]
    some = [row.index for row in rows if any(_readable(model, row.index))] if all(row.problem for row in rows) else []
    if not nameless and not some:
        return
    if nameless:
        what = f"the numbers of {len(nameless)} steps are lost (damaged {STEP}), but their activations are intact"
    else:
        reasons = "; ".join(dict.fromkeys(row.problem or "" for row in rows[:3]))
        what = f"not one of {len(rows)} steps can be kept ({reasons}), but other activations of them are intact"
    raise _IntactError(
        f"{model.storage.url}: {model.key}: {what}, so nothing of this model was changed; restore the damaged part "
        f"from a backup, or pass force=True to drop these steps"
    )


def _refuse_older(model: ModelInspection) -> None:
    """Refuse to drop proven steps that the document knows nothing of: a dead writer leaves one, a truncation is told.

    More, or one that an array's document counts, which is written after the model's, come of an older model's document.
    """
    if model.document is None or not (model.sound and model.aligned) or truncations_of(model.document):
        return
    first = index = model.committed or 0
    while _is_numbered(model, index) and all(_proven(model, index)):
        index += 1
    if index - first > (0 if model.claimed > first else 1):
        path = f"{model.key}/{DOCUMENT}"
        raise _IntactError(
            f"{model.storage.url}: {path} has {first} steps, but checksums prove {index - first} more, and none was "
            f"ever dropped: an older copy of it was put back, so nothing of this model was changed; restore the newer "
            f"one, or move this one away and repair again, which rebuilds it (force=True drops these steps)"
        )


def _is_numbered(model: ModelInspection, index: int) -> bool:
    """Whether the column of step numbers has one at this index, whatever the model's document says."""
    numbers = model.stored_column(STEP, index // COORDINATE_CHUNK)
    return not isinstance(numbers, str) and numbers[index % COORDINATE_CHUNK] >= 0


def _proven(model: ModelInspection, index: int) -> Iterator[bool]:
    """Yield for each layer whether a checksum proves its activations at this index."""
    sums = model.column(CHECKSUM, index // COORDINATE_CHUNK)
    for layer, key in enumerate(model.layer_keys.values()):
        expected = None if isinstance(sums, str) else sums[index % COORDINATE_CHUNK][layer]
        yield expected is not None and model.step_problem(key, index, expected) is None


def _readable(model: ModelInspection, index: int) -> Iterator[bool]:
    """Yield for each layer whether its chunk at this index is whole by its own checksum; another may be wrong."""
    return (model.step_problem(key, index, None) is None for key in model.layer_keys.values())


def _judge(model: ModelInspection) -> list[_Row]:
    """Look at every step that is, or could have been, committed; without a document only proven steps count."""
    rows: list[_Row] = []
    last = -1
    for index in range(model.extent):
        row = _judge_step(model, index, last)
        if row.problem is None:
            last = row.columns[STEP]
        rows.append(row)
    sure = min([model.committed or 0, *model.lengths])
    while len(rows) > sure and rows[-1].problem and not rows[-1].intact and not _numbered(rows[-1]):
        rows.pop()  # a step that was being written, not one that is lost
    return rows


def _numbered(row: _Row) -> bool:
    return row.columns[STEP] is not None and row.columns[STEP] >= 0


def _judge_step(model: ModelInspection, index: int, last: int) -> _Row:
    chunk, position = divmod(index, COORDINATE_CHUNK)
    columns: dict[str, Any] = {}
    unknown = []
    for name in STEP_COLUMNS:
        values = model.column(name, chunk)
        if isinstance(values, str) and name != STEP:
            unknown.append(name)
        missing = None if name == STEP else STEP_COLUMNS[name].unknown
        columns[name] = missing if isinstance(values, str) else values[position]
    if columns[STEP] is None or columns[STEP] <= last:
        return _Row(index, columns, [], "its step number is lost", unknown, all(_proven(model, index)))
    sums = model.column(CHECKSUM, chunk)
    checksums: list[int] = []
    for layer, (name, key) in enumerate(model.layer_keys.items()):
        expected = None if isinstance(sums, str) else sums[position][layer]
        wrong = model.step_problem(key, index, expected)
        if wrong or (expected is None and model.committed is None):
            return _Row(index, columns, [], f"layer {name!r}: {wrong or 'nothing proves it'}", unknown)
        checksums.append(checksum(model.read_step(key, index)) if expected is None else expected)
    return _Row(index, columns, checksums, None, [*unknown, *([CHECKSUM] if isinstance(sums, str) else [])])


def _stage(model: ModelInspection, rows: list[_Row]) -> None:
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


def _describe(model: ModelInspection, rows: list[_Row], rebuilt: bool) -> Iterator[Problem]:
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
