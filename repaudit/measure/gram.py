"""Squared distances of many operators from one streamed Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from dask.utils import format_bytes, parse_bytes
from numpy.typing import NDArray

from repaudit.distance.precision import full_precision
from repaudit.errors import OperatorError
from repaudit.measure.products import add_gram, add_rare, mirror, squared_norms
from repaudit.measure.references import Links, References, choose
from repaudit.measure.sparse_products import Band, Transform, sparse_bands, squared_distance
from repaudit.measure.structure import Structure
from repaudit.operators.stack import OperatorStack

BAND_BYTES, BAND_ROWS = 8 * 2**20, 4
"""A band small enough for the processor's caches, but of so many rows that files are read in larger pieces."""

CLOSE, CLOSE_BY_SIDE, CLOSE_BY_CELLS = 6e-2, 2.0, 800.0
"""Pairs with d^2 below .06, or the larger of 2 / N and 800 / N^2, of their squared norms are recomputed, which keeps
rounding below 1e-5 of d: the more products are summed, the more their errors average out. Of operators whose entries
take few values they add up instead, to 5e-4 at most in what was tried (blocks, ``a I + (1 - a) / N``)."""

FEW, PILOT = 64, 16
"""Of more operators references are looked for, in a band of a sixteenth of the usual size."""

CLOSE_WIDE = 1e-8
"""The same for products in float64, of which rounding leaves up to one part in 1e13."""

MANY = 64
"""Close pairs are many where they are at least one in so many of all pairs among their operators, twice counted."""

WIDE_COLUMNS = 1024
"""Columns that are held in float64 at once."""

SPARSE_BYTES = 256 * 2**20
"""What a band of sparse operators may take: more than a dense one, as each band looks at every operator."""

MEAN_OF = 8
"""Operators whose mean stands for the mean of all: the closer it is, the less cancels; it need not be exact."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gram:
    """Squared Frobenius distances (T, T), or (first, T), and what unrelated operators are expected to differ in."""

    squared_distances: NDArray[np.float64]
    structure: Structure | None
    recomputed: int


def stream_gram(
    stack: OperatorStack,
    *,
    memory: str | int = "2GB",
    transform: Transform | None = None,
    moments: bool = False,
    first: int | None = None,
    recompute: bool = True,
    progress: Progress | None = None,
) -> Gram:
    """Compute the squared distances of all pairs, reading bands of rows of all operators and keeping none.

    ``d_ij^2 = G_ii + G_jj - 2 G_ij`` with G the Gram matrix of the flattened operators *less their rough mean*: the
    distances are the same, and only the spread about it cancels, not the operators themselves. Where many are closer
    than that to each other, as at the end of a training, each is taken less the nearest of several references
    (:class:`repaudit.measure.references.References`). Products
    run in the operators' own precision over short sums, which are added in float64; pairs so close that rounding would
    still show are recomputed as differences in a second pass.

    Parameters
    ----------
    stack : OperatorStack
    memory : bytes, or text such as "2GB"
        Bound on what is held in addition to the operators: the (T, T) results and one band.
    transform : function of entries, in place, optional
        Applied to the entries first: for example a square root. Keeps 0 at 0.
    moments : bool
        Whether to compute means and squares as well.
    first : int, optional
        Compute the distances of this many first operators to all only: of new ones to known ones.
    recompute : bool
        Whether pairs so close that rounding shows are recomputed. A picture does not need it, and of slow trainings
        most of the pairs are so close.
    progress : function of (rows done, rows in all), optional
    """
    size, top = len(stack), len(stack) if first is None else first
    changed = _Changed(stack, memory, _band_rows(stack, memory, top), transform)
    share = min(CLOSE, max(CLOSE_BY_SIDE / stack.samples, CLOSE_BY_CELLS / stack.samples**2))
    single = stack.dtype is torch.float32
    links = changed.links(top, share) if single and recompute and size > FEW else None
    gram = torch.zeros((top, size), dtype=torch.float64)
    norms, of_rare = torch.zeros((2, size), dtype=torch.float64)
    found: Structure | None = None
    for band in changed.bands(moments=moments, references=None if links is None else links.references):
        if band.structure is not None:
            found = band.structure if found is None else found + band.structure
        _centre(band, links)
        add_gram(gram, norms, band.common)
        if band.rare is not None:
            add_rare(gram, of_rare, band.rare)
        if progress is not None:
            progress(band.stop, stack.samples)
    del band  # its buffer goes before another pass makes one
    square = gram[:, :top]
    norms[:top] = square.diagonal() - of_rare[:top]
    mirror(square)
    if not torch.isfinite(norms + of_rare).all():
        _refuse_unsound(changed.bands(), size)
    whole = norms + of_rare if links is None else links.rejoin(gram, norms + of_rare)
    squared = _squared(gram, whole)
    close = _close_pairs(squared, norms, whole, share, links) if recompute else torch.empty((0, 2), dtype=torch.int64)
    if len(close) and stack.sparse and 2 * len(close) <= size:  # less to read than all operators once more
        for first_of, other in close.tolist():
            exact = squared_distance(stack, first_of, other, transform)
            squared[first_of, other] = exact
            if other < top:
                squared[other, first_of] = exact
    elif len(close):
        _recompute(squared, close, changed, in_products=single)
    squared.fill_diagonal_(0)
    return Gram(squared.numpy(), found, len(close))


@dataclass(frozen=True)
class _Changed:
    """A stack, what a band of it may take, and what is done to it first."""

    stack: OperatorStack
    memory: str | int
    rows: int
    transform: Transform | None

    def links(self, first: int, share: float) -> Links | None:
        """Choose references by what a few rows tell; None where none are needed."""
        band = next(self.bands(part=PILOT))
        _centre(band, None)
        norms = torch.linalg.vector_norm(band.common, dim=1).square_()
        with full_precision(band.common.device):
            squared = torch.addmm(norms[:first, None] + norms[None, :], band.common[:first], band.common.T, alpha=-2)
        chosen = choose(squared.clamp_(min=0).numpy(), norms.numpy(), share)
        return None if chosen is None else Links(chosen)

    def bands(self, *, moments: bool = False, part: int = 1, references: References | None = None) -> Iterator[Band]:
        """Read the operators once, as dense or as sparse ones, in bands of the size that fits, or of a part of it."""
        if self.stack.sparse:
            budget = min(SPARSE_BYTES, bytes_of(self.memory) // 2)
            yield from sparse_bands(self.stack, budget // part, self.transform, moments=moments, references=references)
            return
        for start, band in self.stack.bands(-(-self.rows // part)):
            if self.transform is not None:
                self.transform(band)
            found = Structure.of_dense(band, start) if moments else None
            yield Band(start + band.shape[1], band.view(len(band), -1), structure=found)


def bytes_of(memory: str | int) -> int:
    """Return a memory budget in bytes.

    Raises
    ------
    ValueError
        It is no number of bytes above 0, and no text of one with its unit.

    Examples
    --------
    >>> bytes_of("2GB"), bytes_of(1000)
    (2000000000, 1000)
    """
    try:
        known = isinstance(memory, int) or any(letter.isdigit() for letter in memory)  # else GB were a number of 1
        budget = int(parse_bytes(memory)) if known else 0
    except (ValueError, TypeError, AttributeError, OverflowError):
        budget = 0
    if budget <= 0:
        raise ValueError(f"memory: expected a number of bytes, or a text such as '2GB', found {memory!r}")
    return budget


def _band_rows(stack: OperatorStack, memory: str | int, first: int) -> int:
    budget = bytes_of(memory)
    row = len(stack) * stack.samples * stack.dtype.itemsize
    fixed = 4 * 8 * len(stack) * first
    if budget < fixed + 2 * row:
        raise OperatorError(
            f"expected a memory budget of at least {format_bytes(fixed + 2 * row)} for {len(stack)} operators of "
            f"{stack.samples} samples, found {format_bytes(budget)}: raise `memory` or choose fewer steps"
        )
    rows = max(BAND_ROWS, BAND_BYTES // row)
    return int(max(1, min(stack.samples, rows, (budget - fixed) // (2 * row))))


def _centre(band: Band, links: Links | None) -> None:
    """Take from the operators their rough mean, or from each its reference."""
    flat = band.common
    if links is None:
        flat.sub_(flat[:: max(1, len(flat) // MEAN_OF)].mean(0))
    else:
        links.add(links.take(flat) if band.ends is None else band.ends, flat)


def _squared(gram: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Turn products (first, T) into squared distances, in place; both halves are the same to the last bit."""
    for some, ends in zip(torch.split(gram, 256), torch.split(norms[: len(gram)], 256), strict=True):
        some.mul_(-2).add_(ends[:, None] + norms[None, :])
    return gram.clamp_(min=0)


def _close_pairs(
    squared: torch.Tensor, norms: torch.Tensor, whole: torch.Tensor, share: float, links: Links | None
) -> torch.Tensor:
    """Return the pairs in whose squared distance rounding shows, of the products or of what was made of them."""
    top = len(squared)
    if links is None:
        limit = (norms[:top, None] + norms[None, :]).mul_(share)
    else:
        limit = links.rounded(norms, top).mul_(share)
        torch.maximum(limit, (whole[:top, None] + whole[None, :]).mul_(CLOSE_WIDE), out=limit)
    return (squared <= limit).triu_(1).nonzero()


def _refuse_unsound(bands: Iterator[Band], size: int) -> None:
    bad: set[int] = set()
    for band in bands:
        bad.update((~torch.isfinite(band.common).all(1)).nonzero().ravel().tolist())
        if band.rare is not None:
            bad.update(np.flatnonzero(~np.isfinite(band.rare.sum(1))).tolist())
    if not bad:
        raise OperatorError("expected entries whose squares are finite, found larger ones: scale all by one number")
    where = f"operators {sorted(bad)[:8]} of {size}: leave them out"
    raise OperatorError(f"expected finite entries (and non-negative ones under a root), found others in {where}")


def _recompute(squared: torch.Tensor, pairs: torch.Tensor, changed: _Changed, *, in_products: bool) -> None:
    """Put the exact distances of close pairs in their places.

    Where they are many among few operators of single precision by products in float64, of which those are left that
    rounding would still show in, such as of copies: as differences, like all pairs elsewhere.
    """
    members, here = torch.unique(pairs), pairs
    some = changed.stack.some(members.tolist()) if 2 * len(members) <= len(changed.stack) else None
    if some is not None:  # the others need not be read again
        rows = _band_rows(some, changed.memory, len(some))
        changed, here = replace(changed, stack=some, rows=rows), torch.searchsorted(members, pairs.contiguous())
        members = torch.arange(len(members))
    exact = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
    if in_products and len(pairs) * MANY >= len(members) ** 2:
        exact = _by_products(here, members, changed.bands())
    left = exact.isnan().nonzero()[:, 0]
    if len(left):
        exact[left] = _by_differences(here[left], changed.bands())
    squared[pairs[:, 0], pairs[:, 1]] = exact
    both = pairs[:, 1] < len(squared)
    squared[pairs[both, 1], pairs[both, 0]] = exact[both]


def _by_products(pairs: torch.Tensor, members: torch.Tensor, bands: Iterator[Band]) -> torch.Tensor:
    """Return the squared distances of pairs from products in float64; NaN where these are too close."""
    gram = torch.zeros((len(members), len(members)), dtype=torch.float64)
    for band in bands:
        for start in range(0, band.common.shape[1], WIDE_COLUMNS):
            wide = band.common[:, start : start + WIDE_COLUMNS][members].double()
            gram.addmm_(wide.sub_(wide[0].clone()), wide.T)
        if band.rare is not None:
            some = band.rare[members.numpy()]
            gram += torch.from_numpy((some @ some.T).toarray())
    first, other = torch.searchsorted(members, pairs.contiguous()).T
    norms = gram.diagonal()[first] + gram.diagonal()[other]
    found = norms - 2 * gram[first, other]
    return found.masked_fill_(found <= CLOSE_WIDE * norms, torch.nan)


def _by_differences(pairs: torch.Tensor, bands: Iterator[Band]) -> torch.Tensor:
    """Sum the squared differences of pairs, as many at a time as take an eighth of the band's size."""
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    for band in bands:
        count = -(-len(band.common) // 16)
        for start in range(0, len(pairs), count):
            some = slice(start, start + count)
            first, other = pairs[some].T
            difference = band.common[first].sub_(band.common[other])
            sums[some] += squared_norms(difference)
            if band.rare is not None:
                apart = band.rare[first.numpy()] - band.rare[other.numpy()]
                sums[some] += torch.from_numpy(apart.power(2).sum(1))
    return sums
