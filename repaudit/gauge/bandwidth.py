"""The local scale of each sample, and the floor under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from repaudit.distance.points import cache_panels
from repaudit.gauge.smallest import smallest

FLOOR: Final = 1e-6
"""Smallest bandwidth, as a fraction of the root mean square distance of the samples from their mean."""


@dataclass(frozen=True)
class Bandwidth:
    """Local scale of each sample, with what was seen on the way."""

    scale: Tensor
    floored: int
    duplicates: int
    collapsed: bool


def bandwidth(squared: Tensor, knn: int, fixed: float | str | None, spread: float) -> Bandwidth:
    """Local scale of each sample, ``(sample)`` in float64, from squared distances ``(sample, sample)``.

    ``fixed=None``: the distance to the ``knn``-th neighbour, the sample itself excluded; a number: that number;
    "median": the median distance between two different samples. No scale is less than :data:`FLOOR` of the data's.
    """
    count = squared.shape[0]
    if fixed is None:
        nearest = smallest(squared, knn + 1)[0]
        scale = nearest.amax(1).double().sqrt()
        zeros = (nearest == 0).sum(1)
    else:
        value = median_distance(squared) if fixed == "median" else float(fixed)
        scale = torch.full((count,), value, dtype=torch.float64, device=squared.device)
        zeros = torch.cat([(squared[part] == 0).sum(1) for part in cache_panels(squared)])
    duplicates = int((zeros > 1).sum())
    collapsed = duplicates == count and not bool(squared.any())
    return Bandwidth(*floored(scale, 0.0 if collapsed else spread), duplicates, collapsed)


def floored(scale: Tensor, spread: float) -> tuple[Tensor, int]:
    """Raise scales to the floor; tell how many were raised. Where all samples are equal any scale will do: 1."""
    floor = FLOOR * spread if spread > 0 else 1.0
    low = scale < floor
    return torch.where(low, floor, scale), int(low.sum())


def median_distance(squared: Tensor) -> float:
    """Return the median distance between two different samples; the mean of the middle two where pairs are even."""
    count = squared.shape[0]
    matrix = squared.cpu().numpy()
    above = np.concatenate([matrix[row, row + 1 :] for row in range(count - 1)])
    low, high = (len(above) - 1) // 2, len(above) // 2
    above.partition([low, high])
    return float(np.sqrt(np.float64(above[low])) + np.sqrt(np.float64(above[high]))) / 2
