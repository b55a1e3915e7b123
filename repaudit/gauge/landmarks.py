"""Diffusion through landmarks: the kernel between all samples and a few of them, as a thin factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from repaudit.distance.points import Cloud, row_panels
from repaudit.distance.squared import panel, squared_block_
from repaudit.gauge.bandwidth import floored
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.normalize import refuse_isolated
from repaudit.gauge.smallest import smallest

_PANEL_ENTRIES: Final = {"cpu": 2**20, "cuda": 2**25}


def landmark_operator(
    points: Cloud, kernel: Kernel, fixed: float | None, knn: int, landmarks: Tensor
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the factor ``(sample, landmark)``, the degrees ``(sample)`` and the counts of diagnostics.

    The local scale is the distance to the ``knn``-th nearest landmark, the sample itself excluded, and the density
    correction divides ``K_il`` by ``(Σ_m K_im)^alpha (Σ_j K_jl)^alpha``: with every sample a landmark, both are those
    of the dense operator.
    """
    dtype = points.samples.dtype
    factor = torch.empty(len(points), len(landmarks), dtype=dtype, device=points.samples.device)
    there = panel(points, landmarks, dtype)
    reach = torch.full((len(points),), fixed or 0.0, dtype=torch.float64, device=factor.device)
    for place in _panels(factor):
        rows = squared_block_(factor[place], points, panel(points, place, dtype), there)
        if fixed is None:
            own = landmarks == _ids(place, landmarks.device)[:, None]
            reach[place] = smallest(rows.masked_fill(own, torch.inf), knn)[0].amax(1).double().sqrt()
    duplicates = int((torch.bincount(points.groups)[points.groups] > 1).sum())
    collapsed = int(points.groups.amax()) == 0
    scale, floors = floored(reach, 0.0 if collapsed else points.spread)
    degrees = _markov_factor_(factor, kernel, scale, landmarks)
    return factor, degrees, {"duplicates": duplicates, "collapsed": collapsed, "floored": floors}


def _markov_factor_(squared: Tensor, kernel: Kernel, scale: Tensor, landmarks: Tensor) -> Tensor:
    """Turn squared distances ``(sample, landmark)`` into the factor, in place; give back the degrees ``D``."""
    dtype, zero = squared.dtype, torch.zeros_like(scale)
    near, far = zero.clone(), zero[: len(landmarks)].clone()
    for place in _panels(squared):
        rows = kernel.pairs(squared[place].double(), scale[place, None], scale[landmarks], dtype)
        if not kernel.self_loops:
            rows[landmarks == _ids(place, landmarks.device)[:, None]] = 0.0
        near[place] = rows.sum(1)
        far += rows.sum(0)
        squared[place] = rows
    for sums in (near, far):
        refuse_isolated(sums, dtype, "more landmarks, more knn or a larger bandwidth")
    near_weight, far_weight = near.pow(-kernel.alpha), far.pow(-kernel.alpha)
    degrees, arrivals = zero.clone(), torch.zeros_like(far)
    for place in _panels(squared):
        rows = squared[place].double() * near_weight[place, None] * far_weight
        degrees[place] = rows.sum(1)
        arrivals += rows.sum(0)
    left, right = near_weight / degrees.sqrt(), far_weight / arrivals.sqrt()
    for place in _panels(squared):
        squared[place] = squared[place].double() * left[place, None] * right
    return degrees


def _panels(factor: Tensor) -> Iterator[slice]:
    entries = _PANEL_ENTRIES.get(factor.device.type, _PANEL_ENTRIES["cpu"])
    return row_panels(len(factor), max(1, entries // factor.shape[1]))


def _ids(place: slice, device: torch.device) -> Tensor:
    return torch.arange(place.start, place.stop, device=device)
