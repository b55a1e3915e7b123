"""Many operators read a band of rows at a time, wherever they live: a list, one 3-D array, a memory map."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from torch.utils.data import Subset

from repaudit.errors import OperatorError
from repaudit.operators.files import PRECISIONS, OpenFile, OperatorFile, SparseOperatorFile

_FILES = (OperatorFile, SparseOperatorFile)

Operator: TypeAlias = Any
"""Anything with ``.matrix``, or a square array: NumPy, torch (dense or sparse), scipy sparse, DataArray."""


SparseRows: TypeAlias = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""The entry at which each of some rows begins, and the last one ends; columns and values."""


def matrix_of(operator: Operator) -> Any:
    """Return the matrix that an operator holds; arrays are their own."""
    inner = getattr(operator, "matrix", operator)
    return getattr(inner, "values", inner) if hasattr(inner, "dims") else inner


def side_of(operator: Operator) -> int:
    """Return the number of samples of one operator, without reading what lies in a file.

    Raises
    ------
    OperatorError
        The operator is not square.
    """
    return _side(operator if isinstance(operator, _FILES) else matrix_of(operator), "the operator")


def dense(operator: Operator) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return one operator as a float64 array (N, N), checked to be square and finite.

    Raises
    ------
    OperatorError
        The operator is not square, or holds NaN or infinity.
    """
    matrix = matrix_of(operator)
    _side(matrix, "the operator")
    band = torch.empty(matrix.shape, dtype=torch.float64)
    _copy(band, _band(matrix, 0, matrix.shape[0]))
    array = band.numpy()
    if not np.isfinite(array).all():
        raise OperatorError("expected finite entries, found NaN or infinity in the operator: leave this step out")
    return array


def entries_of(operator: Operator) -> Any:
    """Return an operator as a dense float64 array or a sparse one in rows, without duplicates, checked to be finite."""
    matrix = matrix_of(operator)
    if isinstance(matrix, torch.Tensor) and matrix.layout != torch.strided:
        coo = matrix.detach().cpu().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        rows, columns = coo.indices().numpy()
        matrix = csr_array((coo.values().double().numpy(), (rows, columns)), shape=tuple(coo.shape))
    if not issparse(matrix):
        return dense(matrix)
    sparse = csr_array(matrix)
    if sparse.dtype.kind not in "fiub":
        raise OperatorError(f"expected real numbers in an operator, found dtype {sparse.dtype}")
    sparse = csr_array(sparse, dtype=np.float64)
    if not sparse.has_canonical_format:
        sparse = sparse.copy()
        sparse.sum_duplicates()
    if not np.isfinite(sparse.data).all():
        raise OperatorError("expected finite entries, found NaN or infinity in the operator: leave this step out")
    return sparse


class OperatorStack:
    """T operators on the same N samples, of which only a band of rows is in memory at any time.

    Parameters
    ----------
    operators : sequence of operators, or array (T, N, N)
        Items are asked for once per band, so access should be cheap: a list, a memory map, a Zarr or HDF5 array.
        :class:`OperatorFile` and plain memory maps are read from their files.
    """

    def __init__(self, operators: Sequence[Operator] | Any) -> None:
        self._operators: Any = _files_under(operators) or operators
        self._cube = getattr(self._operators, "ndim", None) == 3 and not hasattr(self._operators, "matrix")
        self._held: dict[int, SparseRows] = {}
        self.size = len(operators)
        if self.size == 0:
            raise OperatorError("expected at least one operator, found none")
        first = self._item(0)
        self.samples = _side(first, "operator 0")
        self.dtype = torch.float64 if _is_double(first) else torch.float32

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return matrix_of(self._operators[index])

    def bands(self, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Give ``(first row, buffer)`` for every band, the buffer (T, rows, N) being reused and free to be changed."""
        buffer = torch.empty((self.size, min(rows, self.samples), self.samples), dtype=self.dtype)
        for start in range(0, self.samples, rows):
            stop = min(start + rows, self.samples)
            part = buffer[:, : stop - start]
            self._fill(part, start, stop)
            yield start, part

    def wide(self) -> OperatorStack:
        """Return the same operators, read as float64."""
        stack = copy(self)
        stack.dtype, stack._held = torch.float64, {}
        return stack

    def some(self, indices: Sequence[int]) -> OperatorStack | None:
        """Return a stack of some of the operators, in this order; None where taking one would read others too."""
        if self._cube and not isinstance(self._operators, np.ndarray | torch.Tensor):
            return None
        stack = OperatorStack(Subset(self._operators, indices))  # each is asked for when it is needed
        return stack if stack.dtype is self.dtype else stack.wide()

    @property
    def in_files(self) -> bool:
        """Whether the first operator lies in a file, from which its rows are read."""
        return not self._cube and isinstance(self._item(0), _FILES)

    @property
    def sparse(self) -> bool:
        """Whether the first operator is sparse, as then all are where one gauge made them."""
        return not self._cube and _is_sparse(self._item(0))

    def sparse_rows(self, index: int, start: int, stop: int) -> SparseRows:
        """Return some rows of one operator: where each begins, and the columns, in order, and values of all entries."""
        held = self._held.get(index)
        if held is None:
            operator = self._item(index)
            if start == 0:
                self._check(operator, index)
            if isinstance(operator, SparseOperatorFile):
                return self._in_precision(operator.rows(start, stop))
            if not _is_sparse(operator):
                rows = torch.empty((stop - start, self.samples), dtype=self.dtype)
                _copy(rows, _band(operator, start, stop))
                return _compressed(csr_array(rows.numpy()))
            held = _compressed(operator)
            if _shares(held, operator) and self._item(index) is operator:  # in memory anyway
                self._held[index] = held
        pointers, columns, values = held
        inside = slice(pointers[start], pointers[stop])
        columns, values = columns[inside], values[inside]
        if index not in self._held:  # so that the rest of what was made goes
            columns, values = columns.copy(), values.copy()
        return self._in_precision((pointers[start : stop + 1], columns, values))

    def _in_precision(self, rows: SparseRows) -> SparseRows:
        pointers, columns, values = rows
        return pointers, columns, values.astype(np.float64 if self.dtype is torch.float64 else np.float32, copy=False)

    def _item(self, index: int) -> Any:
        operator = self._operators[index]
        if isinstance(operator, _FILES):
            return operator
        matrix = matrix_of(operator)
        _check_layout(matrix)
        return matrix

    def _fill(self, part: torch.Tensor, start: int, stop: int) -> None:
        if self._cube:
            _copy(part, self._operators[:, start:stop])
            return
        rows = part.numpy()
        with OpenFile() as opened:
            for index in range(self.size):
                operator = self._item(index)
                if start == 0:
                    self._check(operator, index)
                if isinstance(operator, _FILES):
                    same = operator.dtype == rows.dtype
                    read = rows[index] if same else np.empty(rows[index].shape, operator.dtype)
                    operator.read(read, start, opened)
                    if not same:
                        rows[index] = read
                else:
                    _copy(part[index], _band(matrix_of(operator), start, stop))

    def _check(self, matrix: Any, index: int) -> None:
        side = _side(matrix, f"operator {index}")
        if side != self.samples:
            raise OperatorError(f"expected operators on {self.samples} samples each, found {side} in operator {index}")
        if self.dtype is torch.float32 and _is_double(matrix):
            raise OperatorError(f"expected operators of one precision, found float64 in operator {index} after float32")


def _files_under(operators: Any) -> list[OperatorFile] | None:
    """Return the operators of a memory map (T, N, N) as files; private (copy-on-write) maps differ from theirs."""
    if not isinstance(operators, np.memmap) or operators.mode == "c" or operators.ndim != 3:
        return None
    pages, array = _pages(operators), np.asarray(operators)
    inner = array.strides[1:] == (array.shape[2] * array.itemsize, array.itemsize)
    if pages is None or operators.filename is None or not inner or array.dtype not in PRECISIONS:
        return None
    within = array.__array_interface__["data"][0] - np.frombuffer(pages, np.uint8).__array_interface__["data"][0]
    first = operators.offset - operators.offset % mmap.ALLOCATIONGRANULARITY + within
    path, shape = str(operators.filename), (array.shape[1], array.shape[2])
    return [OperatorFile(path, shape, array.dtype, first + index * array.strides[0]) for index in range(len(array))]


def _pages(array: Any) -> mmap.mmap | None:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def _side(matrix: Any, name: str) -> int:
    shape = tuple(getattr(matrix, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        made = ": ra.DiffusionGauge() makes one of activations" if len(shape) == 2 and shape[0] > 1 else ""
        raise OperatorError(
            f"expected a square (sample, neighbor) of at least 2 samples, found {shape} in {name}{made}"
        )
    return int(shape[0])


def _check_layout(matrix: Any) -> None:
    if isinstance(matrix, torch.Tensor) and matrix.layout not in (torch.strided, torch.sparse_coo, torch.sparse_csr):
        raise OperatorError(f"expected a dense, COO or CSR tensor, found {matrix.layout}: pass .to_sparse_csr()")


def _is_double(array: Any) -> bool:
    return str(array.dtype).removeprefix("torch.") not in {"float32", "float16", "bfloat16"}


def _band(matrix: Any, start: int, stop: int) -> Any:
    """Rows ``start`` to ``stop``, dense."""
    if isinstance(matrix, torch.Tensor) and matrix.layout is torch.sparse_csr:
        return _csr_band(matrix.detach(), start, stop)
    if isinstance(matrix, torch.Tensor) and matrix.layout is torch.sparse_coo:
        return matrix.detach().index_select(0, torch.arange(start, stop, device=matrix.device)).to_dense()
    part = matrix[start:stop]
    return part.toarray() if hasattr(part, "toarray") else part


def _is_sparse(operator: Any) -> bool:
    if isinstance(operator, torch.Tensor):
        return operator.layout is torch.sparse_csr or operator.layout is torch.sparse_coo
    return issparse(operator) or isinstance(operator, SparseOperatorFile)


def _compressed(matrix: Any) -> SparseRows:
    """Return a sparse matrix in compressed rows, without duplicates; what it holds is not copied where that is so."""
    if isinstance(matrix, torch.Tensor) and matrix.layout is torch.sparse_coo:
        whole = matrix.detach().coalesce()
        rows, columns = whole.indices().cpu()
        numbers, counts = torch.unique_consecutive(rows, return_counts=True)
        pointers = torch.zeros(matrix.shape[0] + 1, dtype=torch.int64)
        pointers[numbers + 1] = counts
        return pointers.cumsum(0).numpy(), columns.numpy(), _real(whole.values()).cpu().numpy()
    if isinstance(matrix, torch.Tensor):
        parts = _real(matrix.values()), matrix.col_indices(), matrix.crow_indices()
        matrix = csr_array(tuple(part.detach().cpu().numpy() for part in parts), shape=tuple(matrix.shape))
    rows = csr_array(matrix)
    if rows.dtype.kind not in "fiub":
        raise OperatorError(f"expected real numbers in an operator, found dtype {rows.dtype}")
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows.indptr, rows.indices, rows.data


def _real(values: torch.Tensor) -> torch.Tensor:
    """Return the values of a sparse tensor as NumPy knows them."""
    if values.is_complex():
        raise OperatorError(f"expected real numbers in an operator, found dtype {values.dtype}")
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _shares(rows: SparseRows, matrix: Any) -> bool:
    """Whether rows are those that a matrix holds, so that keeping them takes no memory."""
    if isinstance(matrix, torch.Tensor):
        plain = matrix.layout is torch.sparse_csr or matrix.is_coalesced()
        return plain and rows[2].ctypes.data == matrix.detach().values().data_ptr()
    return matrix.format == "csr" and np.may_share_memory(rows[2], matrix.data)


def _csr_band(matrix: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    pointers = matrix.crow_indices()[start : stop + 1]
    inside = slice(int(pointers[0]), int(pointers[-1]))
    band = torch.zeros((stop - start, matrix.shape[1]), dtype=matrix.dtype, device=matrix.device)
    rows = torch.repeat_interleave(torch.arange(stop - start, device=matrix.device), pointers.diff())
    band[rows, matrix.col_indices()[inside]] = matrix.values()[inside]
    return band


def _copy(target: torch.Tensor, source: Any) -> None:
    if isinstance(source, torch.Tensor):
        if source.is_complex():
            raise OperatorError(f"expected real numbers in an operator, found dtype {source.dtype}")
        target.copy_(source.detach())
        return
    array = np.asarray(source)
    plain = array.flags.writeable and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    if plain and array.dtype == target.numpy().dtype:
        target.copy_(torch.from_numpy(array))  # several threads, where NumPy has one
    elif array.dtype.kind not in "fiub":
        raise OperatorError(f"expected real numbers in an operator, found dtype {array.dtype}")
    else:
        np.copyto(target.numpy(), array)
