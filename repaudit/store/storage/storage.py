"""What the commit protocol needs of a store's storage: atomic puts, exclusive creates, batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

Parts = Sequence[bytes | memoryview]
"""The pieces of one object, written one after the other without being joined in memory."""

TEMPORARY: Final = ".partial"
"""Ending of files that a put has not finished."""


def is_staged(name: str) -> bool:
    """Return whether a file or folder of this name is one that a put has not finished; others may end like it.

    Examples
    --------
    >>> is_staged(".0123-4-5-6-abc.partial"), is_staged("thesis.partial")
    (True, False)
    """
    return name.startswith(".") and name.endswith(TEMPORARY)


class Fence(Protocol):
    """The right to change what lies below `home`, which a writer that was stopped may have lost without knowing."""

    home: str

    def check(self) -> None:
        """Raise LeaseError if the right is lost."""


class ChangedError(OSError):
    """Somebody else changed an object since it was noted; read it again."""


class TooLongError(ValueError):
    """An object is longer than what it stands for can be."""


class Storage(ABC):
    """A flat map from keys to bytes: what the commit protocol needs, and nothing else.

    A change with a `fence` happens only while the fence's right is held. One that is carried out late, because its
    process was stopped between check and write or its request was slow, changes nothing that the next holder wrote.
    """

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the bytes under `key`, or None where there are none."""

    @abstractmethod
    def put(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Write one object so that a reader sees the old bytes or the new ones, never a mixture."""

    def get_short(self, key: str, most: int) -> bytes | None:
        """Return the bytes under `key`, unless there are more of them than so many, which raises TooLongError."""
        size = self.size(key)
        if size is not None and size > most:
            raise TooLongError(f"it has {size} bytes, expected at most {most}")
        return None if size is None else self.get(key)

    def note(self, key: str) -> None:  # noqa: B027 - where a fence is enough, nothing needs to be noted
        """Note the present state of an object, before it is read, as the one that the next `swap` replaces."""

    def swap(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Replace the noted state of an object, or raise ChangedError if it is no longer that."""
        self.put(key, parts, fence)

    def secure(self, key: str, fence: Fence | None = None) -> None:  # noqa: B027 - what a service holds is safe
        """Make an object safe that is there, but of which it is unknown whether its last write was."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if there is none; return whether it was written."""

    @abstractmethod
    def put_many(self, objects: Mapping[str, Parts], fence: Fence | None = None) -> None:
        """Write several objects, each atomic, in any order; all of them are safe when this returns."""

    @abstractmethod
    def delete(self, key: str, fence: Fence | None = None) -> None:
        """Remove one object; a missing one is not an error."""

    @abstractmethod
    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        """Remove every object below `prefix`."""

    def exclusive(self, home: str) -> AbstractContextManager[None]:
        """Keep fenced deletions below `home` out while a lease there changes hands."""
        return nullcontext()

    def discard_staged(self, home: str) -> None:  # noqa: B027 - most storages stage nothing
        """Undo what earlier holders of `home` prepared and did not carry out, so that they no longer can."""

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
