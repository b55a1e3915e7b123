"""Operators in files, dense or sparse, read a band of rows at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from repaudit.errors import OperatorError

PRECISIONS: Final = (np.float32, np.float64)


class OpenFile:
    """The file that was read last, open until another one is read: operators are often parts of one."""

    def __init__(self) -> None:
        self._path, self._descriptor = "", -1

    def at(self, path: str) -> int:
        """Return a descriptor of a file."""
        if path != self._path:
            self.close()
            self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        return self._descriptor

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = "", -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class OperatorFile:
    """One operator in a file, read a band at a time: what is read, not mapped, never counts as this process's memory.

    Attributes
    ----------
    path : str
    shape : (sample, neighbor)
    dtype : numpy dtype, float32 or float64
    offset : int
        Byte at which the first row begins; rows lie one after the other.
    """

    path: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> OperatorFile:
        """Open the operator in a ``.npy`` file.

        Raises
        ------
        OperatorError
            The file holds no C-ordered float matrix, or less of it than its header says.
        """
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OperatorError(f"expected an operator in {os.fspath(path)}: {error}") from error
        if array.ndim != 2 or array.dtype not in PRECISIONS or not array.flags.c_contiguous:
            raise OperatorError(f"expected a float matrix in {os.fspath(path)}, found {array.dtype} {array.shape}")
        return cls(os.fspath(path), array.shape, array.dtype, array.offset)

    @property
    def matrix(self) -> NDArray[Any]:
        """All of it, in memory."""
        whole = np.empty(self.shape, self.dtype)
        self.read(whole, 0)
        return whole

    def read(self, target: NDArray[Any], start: int, opened: OpenFile | None = None) -> None:
        """Fill (rows, N) from row `start` on, by a file that stays open where one is given."""
        at = self.offset + start * self.shape[1] * self.dtype.itemsize
        if opened is None:
            fill(self.path, target, at)
        else:
            _fill(opened.at(self.path), self.path, target, at)


@dataclass(frozen=True, eq=False)
class SparseOperatorFile:
    """One operator in a file in compressed rows, read a band at a time; where the rows begin is kept in memory.

    Attributes
    ----------
    path : str
    shape : (sample, neighbor)
    dtype : numpy dtype, float32 or float64
    pointers : (sample + 1), the entry at which each row begins
    columns, values : int
        Bytes at which the columns and the values of all entries begin, one after the other.
    """

    path: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    pointers: NDArray[np.int64]
    columns: int
    values: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> SparseOperatorFile:
        """Open what :func:`write_sparse` wrote.

        Raises
        ------
        OperatorError
            The file holds no such operator, or less of it than its headers say.
        """
        try:
            with open(path, "rb") as stream:  # noqa: PTH123 - a path or what fsspec gives
                pointers = np.load(stream, allow_pickle=False)
                columns, values = _header(stream), _header(stream)
                size = os.fstat(stream.fileno()).st_size
        except FileNotFoundError:
            raise
        except Exception as error:
            raise OperatorError(f"expected a sparse operator in {os.fspath(path)}: {error}") from error
        count, entries = len(pointers) - 1, int(pointers[-1])
        whole = size == values[1] + entries * values[0].itemsize
        if not whole or columns[0] != np.int32 or values[0] not in PRECISIONS or (np.diff(pointers) < 0).any():
            raise OperatorError(f"expected a whole sparse operator in {os.fspath(path)}, found {size} bytes")
        return cls(os.fspath(path), (count, count), values[0], pointers.astype(np.int64), columns[1], values[1])

    @property
    def matrix(self) -> csr_array:
        """All of it, in memory."""
        columns, values = self._entries(0, int(self.pointers[-1]))
        return csr_array((values, columns, self.pointers), shape=self.shape)

    def read(self, target: NDArray[Any], start: int, opened: OpenFile | None = None) -> None:
        """Fill dense (rows, N) from row `start` on."""
        pointers, columns, values = self.rows(start, start + len(target))
        target[:] = 0
        target[np.repeat(np.arange(len(target)), np.diff(pointers)), columns] = values

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
        """Return the pointers of some rows, and the columns and values of their entries."""
        pointers = self.pointers[start : stop + 1]
        return pointers, *self._entries(int(pointers[0]), int(pointers[-1]))

    def _entries(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
        columns, values = np.empty(last - first, np.int32), np.empty(last - first, self.dtype)
        fill(self.path, columns, self.columns + first * columns.itemsize)
        fill(self.path, values, self.values + first * values.itemsize)
        return columns, values


AnyOperatorFile: TypeAlias = OperatorFile | SparseOperatorFile


def write_sparse(stream: IO[bytes], matrix: Any) -> None:
    """Write a scipy sparse matrix so that :meth:`SparseOperatorFile.at` finds it.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = os.path.join(mkdtemp(), "operator.csr")
    >>> with open(path, "wb") as stream:
    ...     write_sparse(stream, csr_array(np.eye(3, dtype=np.float32)))
    >>> SparseOperatorFile.at(path).matrix.toarray().tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows = csr_array(matrix)
    if not rows.has_canonical_format:
        rows = rows.copy()  # what is given stays as it is
        rows.sum_duplicates()
    for part in (rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data):
        np.save(stream, part, allow_pickle=False)


def fill(path: str, target: NDArray[Any], at: int) -> None:
    """Fill an array from a byte of a file on.

    Raises
    ------
    OperatorError
        The file ends before.
    """
    with OpenFile() as opened:
        _fill(opened.at(path), path, target, at)


def _fill(descriptor: int, path: str, target: NDArray[Any], at: int) -> None:
    view = memoryview(target.reshape(-1).data).cast("B") if target.size else memoryview(b"")
    while len(view):
        done = os.preadv(descriptor, [view], at)
        if not done:
            raise OperatorError(f"expected {len(view)} bytes more at {at}, found the end of {path}")
        view, at = view[done:], at + done


def _header(stream: BufferedReader) -> tuple[np.dtype[Any], int]:
    """Return the dtype of the array that begins here, and where its values do; the stream goes on behind them."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    start = stream.tell()
    stream.seek(int(np.prod(shape)) * dtype.itemsize, os.SEEK_CUR)
    return dtype, start
