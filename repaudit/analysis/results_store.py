"""The Zarr store that results are written to: many small files, which threads of their own would make slower."""

from __future__ import annotations

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore


class ResultsStore(LocalStore):
    """A folder whose files are read and written where they are asked for, not each in another thread.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> import xarray as xr
    >>> folder = mkdtemp()
    >>> _ = xr.Dataset({"a": ("x", [1, 2])}).to_zarr(ResultsStore(folder), zarr_format=3, consolidated=False)
    >>> xr.open_zarr(folder, consolidated=False)["a"].values.tolist()
    [1, 2]
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file, or a part of it; None where there is none."""
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file, whole or not at all."""
        self.set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file, if there is none."""
        if not (self.root / key).exists():
            self.set_sync(key, value)
