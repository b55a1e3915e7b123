"""Inspect one model's record without trusting any part of it: what verify reports and repair acts on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np

from repaudit.errors import CorruptStoreError
from repaudit.names import ATTRS, CHECKSUM, FORMAT_VERSION, LAYER, STEP
from repaudit.store.check.expected import differences, refused_by_zarr
from repaudit.store.check.problem import Problem
from repaudit.store.check.stored_chunks import StoredChunks
from repaudit.store.format.chunk_limits import MOST_COLUMN_BYTES
from repaudit.store.format.documents import DOCUMENT, chunk_key, is_chunk, read_document
from repaudit.store.format.encoding import COORDINATE_CHUNK, decode_column
from repaudit.store.format.layout import STEP_COLUMNS, coordinate_arrays
from repaudit.store.format.model_facts import steps_of, truncations_of
from repaudit.store.format.schema import unbelievable, violations
from repaudit.store.format.seal import broken_seal
from repaudit.store.format.step_columns import impossible
from repaudit.store.storage.storage import Storage

_CHECKSUM_BYTES: Final = 4
_TRIED: Final = 3
"""Steps that are read to tell which of two documents of a layer is right."""


def _but_length(array: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's document without the number of steps, in which two documents may differ."""
    return {**array, "shape": array["shape"][1:]}


class ModelInspection:
    """One model of a store, read leniently.

    `problems` lists what is wrong with its document; the arrays' documents replace a document that is lost.

    What cannot be read at the moment, for want of rights, memory, or a connection, may be whole. `certain` makes it
    raise, for who acts on what is found; else it is told like damage.
    """

    def __init__(self, storage: Storage, key: str, version: int = FORMAT_VERSION, *, certain: bool = False) -> None:
        self.storage, self.key, self.version, self.certain = storage, key, version, certain
        self._chunks = StoredChunks(storage, key, certain=certain)
        self.problems: list[str] = []
        self.sealed = True
        self._columns: dict[tuple[str, int], list[Any] | str] = {}
        self.document = self._read_document()
        self.arrays: dict[str, dict[str, Any]] = self._read_arrays()

    def _read_document(self) -> dict[str, Any] | None:
        path = f"{self.key}/{DOCUMENT}"
        try:
            document = read_document(self.storage, path)
        except CorruptStoreError as error:
            self.problems.append(str(error))
            return None
        if document is None:
            self.problems.append(f"{path} is missing")
            return None
        broken = violations("model", document, self.version)
        self.problems += [f"{path}: {violation}" for violation in broken]
        if (wrong := broken_seal(document)) is not None:
            self.problems.append(f"{path}: {wrong}")
            self.sealed = False
        return None if broken else document

    def _read_arrays(self) -> dict[str, dict[str, Any]]:
        arrays = local = self._layer_documents()
        if self.document is not None:
            arrays = dict(self.document["consolidated_metadata"]["metadata"])
            arrays |= self._settled(arrays, local)
            self.problems += self._inconsistencies(arrays)
        for name, array in arrays.items():
            reason = unbelievable(array) or refused_by_zarr(array)
            if reason is not None:
                self.problems.append(f"the metadata of {name} cannot be right: {reason}")
        return {name: array for name, array in arrays.items() if unbelievable(array) is None}

    def _layer_documents(self) -> dict[str, dict[str, Any]]:
        """Return the documents in the layers' folders, which may lag behind in length only."""
        documents = {}
        for name in self.storage.children(self.key):
            try:
                document = read_document(self.storage, f"{self.key}/{name}/{DOCUMENT}")
            except CorruptStoreError:
                continue
            except OSError:
                if self.certain:
                    raise
                continue
            if document is not None and not violations("layer", document) and unbelievable(document) is None:
                documents[name] = document
        return documents

    def _settled(
        self, arrays: Mapping[str, dict[str, Any]], local: Mapping[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Return the documents of layers that the model's document lacks, or has in a form the chunks contradict."""
        if not self.committed:
            return {}
        names = self.names
        settled = {}
        for key, array in local.items():
            if key not in arrays:
                if array["attributes"][LAYER] in names:
                    self.problems.append(f"{self.key}/{DOCUMENT} lacks the layer {array['attributes'][LAYER]!r}")
                    settled[key] = array
            elif _but_length(array) != _but_length(arrays[key]):
                self.problems.append(f"the metadata of {key} in {DOCUMENT} and in {key}/{DOCUMENT} differ")
                here, there = self._evidence(key, array, names), self._evidence(key, arrays[key], names)
                if here > there or (here == there and not self.sealed):
                    settled[key] = array
        return settled

    def _evidence(self, key: str, array: dict[str, Any], names: list[str]) -> tuple[bool, bool]:
        """Return whether checksums prove a layer's document, and whether the list of layers has its name."""
        named = array.get("attributes", {}).get(LAYER) in names
        if unbelievable(array) is not None:
            return False, named
        sums = self._chunks.read(f"{CHECKSUM}/{chunk_key(0, 0)}", MOST_COLUMN_BYTES)
        try:
            known = [] if isinstance(sums, str) else decode_column(sums, np.dtype("<u4"))
        except ValueError:
            return False, named
        steps = range(min(self.committed or 0, _TRIED))
        return any(self.step_sum(key, index, array) in known for index in steps), named

    def _inconsistencies(self, arrays: Mapping[str, dict[str, Any]]) -> Iterator[str]:
        """Yield where the layers, the list of their names and the columns of their checksums disagree."""
        layers = [array["attributes"][LAYER] for array in arrays.values() if self._is_layer(array)]
        widths = [
            size
            for name, axis in ((LAYER, 0), (CHECKSUM, 1))
            for size in arrays.get(name, {}).get("shape", [])[axis : axis + 1]
        ]
        if any(size != len(layers) for size in widths) or len(set(layers)) != len(layers):
            yield f"{self.key}/{DOCUMENT} has the layers {sorted(layers)}, but names and checksums of {widths} layers"
        elif self.committed and (names := self.names) and sorted(names) != sorted(layers):
            yield f"{self.key}/{DOCUMENT} has the layers {sorted(layers)}, but {LAYER} names {sorted(names)}"

        expected = coordinate_arrays(0, len(layers))
        for name in expected.keys() & arrays.keys():
            wrong = differences(_but_length(arrays[name]), _but_length(expected[name]))
            if wrong and name not in {CHECKSUM, LAYER}:
                yield f"the metadata of {name} cannot be right: {', '.join(wrong)} are not those of the format"

    def outdated(self) -> Iterator[Problem]:
        """Yield the arrays' documents that are not an earlier state of the model's."""
        for name, array in self.arrays.items() if self.committed else ():
            path = f"{self.key}/{name}/{DOCUMENT}"
            try:
                document = read_document(self.storage, path)
            except CorruptStoreError as error:
                yield Problem(path, "damaged_metadata", str(error))
                continue
            if document is None:
                yield Problem(path, "damaged_metadata", f"{path} is missing")
            elif unbelievable(document) is not None or _but_length(document) != _but_length(array):
                yield Problem(path, "damaged_metadata", f"{path} is not what {self.key}/{DOCUMENT} says")
            elif document["shape"][0] > array["shape"][0] and truncations_of(self.document or {}):
                yield Problem(
                    path, "leftover", f"{path} has {document['shape'][0]} steps: a truncation was not finished"
                )
            elif document["shape"][0] > array["shape"][0]:
                why = f"{path} has {document['shape'][0]} steps, {self.key}/{DOCUMENT} only {array['shape'][0]}"
                yield Problem(
                    path, "damaged_metadata", f"{why}, and none was ever dropped: an older copy of it was put back"
                )

    @property
    def claimed(self) -> int:
        """Number of steps that the document of the step numbers has, which is written after the model's."""
        try:
            document = read_document(self.storage, f"{self.key}/{STEP}/{DOCUMENT}")
        except CorruptStoreError:
            return 0
        return 0 if document is None or unbelievable(document) is not None else int(document["shape"][0])

    @property
    def lengths(self) -> set[int]:
        """The lengths that the arrays over `step` claim."""
        return {a["shape"][0] for a in self.arrays.values() if (a.get("dimension_names") or [None])[0] == STEP}

    @property
    def complete(self) -> bool:
        """Whether every coordinate of the steps is described."""
        return {CHECKSUM, LAYER, *STEP_COLUMNS} <= self.arrays.keys()

    @property
    def aligned(self) -> bool:
        """Whether every array over `step` has the committed length, and none is missing."""
        return self.complete and self.lengths == {self.committed}

    @property
    def extent(self) -> int:
        """Number of steps to check: the committed ones, or those with chunks where the documents disagree."""
        present = max((self._chunks_present(key) for key in self.layer_keys.values()), default=0)
        if self.committed is None:
            return present
        claims = self.lengths | {self.committed}
        if len(claims) == 1:
            return self.committed
        return max(min(claims), min(max(claims), max(present, self._rows_present())))

    def chunks_present(self, key: str) -> dict[int, str]:
        """Return the files of an array's chunks by their first index."""
        return {int(file.split(".")[1]): file for file in self.storage.children(f"{self.key}/{key}") if is_chunk(file)}

    def _chunks_present(self, key: str) -> int:
        return max(self.chunks_present(key), default=-1) + 1

    def _rows_present(self) -> int:
        """Return the number of rows of `step` that are not fill."""
        last = self._chunks_present(STEP) - 1
        values = self.column(STEP, last) if last >= 0 else []
        if isinstance(values, str):
            return 0
        filled = [value for value in values if value != STEP_COLUMNS[STEP].fill]
        return last * COORDINATE_CHUNK + len(filled)

    @property
    def sound(self) -> bool:
        """Whether the model's document can be trusted."""
        return not self.problems

    @property
    def committed(self) -> int | None:
        """Number of committed steps, or None without a document."""
        return None if self.document is None else int(self.document["attributes"][ATTRS]["committed"])

    @property
    def name(self) -> str | None:
        """The model's real name, or None without a document."""
        return None if self.document is None else str(self.document["attributes"][ATTRS]["name"])

    @cached_property
    def layer_keys(self) -> dict[str, str]:
        """Keys of the layers on disk, by real name, in recorded order."""
        keys = {array["attributes"][LAYER]: key for key, array in self.arrays.items() if self._is_layer(array)}
        order = self.names
        return dict(sorted(keys.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))

    @staticmethod
    def _is_layer(array: Mapping[str, Any]) -> bool:
        return LAYER in array.get("attributes", {}) and array["dimension_names"][0] == STEP

    @cached_property
    def names(self) -> list[str]:
        """The recorded names of the layers; none where their chunk cannot be read."""
        chunk = self._names_chunk
        return [] if self.names_problem or isinstance(chunk, str) else decode_column(chunk, np.dtype(object))

    @cached_property
    def names_problem(self) -> str | None:
        """What is wrong with the chunk of the layers' names, or None."""
        if isinstance(self._names_chunk, str):
            return self._names_chunk
        try:
            decode_column(self._names_chunk, np.dtype(object))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged chunk may fail anywhere in the decoder
            return str(error)
        return None

    @cached_property
    def _names_chunk(self) -> bytes | str:
        return self._chunks.read(f"{LAYER}/{chunk_key(0)}", MOST_COLUMN_BYTES)

    def column(self, name: str, chunk: int) -> list[Any] | str:
        """Return one chunk of a coordinate, or what is wrong with it; step numbers also from the model's document."""
        steps = steps_of(self.document or {}) if name == STEP and self.sound else None
        if steps is not None and chunk * COORDINATE_CHUNK < len(steps):
            part = steps[chunk * COORDINATE_CHUNK :][:COORDINATE_CHUNK]
            return part + [STEP_COLUMNS[STEP].fill] * (COORDINATE_CHUNK - len(part))
        return self.stored_column(name, chunk)

    def stored_column(self, name: str, chunk: int) -> list[Any] | str:
        """Return one chunk of a coordinate as it is stored, or what is wrong with it."""
        if (name, chunk) not in self._columns:
            self._columns[name, chunk] = self._read_column(name, chunk)
        return self._columns[name, chunk]

    def _read_column(self, name: str, chunk: int) -> list[Any] | str:
        key = f"{name}/{chunk_key(chunk, 0) if name == CHECKSUM else chunk_key(chunk)}"
        data = self._chunks.read(key, MOST_COLUMN_BYTES)
        if isinstance(data, str):
            return data
        dtype = np.dtype("<u4") if name == CHECKSUM else STEP_COLUMNS[name].numpy_dtype
        try:
            values = decode_column(data, dtype)
        except ValueError as error:
            return str(error)
        width = len(values) // COORDINATE_CHUNK
        if width * COORDINATE_CHUNK != len(values) or (name == CHECKSUM and width != len(self.layer_keys)):
            return f"it holds {len(values)} values"
        if name == CHECKSUM:
            return np.array(values).reshape(COORDINATE_CHUNK, width).tolist()
        return impossible(name, values) or values

    def chunk_name(self, name: str, index: int) -> str:
        """Return the file, within the array, that holds the chunk with this first index."""
        return chunk_key(index, *(0 for _ in self.arrays[name]["shape"][1:]))

    def raw_size(self, name: str) -> int | None:
        """Return the exact size of a stored step where the codec determines it, or None."""
        array = self.arrays[name]
        if array["attributes"].get("codec") != "raw" or array["codecs"][0]["name"] != "bytes":
            return None
        shape: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"]
        return prod(shape) * int(np.dtype(array["data_type"]).itemsize) + _CHECKSUM_BYTES

    def step_sum(self, name: str, index: int, document: dict[str, Any] | None = None) -> int | str:
        """Return the checksum of one step of one layer, reading all of it, or what is wrong with it."""
        return self._chunks.step_sum(name, index, document or self.arrays[name])

    def step_problem(self, name: str, index: int, expected: int | None) -> str | None:
        """Return what is wrong with one step of one layer, reading all of it, or None."""
        crc = self.step_sum(name, index)
        if isinstance(crc, str):
            return crc
        return None if expected is None or crc == expected else "it does not match its checksum"

    def leftovers(self) -> Iterator[str]:
        """Yield the keys of chunks beyond the committed steps."""
        committed = self.committed or 0
        for name, array in self.arrays.items():
            if array["dimension_names"][0] != STEP:
                continue
            last = -(-committed // array["chunk_grid"]["configuration"]["chunk_shape"][0])
            for file in self.storage.children(f"{self.key}/{name}"):
                if is_chunk(file) and int(file.split(".")[1]) >= last:
                    yield f"{self.key}/{name}/{file}"
