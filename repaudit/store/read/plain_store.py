"""A Zarr store over a storage that reads one object at a time: archives, and the root of a file system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from threading import Lock
from typing import Any, Final

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from repaudit.store.storage.storage import Storage

_ONE: Final = Lock()
"""An archive has one place at which it is read."""


class PlainStore(Store):
    """The objects of a storage, for reading only."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, storage: Storage) -> None:
        super().__init__(read_only=True)
        self.storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainStore) and other.storage.url == self.storage.url

    def __hash__(self) -> int:
        return hash(self.storage.url)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object, or a part of it."""
        data = await asyncio.to_thread(self._read, key)
        return None if data is None else prototype.buffer.from_bytes(_part(data, byte_range))

    def _read(self, key: str) -> bytes | None:
        with _ONE:
            return self.storage.get(key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        return self._read(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: nothing is written here."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: nothing is deleted here."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Return all keys."""
        for key in self._listed(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Return the keys below a prefix."""
        for key in self._listed(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Return the names directly below a prefix."""
        with _ONE:
            names = self.storage.children(prefix.rstrip("/"))
        for name in names:
            yield name

    def _listed(self, prefix: str) -> Any:
        with _ONE:
            return list(self.storage.keys(prefix.rstrip("/")))


def _part(data: bytes, request: ByteRequest | None) -> bytes:
    match request:
        case RangeByteRequest():
            return data[request.start : request.end]
        case OffsetByteRequest():
            return data[request.offset :]
        case SuffixByteRequest():
            return data[-request.suffix :]
    return data
