"""A store as it was when it was opened: the models' documents, and the numbers of their steps, of one version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from repaudit.errors import StoreError
from repaudit.names import ATTRS, CHECKSUM, LAYER, MODELS, STEP
from repaudit.store.format.documents import DOCUMENT, chunk_key, is_chunk
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.schema import MOST_STEPS

_CRC_BYTES: Final = 4


class _Layer(NamedTuple):
    """The place of a layer among the checksums of a step, and whether its chunks are the values and their checksum."""

    place: int
    is_plain: bool


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
        self._known_layers: dict[str, dict[str, _Layer]] = {}
        self._seen: dict[str, tuple[bytes | None, int, dict[int, bytes | None]]] = {}

    def _with_store(self, store: Any) -> Self:
        return type(self)(store, self.pinned)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a pinned object, or one of the store."""
        if byte_range is None and key in self.pinned:
            return prototype.buffer.from_bytes(self.pinned[key])
        data = await self._store.get(key, prototype, byte_range)
        path, _, name = key.rpartition("/")
        model, _, layer = path.rpartition("/")
        if not is_chunk(name) or layer not in self._layers(model):
            return data
        index = int(name.split(".")[1])
        if data is None:
            is_right = False
        elif byte_range is None and self._layers(model)[layer].is_plain:
            is_right = self._is_proven(model, layer, index, data)
        else:
            is_right = await self._is_same(model, index)
        if not is_right:
            raise StoreError(
                f"{key} is missing, or does not match its checksum of the time when this tree was opened: the record "
                "was truncated, replaced or repaired since (open the store again), or this chunk is damaged (run "
                "`repaudit verify --data`)"
            )
        return data

    def _layers(self, model: str) -> dict[str, _Layer]:
        """Return the layers of a model by key; none of what is no model."""
        document = self.pinned.get(f"{model}/{DOCUMENT}") if model.startswith(f"{MODELS}/") else None
        if document is None:
            return {}
        if model not in self._known_layers:
            self._known_layers[model] = _layers_of(document)
        return self._known_layers[model]

    def _sums(self, model: str, index: int) -> bytes | None:
        """Return the checksums of a step's layers at the time of opening; None where they were damaged."""
        chunk = self.pinned.get(f"{model}/{CHECKSUM}/{chunk_key(index // COORDINATE_CHUNK, 0)}")
        return None if chunk is None else _row(chunk, index)

    def _is_proven(self, model: str, layer: str, index: int, data: Buffer) -> bool:
        """Return whether a chunk ends with the checksum of its step, as one does that is neither packed nor split."""
        sums, place = self._sums(model, index), self._layers(model)[layer].place
        return sums is None or sums[_CRC_BYTES * place :][:_CRC_BYTES] == data[-_CRC_BYTES:].to_bytes()

    async def _is_same(self, model: str, index: int) -> bool:
        """Return whether a step is still in the record, with the checksums of the time of opening.

        It is asked after a chunk was read: what was read is not younger. While the document stays, so do the checksums.
        """
        document = await self._object(f"{model}/{DOCUMENT}")
        known, committed, chunks = self._seen.get(model, (None, 0, {}))
        if document is None or document != known:
            committed, chunks = _committed(document), {}
            self._seen[model] = document, committed, chunks
        chunk = index // COORDINATE_CHUNK
        if chunk not in chunks:
            chunks[chunk] = await self._object(f"{model}/{CHECKSUM}/{chunk_key(chunk, 0)}")
        sums, now = self._sums(model, index), chunks[chunk]
        return index < committed and (sums is None or (now is not None and sums == _row(now, index)))

    async def _object(self, key: str) -> bytes | None:
        data = await self._store.get(key, default_buffer_prototype())
        return None if data is None else data.to_bytes()


def _layers_of(document: bytes) -> dict[str, _Layer]:
    arrays = json.loads(document)["consolidated_metadata"]["metadata"]
    layers = [key for key, array in arrays.items() if LAYER in array["attributes"]]
    steps = [key for key in layers if arrays[key]["dimension_names"][0] == STEP]
    plain = ["bytes", "crc32c"]
    return {key: _Layer(i, [one["name"] for one in arrays[key]["codecs"]] == plain) for i, key in enumerate(steps)}


def _committed(document: bytes | None) -> int:
    """Return how many steps a record has now; of a damaged document the checksums alone can tell."""
    if document is None:
        return 0
    try:
        return int(json.loads(document)["attributes"][ATTRS]["committed"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return MOST_STEPS


def _row(chunk: bytes, index: int) -> bytes:
    """Return the checksums of one step's layers, from a chunk of them."""
    width = (len(chunk) - len(chunk) % COORDINATE_CHUNK) // COORDINATE_CHUNK
    start = index % COORDINATE_CHUNK * width
    return chunk[start : start + width]
