"""The chunks of one model, read without trusting them: what they hold, or what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer

from repaudit.store.check.expected import refuse_without_threads
from repaudit.store.format.chunk_limits import HEADER, announces_too_much, most_stored
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump
from repaudit.store.format.encoding import checksum
from repaudit.store.storage.storage import Storage, TooLongError


class StoredChunks:
    """The chunks below the key of a model.

    What cannot be read at the moment, for want of rights, memory, or a connection, may be whole. `certain` makes it
    raise an OSError, for who acts on what is found; else it is told like damage.
    """

    def __init__(self, storage: Storage, key: str, *, certain: bool) -> None:
        self.storage, self.key, self.certain = storage, key, certain

    def read(self, key: str, most: int) -> bytes | str:
        """Return a chunk, or what is wrong with it: missing, longer than so many bytes, or unreadable now."""
        try:
            data = self.storage.get_short(f"{self.key}/{key}", most)
        except TooLongError as error:
            return str(error)
        except (OSError, MemoryError) as error:
            return self._unread(key, f"it cannot be read now ({error})", error)
        return "missing" if data is None else data

    def step_sum(self, name: str, index: int, document: Mapping[str, Any]) -> int | str:
        """Return the checksum of one step of one layer, of which the array's document is given, or what is wrong."""
        zeros = [0 for _ in document["shape"][1:]]
        key = f"{name}/{chunk_key(index, *zeros)}"
        data = self.read(key, most_stored(document))
        if isinstance(data, str):
            return data
        if (wrong := announces_too_much(data[:HEADER], document, whole=True)) is not None:
            return f"it cannot be decoded ({wrong})"
        array = {**document, "shape": [1, *document["shape"][1:]]}
        objects: dict[str, Any] = {
            DOCUMENT: Buffer.from_bytes(dump(array)),
            chunk_key(0, *zeros): Buffer.from_bytes(data),
        }
        try:  # through Zarr's own codecs
            return checksum(np.ascontiguousarray(zarr.open_array(zarr.storage.MemoryStore(objects), mode="r")[0]))
        except MemoryError as error:
            return self._unread(key, f"there is no memory for it now ({error})", error)
        except Exception as error:  # noqa: BLE001 - a damaged chunk may fail in any decoder
            refuse_without_threads(error)
            return f"it cannot be decoded ({error})"

    def _unread(self, key: str, why: str, error: BaseException) -> str:
        if self.certain:
            raise OSError(f"{self.key}/{key}: {why}") from error
        return why
