"""Products of flattened operators, in their own precision over short sums, which are added up in float64."""

from __future__ import annotations

from typing import Final

import torch
from scipy.sparse import csr_array

from repaudit.distance.precision import full_precision

GEMM_COLUMNS: Final = 2048
"""Longest sum in single precision before it is added up in float64."""

NORM_COLUMNS: Final = 512
"""The same of squared norms."""

PANELS: Final = 3, 4
"""Least and most panels of rows whose products leave out the lower triangle: of more, products are too thin."""


def add_gram(gram: torch.Tensor, norms: torch.Tensor, flat: torch.Tensor) -> None:
    """Add the products of rows (T, cell) to the upper triangle of (first, T): by panels, without most of the lower one.

    Squared norms of the rows behind the first ones are added to `norms`, (T).
    """
    top, size = gram.shape
    norms[top:] += squared_norms(flat[top:])
    least, most = PANELS
    panel = -(-size // min(most, max(least, size // 100)))
    for row in range(0, top, panel):
        stop = min(row + panel, top)
        add_products(gram[row:stop, row:], flat[row:stop], flat[row:])


def add_products(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add ``left @ right.T`` to a matrix in float64."""
    sums = _sums(left.shape[1])
    length = left.shape[1] // sums
    with full_precision(left.device):
        if length:
            one, other = (side[:, : sums * length].view(len(side), sums, length) for side in (left, right))
            products = torch.bmm(one.transpose(0, 1), other.permute(1, 2, 0))  # the sums on several threads
            total += products.sum(0, dtype=torch.float64)
        if sums * length < left.shape[1]:
            _add(total, left[:, sums * length :] @ right[:, sums * length :].T)


def squared_norms(flat: torch.Tensor) -> torch.Tensor:
    """Return the squared norm of each row, in float64, as long sums in single precision lose what is small."""
    sums = flat.shape[1] // NORM_COLUMNS
    whole = sums * NORM_COLUMNS
    parts = flat[:, :whole].view(len(flat), sums, NORM_COLUMNS), flat[:, None, whole:]
    norms = torch.cat([torch.linalg.vector_norm(part, dim=2) for part in parts], dim=1)
    return norms.to(torch.float64).square_().sum(1)


def _sums(columns: int) -> int:
    """Return into how many sums of one length columns are cut: a multiple of the threads, so that none waits."""
    threads = torch.get_num_threads() if columns >= GEMM_COLUMNS else 1
    return threads * max(1, -(-columns // (threads * GEMM_COLUMNS)))


def _add(total: torch.Tensor, products: torch.Tensor) -> None:
    """Add products in another precision, a few rows at a time, as they are copied into that of the sums."""
    for start in range(0, len(total), 64):
        total[start : start + 64] += products[start : start + 64]


def add_rare(gram: torch.Tensor, norms: torch.Tensor, rare: csr_array) -> None:
    """Add the products of what few operators hold, and all squared norms of it."""
    top = len(gram)
    gram += torch.from_numpy((rare[:top] @ rare.T).toarray())
    norms += torch.from_numpy(rare.power(2).sum(1))


def mirror(square: torch.Tensor) -> None:
    """Write the upper triangle into the lower one, without another matrix of that size."""
    for start in range(0, len(square), 256):
        here = slice(start, start + 256)
        square[here, :start] = square[:start, here].T
        block = square[here, here]
        block.copy_(block.triu() + block.triu(1).T)
