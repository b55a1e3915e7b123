"""A Zarr store that refuses what does not fit the metadata before anything is read or allocated for it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from repaudit.names import MODELS, PROBE
from repaudit.store.format.documents import DOCUMENT
from repaudit.store.format.layout import COLUMNS

_SLACK: Final = 4096
"""Bytes by which what does not compress may grow: headers and checksums."""

_BLOSC_HEADER: Final = 16


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
    """

    def __init__(self, store: Store, arrays: Mapping[str, Mapping[str, Any]], folder: Path | None = None) -> None:
        super().__init__(store)
        self.arrays, self.folder = arrays, folder

    def _with_store(self, store: Store) -> GuardedStore:
        return GuardedStore(store, self.arrays, self.folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object that may be what the metadata says."""
        array = self.arrays.get(key.rpartition("/")[0])
        if self.folder is not None:
            await asyncio.to_thread(_check_file, self.folder / key, array)
        data = await self._store.get(key, prototype, byte_range)
        if data is not None and array is not None and not key.endswith(DOCUMENT):
            _check_header(key, data, array, whole=byte_range is None)
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
    if array is None or path.name == DOCUMENT or array["data_type"] == "string":
        return
    most = 2 * _decoded(array["chunk_grid"]["configuration"]["chunk_shape"], array) + _SLACK
    if facts.st_size > most:
        raise OSError(f"{path} has {facts.st_size} bytes, expected at most {most}")


def _check_header(key: str, data: Buffer, array: Mapping[str, Any], *, whole: bool) -> None:
    """Refuse a chunk whose own header asks for more memory than its values take."""
    chunk, codecs = array["chunk_grid"]["configuration"]["chunk_shape"], array["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        if whole:
            return
        chunk, codecs = codecs[0]["configuration"]["chunk_shape"], codecs[0]["configuration"]["codecs"]
    names = [codec["name"] for codec in codecs]
    head = data[:_BLOSC_HEADER].to_bytes()
    if array["data_type"] == "string" and whole and int.from_bytes(head[:4], "little") > prod(chunk):
        raise OSError(f"{key} holds more texts than its chunk of {chunk}")
    if "blosc" not in names:
        return
    if (whole or _is_inner(head)) and int.from_bytes(head[4:8], "little") > _decoded(chunk, array):
        raise OSError(
            f"{key} would take {int.from_bytes(head[4:8], 'little')} bytes, expected at most {_decoded(chunk, array)}"
        )


def _is_inner(head: bytes) -> bool:
    """Return whether a part of a shard is a chunk, and not the index: it begins with the version of blosc's format."""
    return head[:1] == b"\x02"


def _decoded(chunk: list[int], array: Mapping[str, Any]) -> int:
    return prod(chunk) * int(np.dtype(array["data_type"]).itemsize)
