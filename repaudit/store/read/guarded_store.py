"""A Zarr store that refuses what does not fit the metadata before anything is read or allocated for it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from repaudit.names import MODELS, PROBE
from repaudit.store.format.chunk_limits import HEADER, announces_too_much, most_stored
from repaudit.store.format.documents import DOCUMENT
from repaudit.store.format.layout import COLUMNS
from repaudit.store.storage.storage import Storage


class GuardedStore(WrapperStore[Store]):
    """A store for reading, in which only the groups and chunks of repaudit are seen.

    Parameters
    ----------
    store : Store
        Where the objects are.
    arrays : mapping
        The documents of the models' arrays, by key.
    folder : Path, optional
        Where the store is, if it is a local one.
    archive : Storage, optional
        What it is in, if that knows the size of what it holds packed.
    """

    def __init__(
        self,
        store: Store,
        arrays: Mapping[str, Mapping[str, Any]],
        folder: Path | None = None,
        archive: Storage | None = None,
    ) -> None:
        super().__init__(store)
        self.arrays, self.folder, self.archive = arrays, folder, archive

    def _with_store(self, store: Store) -> GuardedStore:
        return GuardedStore(store, self.arrays, self.folder, self.archive)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object that may be what the metadata says."""
        array = self.arrays.get(key.rpartition("/")[0])
        if self.folder is not None:
            await asyncio.to_thread(_check_file, self.folder / key, array)
        if self.archive is not None and array is not None and not key.endswith(DOCUMENT):
            size: int | None = await asyncio.to_thread(self.archive.size, key)
            _check_size(key, size or 0, array)
        data = await self._store.get(key, prototype, byte_range)
        if data is not None and array is not None and not key.endswith(DOCUMENT):
            wrong = announces_too_much(data[:HEADER].to_bytes(), array, whole=byte_range is None)
            if wrong is not None:
                raise OSError(f"{key}: {wrong}")
        return data

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Return the names below a prefix that belong to the store."""
        async for name in self._store.list_dir(prefix):
            if _belongs(prefix.strip("/"), name, self.arrays):
                yield name


def _belongs(prefix: str, name: str, arrays: Mapping[str, Any]) -> bool:
    if not prefix:
        return name in {DOCUMENT, PROBE, MODELS, *COLUMNS}
    if prefix == MODELS:
        return name == DOCUMENT or any(key.startswith(f"{MODELS}/{name}/") for key in arrays)
    return True


def _check_file(path: Path, array: Mapping[str, Any] | None) -> None:
    """Refuse what is no file, and a chunk that is longer than its values can be."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(facts.st_mode):
        return
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is not a regular file")
    if array is not None and path.name != DOCUMENT:
        _check_size(str(path), facts.st_size, array)


def _check_size(name: str, size: int, array: Mapping[str, Any]) -> None:
    if size > (most := most_stored(array)):
        raise OSError(f"{name} has {size} bytes, expected at most {most}")
