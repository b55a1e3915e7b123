"""A store as it was when it was opened: the models' documents, and the numbers of their steps, of one version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class PinnedStore(WrapperStore[Store]):
    """A Zarr store in which some objects are what they were, whatever happens to them meanwhile.

    The numbers of the steps come from the models' documents: a reader needs no chunk of theirs, which may be damaged,
    or of another moment.
    """

    def __init__(self, store: Store, pinned: Mapping[str, bytes]) -> None:
        super().__init__(store)
        self.pinned = dict(pinned)

    def _with_store(self, store: Any) -> Self:
        return type(self)(store, self.pinned)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a pinned object, or one of the store."""
        if byte_range is None and key in self.pinned:
            return prototype.buffer.from_bytes(self.pinned[key])
        return await self._store.get(key, prototype, byte_range)
