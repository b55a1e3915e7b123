"""Squared distances between samples: as fast as a matrix product, as right as the direct computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.errors import ActivationError

TOLERANCE: Final = {torch.float32: 1e-6, torch.float64: 1e-11}
"""Relative error of a squared distance above which a product of matrices is not trusted with it."""

_DENSE_FLAGS: Final = 0.01
_PAIRS_AT_ONCE: Final = 2048


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep float32 products at float32: no TF32, no bfloat16, no autocast, whatever the caller's settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Cloud:
    """Samples as the metric sees them: centred, scaled by a power of two, optionally standardised or of unit norm.

    Rows are made when they are asked for, ``(x / deviation / norm - centre) * unit``, so that no second copy of the
    activations is kept and close pairs can be recomputed from the activations themselves.
    """

    samples: Tensor
    deviation: Tensor | None
    norm: Tensor | None
    centre: Tensor
    unit: float

    def __len__(self) -> int:
        return self.samples.shape[0]

    def exact(self, index: slice | Tensor) -> Tensor:
        """Rows in float64, not centred and not scaled, ``(len(index), feature)``; maybe a view: read only."""
        rows = self.samples[index].double()
        if self.deviation is not None:
            rows = rows / self.deviation
        if self.norm is not None:
            rows = rows / self.norm[index, None]
        return rows

    def rows(self, index: slice, dtype: torch.dtype) -> Tensor:
        """Centred and scaled rows in ``dtype``, ``(len(index), feature)``."""
        return self.exact(index).sub(self.centre).mul_(self.unit).to(dtype)

    def pairs(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances of the pairs ``(i, j)`` from their differences, in float64 and scaled units."""
        panels = row_panels(len(i), _PAIRS_AT_ONCE)
        found = [((self.exact(i[p]) - self.exact(j[p])) * self.unit).square_().sum(1) for p in panels]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=i.device)

    @property
    def work_dtype(self) -> torch.dtype:
        return torch.float64 if self.samples.dtype == torch.float64 else torch.float32


def cloud(samples: Tensor, metric: str = "euclidean", standardize: bool = False) -> Cloud:
    """Prepare samples ``(sample, feature)`` for distances under a metric.

    ``metric="cosine"`` is the Euclidean distance of unit vectors, ``d² = 2 (1 - cos)``; ``standardize`` divides each
    feature by its standard deviation (a constant feature stays as it is). The centre is the float64 mean of the samples
    that are not far out: a massive row would drag it away and spoil all other distances.
    """
    deviation = _deviation(samples) if standardize else None
    norm = _norms(samples, deviation) if metric == "cosine" else None
    bare = Cloud(samples, deviation, norm, torch.zeros((), dtype=torch.float64, device=samples.device), 1.0)
    panels = list(row_panels(len(samples), 1024))
    centre = _mean(bare, panels, None)
    spread = torch.cat([_row_norms(bare.exact(panel) - centre) for panel in panels])
    usual = spread <= 4 * spread.median()
    if not bool(usual.all()):
        centre = _mean(bare, panels, usual)
        spread = torch.cat([_row_norms(bare.exact(panel) - centre) for panel in panels])
    scale = float(spread.square().mean().sqrt()) if bool(spread.max() < 1e150) else float(spread.max())
    unit = 2.0 ** -round(_log2(scale)) if scale > 0 else 1.0
    return Cloud(samples, deviation, norm, centre, unit)


def row_panels(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def squared_distances_(out: Tensor, points: Cloud, block: int = 512) -> Tensor:
    """Fill ``out (sample, sample)`` with ``|x_i - x_j|²``, exactly symmetric, the diagonal exactly zero.

    The upper triangle comes from blocks of ``|x|² + |y|² - 2 x·y``; a distance whose rounding error,
    ``eps (|x|² + |y|²)``, exceeds :data:`TOLERANCE` of it is computed again from the difference, and a block with many
    such in float64. The lower triangle mirrors the upper one.
    """
    panels = list(row_panels(len(points), block))
    for row, left in enumerate(panels):
        a = points.rows(left, out.dtype)
        for right in panels[row:]:
            b = a if right is left else points.rows(right, out.dtype)
            squared_block_(out[left, right], points, (left, right), (a, b))
            if right is not left:
                out[right, left] = out[left, right].mT
    return out


def squared_block_(out: Tensor, points: Cloud, place: tuple[slice, slice], rows: tuple[Tensor, Tensor]) -> None:
    """Fill ``out`` with the squared distances between two ranges of samples (``place``) of centred ``rows``."""
    a, b = rows
    left, right = a.square().sum(1), b.square().sum(1)
    torch.addmm(right, a, b.mT, alpha=-2, out=out)
    out += left[:, None]
    _forget_diagonal(out, place, torch.inf)
    doubt = torch.finfo(out.dtype).eps / 2 / TOLERANCE[out.dtype]
    if bool(out.amin() < doubt * (left.max() + right.max())):
        flagged = (out < doubt * (left[:, None] + right)).nonzero()
        if len(flagged) > _DENSE_FLAGS * out.numel() and out.dtype != torch.float64:
            _again_in_float64(out, points, place)
        elif len(flagged):
            _correct(out, points, place, flagged)
    _forget_diagonal(out, place, 0.0)


def _again_in_float64(out: Tensor, points: Cloud, place: tuple[slice, slice]) -> None:
    wide = torch.empty(out.shape, dtype=torch.float64, device=out.device)
    squared_block_(wide, points, place, (points.rows(place[0], wide.dtype), points.rows(place[1], wide.dtype)))
    out.copy_(wide)


def _correct(out: Tensor, points: Cloud, place: tuple[slice, slice], flagged: Tensor) -> None:
    """Recompute the flagged pairs; equal rows, which may be many, are told by their bytes."""
    i, j = flagged.unbind(1)
    if len(flagged) > _DENSE_FLAGS * out.numel():
        group = _groups(points.samples)
        same = group[i + place[0].start] == group[j + place[1].start]
        out[i[same], j[same]] = 0.0
        i, j = i[~same], j[~same]
    out[i, j] = points.pairs(i + place[0].start, j + place[1].start).to(out.dtype)


def _groups(samples: Tensor) -> Tensor:
    group: Tensor = torch.unique(samples, dim=0, return_inverse=True)[1]
    return group


def _forget_diagonal(out: Tensor, place: tuple[slice, slice], value: float) -> None:
    left, right = place
    low, high = max(left.start, right.start), min(left.stop, right.stop)
    if low < high:
        out[low - left.start : high - left.start, low - right.start : high - right.start].fill_diagonal_(value)


def _mean(points: Cloud, panels: list[slice], keep: Tensor | None) -> Tensor:
    """Float64 mean of the kept rows; divided first, so that huge values do not overflow."""
    count = len(points) if keep is None else int(keep.sum())
    total = torch.zeros(points.samples.shape[1], dtype=torch.float64, device=points.samples.device)
    for panel in panels:
        rows = points.exact(panel)
        total += ((rows if keep is None else rows[keep[panel]]) / count).sum(0)
    return total


def _row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms that do not overflow: the largest entry is taken out before squaring."""
    largest = rows.abs().amax(1, keepdim=True)
    ratio: Tensor = torch.linalg.vector_norm(rows / largest.clamp(min=torch.finfo(rows.dtype).tiny), dim=1)
    return largest[:, 0] * ratio


def _norms(samples: Tensor, deviation: Tensor | None) -> Tensor:
    parts = []
    for panel in row_panels(len(samples), 1024):
        rows = samples[panel].double()
        parts.append(_row_norms(rows if deviation is None else rows / deviation))
    norms = torch.cat(parts)
    zero = (norms == 0).nonzero()[:, 0].tolist()
    if zero:
        raise ActivationError(
            f"metric='cosine' needs directions, and {len(zero)} of {len(samples)} samples are zero rows: "
            f"{zero[:5]}; leave them out, or use metric='euclidean'"
        )
    return norms


def _deviation(samples: Tensor) -> Tensor:
    bare = Cloud(samples, None, None, torch.zeros((), dtype=torch.float64, device=samples.device), 1.0)
    panels = list(row_panels(len(samples), 1024))
    mean = _mean(bare, panels, None)
    square = torch.zeros_like(mean)
    for panel in panels:
        square += (bare.exact(panel) - mean).square_().sum(0)
    deviation = (square / len(samples)).sqrt_()
    # a feature that is constant to rounding has no spread to be measured in
    constant = deviation <= torch.finfo(torch.float64).eps * 8 * mean.abs()
    return torch.where(constant, torch.ones_like(deviation), deviation)


def _log2(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log2())
