"""Squared distances between samples: as fast as a matrix product, as right as the direct computation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from repaudit.distance.points import Cloud, row_panels

TOLERANCE: Final = {torch.float32: 1e-6, torch.float64: 1e-11}
"""Relative error of a squared distance above which a product of matrices is not trusted with it."""

_DENSE_FLAGS: Final = 0.01
_PAIRS_AT_ONCE: Final = {"cpu": 64, "cuda": 256}
_WIDE: Final = 1024
_STRIP: Final = {"cpu": 256, "cuda": 4096}

Where = slice | Tensor
Place = tuple[Where, Where]


@dataclass(frozen=True)
class Panel:
    """Centred rows of a range or choice of samples, their squared norms, and the largest of these."""

    place: Where
    rows: Tensor
    norms: Tensor
    largest: float


def panel(points: Cloud, place: Where, dtype: torch.dtype) -> Panel:
    """Return the centred rows of some samples, with their norms."""
    rows = points.rows(place, dtype)
    norms = torch.linalg.vector_norm(rows, dim=1).square_()
    return Panel(place, rows, norms, float(norms.amax()))


def squared_distances_(out: Tensor, points: Cloud, strip: int | None = None) -> Tensor:
    """Fill ``out (sample, sample)``, contiguous, with ``|x_i - x_j|²``, exactly symmetric, the diagonal exactly zero.

    The upper triangle comes in strips of rows, ``|x|² + |y|² - 2 x·y``; a distance whose rounding error,
    ``eps (|x|² + |y|²)``, exceeds :data:`TOLERANCE` of it is computed again from the difference, and a strip with many
    such in float64. The lower triangle mirrors the upper one.

    Strips need the centred samples from their own first row on. These stand at the end of ``out`` itself until the
    strips come near, so that no copy of them is allocated where there are more samples than features.
    """
    count, width = points.samples.shape
    size = strip or _STRIP.get(out.device.type, 256)
    lodged = width <= count
    rows = out.view(-1)[(count - width) * count :].view(count, width) if lodged else out.new_empty(count, width)
    for part in row_panels(count, size):
        rows[part] = points.rows(part, out.dtype)
    norms = torch.linalg.vector_norm(rows, dim=1).square_()
    for place in row_panels(count, size):
        if lodged and (count - width) * count + place.start * width < place.stop * count:
            rows, lodged = rows.clone(), False
        many, own, rest = place.stop - place.start, out[place, place], slice(place.start, count)
        right = Panel(rest, rows, norms, float(norms.amax()))
        left = Panel(place, rows[:many], norms[:many], float(norms[:many].amax()))
        squared_block_(out[place, rest], points, left, right)
        # the two halves of a product may differ in the last bit
        own.copy_(torch.maximum(own, own.mT))
        rows, norms = rows[many:], norms[many:]
    for place in row_panels(count, size):
        out[place.stop :, place] = out[place, place.stop :].mT
    return out


def squared_block_(out: Tensor, points: Cloud, left: Panel, right: Panel) -> Tensor:
    """Fill ``out`` with the squared distances between two ranges or choices of samples."""
    torch.addmm(right.norms, left.rows, right.rows.mT, alpha=-2, out=out)
    out += left.norms[:, None]
    place = (left.place, right.place)
    _set_diagonal(out, place, math.inf)
    doubt = torch.finfo(out.dtype).eps / 2 / TOLERANCE[out.dtype]
    if float(out.amin()) < doubt * (left.largest + right.largest):
        flagged = (out < doubt * (left.norms[:, None] + right.norms)).nonzero()
        if len(flagged) > _DENSE_FLAGS * out.numel() and out.dtype != torch.float64:
            _again_in_float64(out, points, place)
        elif len(flagged):
            _correct(out, points, place, flagged)
    _set_diagonal(out, place, 0.0)
    return out


def pair_distances(points: Cloud, i: Tensor, j: Tensor) -> Tensor:
    """Return the squared distances of the pairs ``(i, j)`` from their differences, in float64 and scaled units."""
    found = torch.empty(len(i), dtype=torch.float64, device=i.device)
    for part in row_panels(len(i), _PAIRS_AT_ONCE.get(i.device.type, 256)):
        # rows chosen by a tensor are a copy
        found[part] = points.exact(i[part]).sub_(points.exact(j[part])).mul_(points.scaling).square_().sum(1)
    return found


def _again_in_float64(out: Tensor, points: Cloud, place: Place) -> None:
    left = panel(points, place[0], torch.float64)
    for part in row_panels(out.shape[1], _WIDE):
        wide = torch.empty(len(out), part.stop - part.start, dtype=torch.float64, device=out.device)
        columns = _samples(place[1], torch.arange(part.start, part.stop, device=out.device))
        out[:, part] = squared_block_(wide, points, left, panel(points, columns, wide.dtype))


def _correct(out: Tensor, points: Cloud, place: Place, flagged: Tensor) -> None:
    """Recompute the flagged pairs; equal samples, which may be many, are told by their group."""
    i, j = flagged.unbind(1)
    left, right = _samples(place[0], i), _samples(place[1], j)
    if len(flagged) > _DENSE_FLAGS * out.numel():
        same = points.groups[left] == points.groups[right]
        out[i[same], j[same]] = 0.0
        i, j, left, right = i[~same], j[~same], left[~same], right[~same]
    out[i, j] = pair_distances(points, left, right).to(out.dtype)


def _samples(where: Where, index: Tensor) -> Tensor:
    """Return the samples that rows or columns of a block stand for."""
    return index + where.start if isinstance(where, slice) else where[index]


def _set_diagonal(out: Tensor, place: Place, value: float) -> None:
    """Set the entries between a sample and itself."""
    left, right = place
    if not (isinstance(left, slice) and isinstance(right, slice)):
        rows, columns = (_samples(w, torch.arange(n, device=out.device)) for w, n in zip(place, out.shape, strict=True))
        out.masked_fill_(rows[:, None] == columns, value)
        return
    low, high = max(left.start, right.start), min(left.stop, right.stop)
    if low < high:
        out[low - left.start : high - left.start, low - right.start : high - right.start].fill_diagonal_(value)
