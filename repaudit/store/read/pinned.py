"""A store as it was when it was opened: the models' documents, and the numbers of their steps, of one version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from repaudit.errors import StoreError
from repaudit.names import ATTRS, CHECKSUM, LAYER, MODELS, STEP
from repaudit.store.format.documents import DOCUMENT, chunk_key, is_chunk
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.model_facts import era_of
from repaudit.store.format.schema import MOST_STEPS

_CRC_BYTES: Final = 4


class PinnedStore(WrapperStore[Store]):
    """A Zarr store in which some objects are what they were, whatever happens to them meanwhile.

    The numbers of the steps come from the models' documents: a reader needs no chunk of theirs, which may be damaged,
    or of another moment. Activations are not held, but those of a step that was dropped and recorded anew are refused:
    it is another one.

    Parameters
    ----------
    store : Store
    pinned : mapping
        Objects by key.
    """

    def __init__(self, store: Store, pinned: Mapping[str, bytes]) -> None:
        super().__init__(store)
        self.pinned = dict(pinned)
        self._known: dict[str, tuple[bytes, int | None]] = {}
        self._columns: dict[str, dict[str, int]] = {}

    def _with_store(self, store: Any) -> Self:
        return type(self)(store, self.pinned)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a pinned object, or one of the store."""
        if byte_range is None and key in self.pinned:
            return prototype.buffer.from_bytes(self.pinned[key])
        data = await self._store.get(key, prototype, byte_range)
        path, _, name = key.rpartition("/")
        model, _, layer = path.rpartition("/")
        if model.startswith(f"{MODELS}/") and f"{model}/{DOCUMENT}" in self.pinned and is_chunk(name):
            index = int(name.split(".")[1])
            if data is None or byte_range is not None or not self._proven(model, layer, index, data):
                await self._refuse_another(model, key, index)  # after reading: what was read is not younger
        return data

    def _proven(self, model: str, layer: str, index: int, data: Buffer) -> bool:
        """Return whether a chunk ends with the checksum of its step, as one does that is not compressed."""
        if model not in self._columns:
            self._columns[model] = _columns(self.pinned[f"{model}/{DOCUMENT}"])
        column = self._columns[model].get(layer)
        chunk = self.pinned.get(f"{model}/{CHECKSUM}/{chunk_key(index // COORDINATE_CHUNK, 0)}")
        if column is None or chunk is None:
            return False
        return _row(chunk, index)[_CRC_BYTES * column :][:_CRC_BYTES] == data[-_CRC_BYTES:].to_bytes()

    async def _refuse_another(self, model: str, key: str, index: int) -> None:
        """Refuse a step that is no longer the one at the time of opening: of another era, with other checksums."""
        committed = await self._committed_since(model)
        if committed is None:
            return
        chunk = f"{model}/{CHECKSUM}/{chunk_key(index // COORDINATE_CHUNK, 0)}"
        before, now = self.pinned.get(chunk), await self._object(chunk) if index < committed else None
        if before is None or now is None or _row(before, index) != _row(now, index):
            raise StoreError(
                f"{key}: the record was truncated, replaced or repaired since this tree was opened, and this step is "
                "another one now, or gone: open the store again"
            )

    async def _committed_since(self, model: str) -> int | None:
        """Return how many steps a record of another era has; None while it is that of the time of opening."""
        path = f"{model}/{DOCUMENT}"
        data = await self._object(path)
        if data is None:
            return 0
        if self._known.get(model, (None, None))[0] != data:
            self._known[model] = data, _committed(self.pinned[path], data)
        return self._known[model][1]

    async def _object(self, key: str) -> bytes | None:
        data = await self._store.get(key, default_buffer_prototype())
        return None if data is None else data.to_bytes()


def _columns(document: bytes) -> dict[str, int]:
    """Return the place of each layer, by key, among the checksums of a step."""
    arrays = json.loads(document)["consolidated_metadata"]["metadata"]
    layers = [key for key, array in arrays.items() if LAYER in array["attributes"]]
    return {key: place for place, key in enumerate(key for key in layers if arrays[key]["dimension_names"][0] == STEP)}


def _committed(before: bytes, now: bytes) -> int | None:
    try:
        document = json.loads(now)
        same = era_of(document) == era_of(json.loads(before))
        return None if same else int(document["attributes"][ATTRS]["committed"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # damaged: the checksums alone can tell
        return MOST_STEPS


def _row(chunk: bytes, index: int) -> bytes:
    """Return the checksums of one step's layers, from a chunk of them."""
    width = (len(chunk) - len(chunk) % COORDINATE_CHUNK) // COORDINATE_CHUNK
    start = index % COORDINATE_CHUNK * width
    return chunk[start : start + width]
