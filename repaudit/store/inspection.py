"""Look into one model's record without trusting any part of it: what verification reports and repair acts on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.buffer.cpu import Buffer

from repaudit.errors import CorruptStoreError
from repaudit.names import ATTRS, CHECKSUM, LAYER, STEP
from repaudit.schema import unbelievable, violations
from repaudit.store.encoding import COORDINATE_CHUNK, checksum, decode_column
from repaudit.store.layout import DOCUMENT, STEP_COLUMNS, chunk_key, dump
from repaudit.store.root import read_document
from repaudit.store.storage import Storage

_CHECKSUM_BYTES: Final = 4


class ModelInspection:
    """One model of a store, read leniently.

    `faults` lists what is wrong with its document; the arrays' own documents stand in for a document that is lost.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key = storage, key
        self.faults: list[str] = []
        self._columns: dict[tuple[str, int], list[Any] | str] = {}
        self.document = self._read_document()
        self.arrays: dict[str, dict[str, Any]] = self._read_arrays()

    def _read_document(self) -> dict[str, Any] | None:
        place = f"{self.key}/{DOCUMENT}"
        try:
            document = read_document(self.storage, place)
        except CorruptStoreError as error:
            self.faults.append(str(error))
            return None
        if document is None:
            self.faults.append(f"{place} is missing")
            return None
        found = violations("model", document)
        self.faults += [f"{place}: {violation}" for violation in found]
        return None if found else document

    def _read_arrays(self) -> dict[str, dict[str, Any]]:
        if self.document is not None:
            arrays = dict(self.document["consolidated_metadata"]["metadata"])
        else:
            arrays = {}
            for name in self.storage.children(self.key):
                try:
                    document = read_document(self.storage, f"{self.key}/{name}/{DOCUMENT}")
                except (CorruptStoreError, OSError):
                    continue
                if document is not None and not violations("layer", document):
                    arrays[name] = document
        for name, array in arrays.items():
            reason = unbelievable(array)
            if reason is not None:
                self.faults.append(f"the metadata of {name} cannot be right: {reason}")
        return {name: array for name, array in arrays.items() if unbelievable(array) is None}

    @property
    def sound(self) -> bool:
        """Whether the model's document can be trusted."""
        return not self.faults

    @property
    def committed(self) -> int | None:
        """Number of committed steps, or None where no document tells."""
        return None if self.document is None else int(self.document["attributes"][ATTRS]["committed"])

    @cached_property
    def layer_keys(self) -> dict[str, str]:
        """Keys of the layers on disk, by real name, in recorded order."""
        found = {array["attributes"][LAYER]: key for key, array in self.arrays.items() if self._is_layer(array)}
        order = self._names()
        return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))

    @staticmethod
    def _is_layer(array: Mapping[str, Any]) -> bool:
        return LAYER in array.get("attributes", {}) and array["dimension_names"][0] == STEP

    def _names(self) -> list[str]:
        data = self.storage.get(f"{self.key}/{LAYER}/{chunk_key(0)}")
        try:
            return [] if data is None else decode_column(data, np.dtype(object))
        except ValueError:
            return []

    def column(self, name: str, chunk: int) -> list[Any] | str:
        """Give one chunk of a coordinate, or what is wrong with it."""
        if (name, chunk) not in self._columns:
            self._columns[name, chunk] = self._read_column(name, chunk)
        return self._columns[name, chunk]

    def _read_column(self, name: str, chunk: int) -> list[Any] | str:
        key = f"{name}/{chunk_key(chunk, 0) if name == CHECKSUM else chunk_key(chunk)}"
        data = self.storage.get(f"{self.key}/{key}")
        if data is None:
            return "missing"
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
        return values

    def chunk_name(self, name: str, index: int) -> str:
        """Give the file, within the array, that holds the chunk with this first index."""
        return chunk_key(index, *(0 for _ in self.arrays[name]["shape"][1:]))

    def raw_size(self, name: str) -> int | None:
        """Give the exact size of a stored step where the codec fixes it."""
        array = self.arrays[name]
        if array["attributes"].get("codec") != "raw" or array["codecs"][0]["name"] != "bytes":
            return None
        shape: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"]
        return prod(shape) * int(np.dtype(array["data_type"]).itemsize) + _CHECKSUM_BYTES

    def read_step(self, name: str, index: int) -> NDArray[Any]:
        """Read one step of one array through Zarr's own codecs; anything wrong with it raises."""
        file = self.chunk_name(name, index)
        data = self.storage.get(f"{self.key}/{name}/{file}")
        if data is None:
            raise FileNotFoundError(f"{self.key}/{name}/{file} is missing")
        array = {**self.arrays[name], "shape": [1, *self.arrays[name]["shape"][1:]]}
        objects: dict[str, Any] = {
            DOCUMENT: Buffer.from_bytes(dump(array)),
            self.chunk_name(name, 0): Buffer.from_bytes(data),
        }
        values = zarr.open_array(zarr.storage.MemoryStore(objects), mode="r")[0]
        return np.ascontiguousarray(values)

    def step_fault(self, name: str, index: int, expected: int | None) -> str | None:
        """Say what is wrong with one step of one layer, reading it whole, or None."""
        try:
            found = checksum(self.read_step(name, index))
        except FileNotFoundError:
            return "missing"
        except Exception as error:  # noqa: BLE001 - a damaged chunk may fail in any decoder
            return f"it cannot be decoded ({error})"
        return None if expected is None or found == expected else "it does not match its checksum"

    def leftovers(self) -> Iterator[str]:
        """Give the keys of chunks beyond the committed steps."""
        committed = self.committed or 0
        for name, array in self.arrays.items():
            if array["dimension_names"][0] != STEP:
                continue
            last = -(-committed // array["chunk_grid"]["configuration"]["chunk_shape"][0])
            for file in self.storage.children(f"{self.key}/{name}"):
                index = file.split(".")[1] if file.startswith("c.") else ""
                if index.isdigit() and int(index) >= last:
                    yield f"{self.key}/{name}/{file}"
