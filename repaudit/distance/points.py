"""Samples as the metric sees them: centred and scaled so that distances lose nothing to rounding or overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from repaudit.errors import ActivationError

_PANEL = 256
_PANEL_ENTRIES: Final = {"cpu": 2**19, "cuda": 2**25}


def row_panels(count: int, size: int) -> Iterator[slice]:
    """Return consecutive slices of at most ``size`` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def cache_panels(matrix: Tensor) -> Iterator[slice]:
    """Return ranges of rows of a matrix that stay in cache from one step to the next."""
    entries = _PANEL_ENTRIES.get(matrix.device.type, 2**20)
    return row_panels(len(matrix), max(1, entries // max(1, matrix.shape[1])))


Metric: TypeAlias = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Cloud:
    """Samples ``x / deviation / norm * scaling - centre``, made by rows when they are asked for.

    No second copy of the activations is kept, and close pairs can be recomputed from the activations themselves.
    Distances do not depend on the centre, so it may be rounded; ``scaling`` is a power of two, so it is exact.
    ``spread`` is the root mean square distance of the samples from their mean, in scaled units.
    """

    samples: Tensor
    deviation: Tensor | None
    norm: Tensor | None
    centre: Tensor
    scaling: float
    spread: float = 0.0

    def __len__(self) -> int:
        return self.samples.shape[0]

    def exact(self, index: slice | Tensor) -> Tensor:
        """Return rows in float64, not centred and not scaled, ``(len(index), feature)``; maybe a view: read only."""
        rows = self.samples[index].double()
        if self.deviation is not None:
            rows = rows / self.deviation
        if self.norm is not None:
            rows = rows / self.norm[index, None]
        return rows

    def rows(self, index: slice | Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return centred and scaled rows, ``(len(index), feature)``, in a copy."""
        dtype = dtype or self.samples.dtype
        if dtype == self.samples.dtype and self.deviation is None and self.norm is None:
            return torch.add(-self.centre.to(dtype), self.samples[index], alpha=self.scaling)
        return torch.add(-self.centre.double(), self.exact(index), alpha=self.scaling).to(dtype)

    def scaled(self, distance: float | str | None) -> Any:
        """Return a distance in scaled units; None and names as they are."""
        return distance if distance is None or isinstance(distance, str) else float(distance) * self.scaling

    def part(self, place: slice) -> Cloud:
        """Return a range of the samples, centred and scaled as all of them are."""
        norm = None if self.norm is None else self.norm[place]
        return Cloud(self.samples[place], self.deviation, norm, self.centre, self.scaling, self.spread)

    @cached_property
    def groups(self) -> Tensor:
        """Return a number for each sample, the same for equal samples, ``(sample)``."""
        found: Tensor = torch.unique(self.samples, dim=0, return_inverse=True)[1]
        return found


def cloud(samples: Tensor, metric: Metric = "euclidean", standardize: bool = False) -> Cloud:
    """Prepare samples ``(sample, feature)`` for distances under a metric.

    ``metric="cosine"`` is the Euclidean distance of unit vectors, ``d² = 2 (1 - cos)``; ``standardize`` divides each
    feature by its standard deviation (a constant feature stays as it is). The centre is the mean of the samples that
    are not far out: a massive row would drag it away and spoil all other distances.

    Raises
    ------
    ActivationError
        A zero row, which has no direction, with ``metric="cosine"``.
    """
    scaling = power_of_two(max(abs(float(bound)) for bound in torch.aminmax(samples)))
    deviation = _deviation(samples, scaling) if standardize else None
    norm = _norms(samples, deviation) if metric == "cosine" else None
    origin = torch.zeros(samples.shape[1], dtype=samples.dtype, device=samples.device)
    bare = Cloud(samples, deviation, norm, origin, 1.0 if norm is not None or standardize else scaling)
    centred = _centred(bare, None)
    spread, distance = _spread(centred)
    usual = distance <= 4 * distance.median()
    if not bool(usual.all()):
        centred = _centred(bare, usual)
        spread, distance = _spread(centred)
    finer = power_of_two(spread)
    return Cloud(samples, deviation, norm, centred.centre * finer, centred.scaling * finer, spread * finer)


def _centred(points: Cloud, keep: Tensor | None) -> Cloud:
    """Return the same samples about the mean of the kept ones."""
    total = torch.zeros(points.samples.shape[1], dtype=torch.float64, device=points.samples.device)
    for part in row_panels(len(points), _PANEL):
        rows = points.rows(part)
        total += (rows if keep is None else rows[keep[part]]).sum(0)
    centre = total / (len(points) if keep is None else keep.sum())
    return Cloud(points.samples, points.deviation, points.norm, centre.to(points.centre.dtype), points.scaling)


def _spread(points: Cloud) -> tuple[float, Tensor]:
    """Return the root mean square distance from the mean, and each sample's distance from the centre ``(sample)``."""
    distance = torch.empty(len(points), dtype=torch.float64, device=points.samples.device)
    offset = torch.zeros_like(points.centre, dtype=torch.float64)
    for part in row_panels(len(points), _PANEL):
        rows = points.rows(part)
        distance[part] = torch.linalg.vector_norm(rows, dim=1).double()
        offset += rows.sum(0)
    variance = distance.square().mean() - (offset / len(points)).square().sum()
    return math.sqrt(max(float(variance), 0.0)), distance


def power_of_two(value: float) -> float:
    """Return the power of two that brings a positive value near 1."""
    return 2.0 ** -round(math.log2(value)) if value > 0 else 1.0


def _norms(samples: Tensor, deviation: Tensor | None) -> Tensor:
    norms = torch.empty(len(samples), dtype=torch.float64, device=samples.device)
    for part in row_panels(len(samples), _PANEL):
        rows = samples[part].double()
        rows = rows if deviation is None else rows / deviation
        largest = rows.abs().amax(1, keepdim=True)
        # the largest entry is taken out first, so that squares do not overflow
        ratio = torch.linalg.vector_norm(rows / largest.clamp(min=torch.finfo(rows.dtype).tiny), dim=1)
        norms[part] = largest[:, 0] * ratio
    zero = (norms == 0).nonzero()[:, 0].tolist()
    if zero:
        raise ActivationError(
            f"metric='cosine' needs directions, and {len(zero)} of {len(samples)} samples are zero rows: "
            f"{zero[:5]}; leave them out, or use metric='euclidean'"
        )
    return norms


def _deviation(samples: Tensor, scaling: float) -> Tensor:
    """Return the standard deviation of each feature, float64; 1 for a feature that is constant to rounding."""
    parts = list(row_panels(len(samples), _PANEL))
    scaled = sum((samples[part].double() * scaling).sum(0) for part in parts)
    mean = torch.as_tensor(scaled) / len(samples)
    square = sum((samples[part].double() * scaling - mean).square_().sum(0) for part in parts)
    deviation = (torch.as_tensor(square) / len(samples)).sqrt_()
    constant = deviation <= torch.finfo(torch.float64).eps * 8 * mean.abs()
    return torch.where(constant, 1.0, deviation / scaling)
