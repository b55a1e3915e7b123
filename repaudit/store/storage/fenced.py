"""A storage as the holder of a lease may use it: every change is fenced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from repaudit.store.storage.storage import Fence, Parts, Storage


class Fenced(Storage):
    """A storage in which every change needs a fence that still holds."""

    def __init__(self, storage: Storage, fence: Fence) -> None:
        self.storage, self.fence, self.url = storage, fence, storage.url

    def get(self, key: str) -> bytes | None:
        """Return the bytes under `key`, or None where there are none."""
        return self.storage.get(key)

    def put(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Write one object."""
        self.storage.put(key, parts, fence or self.fence)

    def note(self, key: str) -> None:
        """Note the present state of an object, before it is read, as the one that the next `swap` replaces."""
        self.storage.note(key)

    def swap(self, key: str, parts: Parts, fence: Fence | None = None) -> None:
        """Replace the noted state of an object, or raise ChangedError if it is no longer that."""
        self.storage.swap(key, parts, fence or self.fence)

    def secure(self, key: str, fence: Fence | None = None) -> None:
        """Make an object safe that is there, but of which it is unknown whether its last write was."""
        self.storage.secure(key, fence or self.fence)

    def create(self, key: str, data: bytes) -> bool:
        """Write one object only if there is none; return whether it was written."""
        self.fence.check()
        return self.storage.create(key, data)

    def put_many(self, objects: Mapping[str, Parts], fence: Fence | None = None) -> None:
        """Write several objects; all of them are safe when this returns."""
        self.storage.put_many(objects, fence or self.fence)

    def delete(self, key: str, fence: Fence | None = None) -> None:
        """Remove one object, if it exists."""
        self.storage.delete(key, fence or self.fence)

    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        """Remove every object below `prefix`."""
        self.storage.delete_prefix(prefix, fence or self.fence)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Return the keys of all objects below `prefix`."""
        return self.storage.keys(prefix)

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names directly below `prefix`."""
        return self.storage.children(prefix)

    def links(self) -> Iterator[str]:
        """Return the keys that are symbolic links."""
        return self.storage.links()

    def size(self, key: str) -> int | None:
        """Return the length in bytes of the object under `key`, or None where there is none."""
        return self.storage.size(key)
