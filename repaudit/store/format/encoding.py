"""How one step of one layer becomes one object: codec presets, chunk grid, checksums.

The encoders here write what the Zarr codecs named in the metadata read: ``bytes``, ``blosc``, ``crc32c`` and
``sharding_indexed``. With the ``raw`` preset the object is the array's own buffer and its checksum, so nothing is
copied on the way to the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Final, Literal, TypeAlias

import google_crc32c
import numpy as np
from numcodecs.bitround import BitRound
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from repaudit.errors import LayoutError
from repaudit.store.storage.storage import Parts

CHUNK_BYTES: Final = 16 * 2**20
"""A step larger than this is split into chunks within one shard."""

COORDINATE_CHUNK: Final = 1024
"""Steps in one chunk of a coordinate; a chunk per step would make opening thousands of steps very slow."""

CodecName: TypeAlias = Literal["auto", "raw", "compact", "lossy"]
PRESETS: Final = ("raw", "compact", "lossy")

STORED_DTYPES: Final = {"float16": "float16", "float32": "float32", "float64": "float64", "bfloat16": "float32"}
"""Source dtype to the dtype on disk; Zarr has no bfloat16, and float32 holds each of its values exactly."""

_MANTISSA_BITS: Final = {"float16": 10, "float32": 23, "float64": 52}
_BLOSC: Final = {"cname": "zstd", "clevel": 3}
_CRC_BYTES: Final = 4


@dataclass(frozen=True)
class Codec:
    """A codec preset, and for ``lossy`` the number of mantissa bits kept.

    ``raw`` stores the buffer and its CRC-32C; ``compact`` compresses losslessly (blosc zstd with byte shuffle);
    ``lossy`` first rounds the mantissa to `keepbits` bits. ``auto`` is ``raw``, but ``compact`` for bfloat16, whose
    float32 image is half zeros.
    """

    preset: str
    keepbits: int | None = None

    @classmethod
    def choose(cls, preset: CodecName, source_dtype: str, keepbits: int | None = None) -> Codec:
        """Settle the preset for one layer."""
        asked = preset
        if preset == "auto":
            preset = "compact" if source_dtype == "bfloat16" else "raw"
        if preset not in PRESETS:
            raise LayoutError(f"codec: expected one of 'auto', {', '.join(map(repr, PRESETS))}, found {preset!r}")
        if preset != "lossy":
            if keepbits is not None:
                raise LayoutError(f"keepbits={keepbits} only goes with codec 'lossy', found codec {asked!r}")
            return cls(preset)
        bits = _MANTISSA_BITS[STORED_DTYPES[source_dtype]]
        keepbits = 10 if keepbits is None else keepbits
        if not 1 <= keepbits <= bits:
            raise LayoutError(f"keepbits={keepbits} for {source_dtype}: expected 1 to {bits}")
        return cls("lossy", keepbits)

    @property
    def compresses(self) -> bool:
        """Whether chunks go through blosc."""
        return self.preset != "raw"

    def metadata(self, itemsize: int) -> list[dict[str, Any]]:
        """Return the Zarr v3 codec chain of one chunk."""
        chain: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if self.compresses:
            shuffle = {"shuffle": "shuffle", "typesize": itemsize, "blocksize": 0}
            chain.append({"name": "blosc", "configuration": {**_BLOSC, **shuffle}})
        return [*chain, {"name": "crc32c"}]


@dataclass(frozen=True)
class StepGrid:
    """The chunks of one step: one chunk if it is small, else equal runs of samples within one shard."""

    shape: tuple[int, ...]
    rows: int
    chunks: int

    @classmethod
    def fit(cls, shape: tuple[int, ...], itemsize: int) -> StepGrid:
        """Choose the number of samples per chunk, for chunks of at most `CHUNK_BYTES`."""
        row_bytes = prod(shape[1:]) * itemsize
        most = max(1, CHUNK_BYTES // row_bytes)
        chunks = ceil(shape[0] / most)
        return cls(shape, ceil(shape[0] / chunks), chunks)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The part of the array that one chunk covers."""
        return (1, self.rows, *self.shape[1:])

    @property
    def object_shape(self) -> tuple[int, ...]:
        """The part of the array that one stored object covers: a chunk, or a shard of them."""
        return (1, self.rows * self.chunks, *self.shape[1:])

    def metadata(self, codec: Codec, itemsize: int) -> list[dict[str, Any]]:
        """Return the Zarr v3 codec chain of one stored object."""
        chain = codec.metadata(itemsize)
        if self.chunks == 1:
            return chain
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": list(self.chunk_shape), "codecs": chain, "index_codecs": index}
        return [{"name": "sharding_indexed", "configuration": {**sharding, "index_location": "end"}}]


def checksum(data: NDArray[Any] | bytes) -> int:
    """Return the CRC-32C of a contiguous buffer.

    Examples
    --------
    >>> hex(checksum(b"123456789"))
    '0xe3069283'
    """
    return int(google_crc32c.value(data))


def _crc_bytes(value: int) -> bytes:
    return value.to_bytes(_CRC_BYTES, "little")


def round_mantissa(values: NDArray[Any], codec: Codec) -> NDArray[Any]:
    """Round to the codec's mantissa bits (to nearest, ties to even); NaN and infinities stay what they are."""
    if codec.keepbits is None:
        return values
    rounded: NDArray[Any] = np.asarray(BitRound(codec.keepbits).encode(values)).view(values.dtype).reshape(values.shape)
    # Rounding the bits of a NaN can make it a number, and those of the largest numbers an infinity.
    sound = np.isfinite(values) & np.isfinite(rounded)
    return rounded if sound.all() else np.where(sound, rounded, values)


def encode_step(values: NDArray[Any], grid: StepGrid, codec: Codec) -> tuple[list[Any], int]:
    """Encode one step of one layer.

    Parameters
    ----------
    values : ndarray (sample[, token], feature)
        C-contiguous, little-endian, in the dtype on disk, already rounded where the codec rounds.

    Returns
    -------
    (parts, crc)
        The pieces of the stored object, and the CRC-32C of the values themselves, whatever the codec.
    """
    total = checksum(values)
    if grid.chunks == 1:
        return _encode_chunk(values, codec, total), total
    parts: list[Any] = []
    entries: list[tuple[int, int]] = []
    offset = 0
    for start in range(0, grid.shape[0], grid.rows):
        chunk = _encode_chunk(_padded(values[start : start + grid.rows], grid.rows), codec)
        length = sum(memoryview(part).nbytes for part in chunk)
        entries.append((offset, length))
        parts += chunk
        offset += length
    absent = (2**64 - 1, 2**64 - 1)
    index = np.array(entries + [absent] * (grid.chunks - len(entries)), dtype="<u8").tobytes()
    return [*parts, index, _crc_bytes(checksum(index))], total


def _encode_chunk(values: NDArray[Any], codec: Codec, known: int | None = None) -> list[Any]:
    if codec.compresses:
        data = Blosc(**_BLOSC, shuffle=Blosc.SHUFFLE, typesize=values.itemsize).encode(values)
        return [data, _crc_bytes(checksum(data))]
    return [values.data.cast("B"), _crc_bytes(checksum(values) if known is None else known)]


def _padded(values: NDArray[Any], rows: int) -> NDArray[Any]:
    if len(values) == rows:
        return values
    padded = np.full((rows, *values.shape[1:]), np.nan, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def encode_column(values: NDArray[Any], length: int, fill: Any) -> Parts:
    """Encode a coordinate chunk of `length` rows, filled up where `values` are fewer: bytes or UTF-8, then CRC-32C."""
    full = np.full((length, *values.shape[1:]), fill, dtype=values.dtype)
    full[: len(values)] = values
    data = bytes(VLenUTF8().encode(full.ravel())) if full.dtype.kind == "O" else full.tobytes()
    return [data, _crc_bytes(checksum(data))]


def decode_column(data: bytes, dtype: np.dtype[Any]) -> list[Any]:
    """Read back what :func:`encode_column` wrote; a chunk that does not match its checksum is a ValueError."""
    body, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if _crc_bytes(checksum(body)) != crc:
        raise ValueError("a coordinate chunk does not match its checksum")
    if dtype.kind == "O":
        return list(VLenUTF8().decode(body).tolist())
    return list(np.frombuffer(body, dtype).tolist())
