"""Matrices of any kind as tensors: dense or sparse, checked to be row-stochastic."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from repaudit.errors import OperatorError

_ROW_SUM: Final = 1e-4


def is_sparse(matrix: Any) -> bool:
    """Whether this is a sparse tensor or a scipy sparse matrix."""
    return matrix.layout != torch.strided if isinstance(matrix, Tensor) else hasattr(matrix, "tocoo")


def as_matrix(matrix: Any) -> Tensor:
    """Any array-like as a dense float32 or float64 tensor; a view where the dtype allows."""
    matrix = getattr(matrix, "matrix", matrix)
    if isinstance(matrix, Tensor):
        tensor = matrix
    else:
        array = np.asarray(matrix)
        tensor = torch.from_numpy(array if array.flags.writeable and array.flags.owndata else array.copy())
    if tensor.dtype in {torch.float32, torch.float64}:
        return tensor
    return tensor.to(torch.float32 if tensor.dtype in {torch.float16, torch.bfloat16} else torch.float64)


def check_stochastic(matrix: Tensor) -> None:
    """Refuse what is no row-stochastic matrix, and say where."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise OperatorError(f"expected a square matrix (sample, neighbor), found shape {tuple(matrix.shape)}")
    found = matrix.detach()
    sums = row_sums(found)
    if found.layout != torch.strided:
        index, values = found.coalesce().indices()[0], found.coalesce().values()
        lowest = torch.zeros_like(sums).scatter_reduce(0, index, values.double(), "amin")
    else:
        lowest = found.amin(1)
    if not bool(torch.isfinite(sums).all()):
        row = int((~torch.isfinite(sums)).nonzero()[0])
        raise OperatorError(f"expected finite transition probabilities, found NaN or infinity in row {row}")
    if float(lowest.amin()) < 0:
        raise OperatorError(f"expected probabilities, found {float(lowest.amin()):.3g} in row {int(lowest.argmin())}")
    worst = int((sums - 1).abs().argmax())
    if abs(float(sums[worst]) - 1) > _ROW_SUM:
        raise OperatorError(
            f"expected rows that sum to 1, found {float(sums[worst]):.6g} in row {worst}; divide each row by its sum"
        )


def row_sums(matrix: Tensor) -> Tensor:
    """Sum of each row of a dense or sparse matrix, ``(sample)``, float64."""
    if matrix.layout == torch.strided:
        return matrix.sum(1, dtype=torch.float64)
    entries = matrix.coalesce()
    zero = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    return zero.index_add(0, entries.indices()[0], entries.values().double())


def signs(vectors: Tensor) -> Tensor:
    """Make the largest entry of each eigenvector positive, so that equal operators give equal vectors."""
    largest = vectors.abs().argmax(0)
    return vectors.gather(0, largest[None]).sign()


def from_entries(index: Tensor, values: Tensor, shape: tuple[int, int], *, is_coalesced: bool = False) -> Tensor:
    """Return a sparse COO tensor, checked as the caller has it: torch warns where that was never said."""
    checks: Any = torch.sparse.check_sparse_tensor_invariants
    with checks(enable=checks.is_enabled()):
        return torch.sparse_coo_tensor(index, values, shape, is_coalesced=is_coalesced)


def as_sparse(matrix: Any) -> Tensor:
    """Return a scipy or torch sparse matrix as a coalesced COO tensor of its own precision."""
    if isinstance(matrix, Tensor):
        coo: Tensor = matrix.to_sparse_coo()  # type: ignore[no-untyped-call]
        return coo.coalesce()
    entries = matrix.tocoo()
    index = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    data = entries.data.astype(np.float32 if entries.data.dtype == np.float32 else np.float64)
    return from_entries(index, torch.from_numpy(data), entries.shape).coalesce()
