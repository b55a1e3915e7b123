"""What the commit protocol needs of a store's storage: atomic puts, exclusive creates, batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

Parts = Sequence[bytes | memoryview]
"""The pieces of one object, written one after the other without being joined in memory."""

TEMPORARY: Final = ".partial"
"""Ending of files that a put has not finished."""


class Storage(ABC):
    """A flat map from keys to bytes: what the commit protocol needs, and nothing else."""

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the bytes under `key`, or None where there are none."""

    @abstractmethod
    def put(self, key: str, parts: Parts) -> None:
        """Write one object so that a reader sees the old bytes or the new ones, never a mixture."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if there is none; return whether it was written."""

    @abstractmethod
    def put_many(self, objects: Mapping[str, Parts]) -> None:
        """Write several objects, each atomic, in any order; all of them are safe when this returns."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; a missing one is not an error."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove every object below `prefix`."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys of all objects below `prefix`."""

    @abstractmethod
    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names directly below `prefix`."""

    def links(self) -> Iterator[str]:
        """Return the keys below the root that are symbolic links; an object store has none."""
        yield from ()

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the length in bytes of the object under `key`, or None where there is none."""
