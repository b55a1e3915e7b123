"""Squared distances of many operators from one streamed Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dask.utils import parse_bytes
from numpy.typing import NDArray

from repaudit.distance.squared import full_precision
from repaudit.errors import OperatorError
from repaudit.operators.stack import OperatorStack

BAND_BYTES = 32 * 2**20
"""A band small enough for the processor's caches, with rows long enough to be read in large pieces."""

GEMM_COLUMNS = 8192
"""Longest sum in single precision before it is added up in float64."""

CLOSE, CLOSE_BY_SIDE = 3e-2, 2.0
"""Pairs with d^2 below the smaller of .03 and 2 / N of their squared norms are recomputed, which keeps rounding below
1e-5 of d: the more products are summed, the more their errors average out."""

REFERENCES = 8
"""Operators whose mean stands for the mean of all: the closer it is, the less cancels; it need not be exact."""

Transform = Callable[[torch.Tensor], Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gram:
    """Squared Frobenius distances (T, T), or (first, T); trace, sum and squared norm of every operator, each (T,)."""

    squared_distances: NDArray[np.float64]
    trace: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]
    recomputed: int


def stream_gram(
    stack: OperatorStack,
    *,
    memory: str | int = "2GB",
    transform: Transform | None = None,
    moments: bool = False,
    first: int | None = None,
    progress: Progress | None = None,
) -> Gram:
    """Compute the squared distances of all pairs, reading bands of rows of all operators and keeping none.

    ``d_ij^2 = G_ii + G_jj - 2 G_ij`` with G the Gram matrix of the flattened operators *less their rough mean*: the
    distances are the same, and only the spread about it cancels, not the operators themselves. Products
    run in the operators' own precision over short sums, which are added in float64; pairs so close that rounding would
    still show are recomputed as differences in a second pass.

    Parameters
    ----------
    stack : OperatorStack
    memory : bytes, or text such as "2GB"
        Bound on what is held in addition to the operators: the (T, T) results and one band.
    transform : function of a band, in place, optional
        Applied to the entries first: for example a square root.
    moments : bool
        Whether to compute trace, sum and squared norm as well.
    first : int, optional
        Compute the distances of this many first operators to all only: of new ones to known ones.
    progress : function of (rows done, rows in all), optional
    """
    size, top = len(stack), len(stack) if first is None else first
    rows = _band_rows(stack, memory, top)
    gram = torch.zeros((top, size), dtype=torch.float64)
    norms = torch.zeros(size, dtype=torch.float64)
    sums = torch.zeros((3, size), dtype=torch.float64)
    for start, band in _bands(stack, rows, transform):
        if moments:
            _add_moments(sums, band, start)
        _add_gram(gram, norms, _centred(band))
        if progress is not None:
            progress(start + band.shape[1], stack.samples)
    square = gram[:, :top]
    norms[:top] = square.diagonal()
    square.copy_(square.triu() + square.triu(1).T)
    if not torch.isfinite(norms).all():
        _refuse_unsound(_bands(stack, rows, transform), size)
    squared = gram.mul_(-2).add_(norms[:top, None]).add_(norms[None, :]).clamp_(min=0)
    close = _close_pairs(squared, norms, min(CLOSE, CLOSE_BY_SIDE / stack.samples))
    if len(close):
        _recompute(squared, close, _bands(stack, rows, transform))
    squared.fill_diagonal_(0)
    trace, total, squares = sums.numpy()
    return Gram(squared.numpy(), trace, total, squares, len(close))


def _bands(stack: OperatorStack, rows: int, transform: Transform | None) -> Iterator[tuple[int, torch.Tensor]]:
    for start, band in stack.bands(rows):
        if transform is not None:
            transform(band)
        yield start, band


def _band_rows(stack: OperatorStack, memory: str | int, first: int) -> int:
    budget = parse_bytes(memory)
    row = len(stack) * stack.samples * stack.dtype.itemsize
    fixed = 4 * 8 * len(stack) * first
    if budget < fixed + 2 * row:
        raise OperatorError(
            f"expected a memory budget of at least {(fixed + 2 * row) / 1e6:.0f} MB for {len(stack)} operators of "
            f"{stack.samples} samples, found {budget / 1e6:.0f} MB: raise `memory` or choose fewer steps"
        )
    return int(max(1, min(stack.samples, BAND_BYTES // row, (budget - fixed) // (2 * row))))


def _add_moments(moments: torch.Tensor, band: torch.Tensor, start: int) -> None:
    diagonal = torch.diagonal(band[:, :, start : start + band.shape[1]], dim1=1, dim2=2)
    moments[0] += diagonal.sum(1, dtype=torch.float64)
    moments[1] += band.sum(2).sum(1, dtype=torch.float64)
    moments[2] += torch.linalg.vector_norm(band, dim=2).to(torch.float64).square().sum(1)


def _centred(band: torch.Tensor) -> torch.Tensor:
    flat = band.view(len(band), -1)
    return flat.sub_(flat[:: max(1, len(flat) // REFERENCES)].mean(0))


def _add_gram(gram: torch.Tensor, norms: torch.Tensor, flat: torch.Tensor) -> None:
    """Add a band's products to the upper triangle: by panels of rows, which avoids most of the lower one."""
    top = len(gram)
    norms[top:] += torch.linalg.vector_norm(flat[top:], dim=1).to(torch.float64).square_()
    panel = -(-len(flat) // min(4, max(1, len(flat) // 100)))
    with full_precision(flat.device):
        for start in range(0, flat.shape[1], GEMM_COLUMNS):
            columns = flat[:, start : start + GEMM_COLUMNS]
            for row in range(0, top, panel):
                stop = min(row + panel, top)
                gram[row:stop, row:] += columns[row:stop] @ columns[row:].T


def _refuse_unsound(bands: Iterator[tuple[int, torch.Tensor]], size: int) -> None:
    bad: set[int] = set()
    for _, band in bands:
        bad.update((~torch.isfinite(band).flatten(1).all(1)).nonzero().ravel().tolist())
    where = f"operators {sorted(bad)[:8]} of {size}: leave them out"
    raise OperatorError(f"expected finite entries (and non-negative ones under a root), found others in {where}")


def _close_pairs(squared: torch.Tensor, norms: torch.Tensor, share: float) -> torch.Tensor:
    close = squared <= share * (norms[: len(squared), None] + norms[None, :])
    return close.triu_(1).nonzero()


def _recompute(squared: torch.Tensor, pairs: torch.Tensor, bands: Iterator[tuple[int, torch.Tensor]]) -> None:
    """Sum the squared differences of close pairs, as many at a time as take half of the band's size."""
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    for _, band in bands:
        flat = band.view(len(band), -1)
        count = -(-len(band) // 4)
        for start in range(0, len(pairs), count):
            some = slice(start, start + count)
            difference = flat[pairs[some, 0]].sub_(flat[pairs[some, 1]])
            sums[some] += torch.linalg.vector_norm(difference, dim=1).to(torch.float64).square_()
    squared[pairs[:, 0], pairs[:, 1]] = sums
    both = pairs[:, 1] < len(squared)
    squared[pairs[both, 1], pairs[both, 0]] = sums[both]
