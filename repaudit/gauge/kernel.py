"""From squared distances to a row-stochastic matrix: bandwidth, kernel, density correction, row normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repaudit.errors import ActivationError
from repaudit.gauge.cloud import row_panels

FLOOR: Final = 1e-6
"""Smallest bandwidth, as a fraction of the root mean square distance of the samples from their mean."""

FAR: Final = {torch.float32: -80.0, torch.float64: -600.0}
"""Exponents up to this give zero: lost beside 1, and the exponentials of what lies below are denormal, thus slow."""

_PANEL_ENTRIES: Final = {"cpu": 2**19, "cuda": 2**25}
_FEW_THREADS: Final = 4


@dataclass(frozen=True)
class Bandwidth:
    """Local scale of each sample, with what was seen on the way."""

    scale: Tensor
    floored: int
    duplicates: int
    collapsed: bool


def panels(matrix: Tensor) -> Iterator[slice]:
    """Ranges of rows that stay in cache from one step to the next."""
    entries = _PANEL_ENTRIES.get(matrix.device.type, 2**20)
    return row_panels(len(matrix), max(1, entries // max(1, matrix.shape[1])))


def bandwidth(squared: Tensor, knn: int, fixed: float | str | None, spread: float) -> Bandwidth:
    """Local scale of each sample, ``(sample)`` in float64, from squared distances ``(sample, sample)``.

    ``fixed=None``: the distance to the ``knn``-th neighbour, the sample itself excluded; a number: that number;
    "median": the median distance between two different samples. No scale is less than :data:`FLOOR` of the data's.
    """
    count = squared.shape[0]
    if fixed is None:
        nearest = torch.cat([smallest_values(squared[part], knn + 1) for part in panels(squared)])
        scale = nearest.amax(1).double().sqrt()
        zeros = (nearest == 0).sum(1)
    else:
        value = median_distance(squared) if fixed == "median" else float(fixed)
        scale = torch.full((count,), value, dtype=torch.float64, device=squared.device)
        zeros = torch.cat([(squared[part] == 0).sum(1) for part in panels(squared)])
    duplicates = int((zeros > 1).sum())
    collapsed = duplicates == count and not bool(squared.any())
    return Bandwidth(*floored(scale, 0.0 if collapsed else spread), duplicates, collapsed)


def floored(scale: Tensor, spread: float) -> tuple[Tensor, int]:
    """Raise scales to the floor; tell how many were raised. Where all samples are equal any scale will do: 1."""
    floor = FLOOR * spread if spread > 0 else 1.0
    low = scale < floor
    return torch.where(low, floor, scale), int(low.sum())


def smallest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest entries of each row and their columns, in no order, ``(row, k)`` each."""
    values, groups = _candidates(rows, k)
    found, place = values.topk(k, largest=False, sorted=False)
    if groups is None:
        return found, place
    size, width = _grouping(rows.shape[1], k)
    own = groups.gather(1, (place % k)) + place // k * width
    # the columns at the end, which belong to no group, come after the groups' candidates
    return found, torch.where(place < size * k, own, place + size * (width - k))


def smallest_values(rows: Tensor, k: int) -> Tensor:
    """The ``k`` smallest entries of each row, in no order, ``(row, k)``."""
    values = _candidates(rows, k)[0]
    if not _vectorised(rows):
        return values.topk(k, largest=False, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[:, :k])


def _candidates(rows: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """Entries of each row with the ``k`` smallest among them, ``(row, candidate)``, and the groups they come from.

    The k groups of columns with the smallest minima hold them all, so that few entries are looked at twice. A group is
    every width-th column; a few columns at the end belong to none, and where there are few columns there are no groups.
    """
    size, width = _grouping(rows.shape[1], k)
    if size < 4:
        return rows, None
    grouped = rows[:, : width * size].reshape(len(rows), size, width)
    minima = grouped.amin(1)
    if _vectorised(rows):
        groups = torch.from_numpy(_lowest(minima.numpy(), k))
    else:
        groups = minima.topk(k, largest=False, sorted=False).indices
    members = grouped.gather(2, groups[:, None].expand(-1, size, -1)).reshape(len(rows), -1)
    return torch.cat([members, rows[:, width * size :]], 1), groups


def _grouping(columns: int, k: int) -> tuple[int, int]:
    """Columns a group and number of groups that leave the fewest entries to look at."""
    size = math.isqrt(columns // k)
    return size, columns // max(size, 1)


def _vectorised(rows: Tensor) -> bool:
    """Whether NumPy's selection, vectorised and on one thread, is faster than torch's on all threads."""
    return rows.device.type == "cpu" and torch.get_num_threads() <= _FEW_THREADS


def _lowest(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` smallest entries of each row, ``(row, k)``."""
    bound = np.partition(values, k - 1)[:, k - 1 : k]
    found = np.flatnonzero(values <= bound)
    if len(found) > k * len(values):  # equal ones on both sides of the bound
        found = np.argpartition(values, k - 1)[:, :k]
    columns: NDArray[np.int64] = found.reshape(-1, k) % values.shape[1]
    return columns


def median_distance(squared: Tensor) -> float:
    """Median of the distances between different samples; the mean of the middle two where their number is even."""
    count = squared.shape[0]
    total = count * (count - 1)
    # entries of the full matrix come in pairs, after the zeros of the diagonal
    low, high = count + (total // 2 - 1) // 2 * 2, count + (total // 2) // 2 * 2
    middle = [math.sqrt(float(order_statistic(squared, rank))) for rank in (low, high)]
    return sum(middle) / 2


def order_statistic(values: Tensor, rank: int) -> Tensor:
    """The entry of non-negative ``values`` that has ``rank`` entries before it in order, without a sorted copy.

    Non-negative floats are ordered as their bits are, so bisection over the bits ends in at most 64 counts.
    """
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    low, high = 0, int(bits.max())
    while low < high:
        middle = (low + high) // 2
        if sum(int((bits[part] <= middle).sum()) for part in panels(bits)) > rank:
            high = middle
        else:
            low = middle + 1
    return torch.tensor(low, dtype=bits.dtype).view(values.dtype)


def kernel_(squared: Tensor, scale: Tensor, decay: float | None, adaptive: bool, self_loops: bool) -> Tensor:
    """Turn squared distances into kernel values in place; give back the row sums in float64.

    Gaussian (``decay=None``): ``exp(-d_ij² / (s_i s_j))`` for adaptive scales, ``exp(-d² / (2 s²))`` for a fixed one.
    Alpha decay: ``1/2 [exp(-(d_ij / s_i)^decay) + exp(-(d_ij / s_j)^decay)]``.
    """
    inverse = (1 / scale if adaptive or decay is not None else math.sqrt(0.5) / scale).to(squared.dtype)
    sums = torch.empty_like(scale)
    for part in panels(squared):
        rows, own = squared[part], inverse[part, None]
        if decay is None:
            exp_(rows.mul_(inverse).mul_(-own))
        else:
            other = rows * inverse * inverse
            exp_(rows.mul_(own).mul_(own).pow_(decay / 2).neg_())
            rows.add_(exp_(other.pow_(decay / 2).neg_())).mul_(0.5)
        if not self_loops:
            rows.diagonal(part.start).zero_()
        sums[part] = rows.sum(1)
    return sums


def exp_(exponent: Tensor) -> Tensor:
    """Exponential in place, exactly zero at and below :data:`FAR`."""
    far = FAR[exponent.dtype]
    return torch.threshold_(exponent.clamp_(min=far).exp_(), math.exp(far) * (1 + 1e-5), 0.0)


def markov_(kernel: Tensor, sums: Tensor, alpha: float) -> Tensor:
    """Correct for density and normalise rows, in place; give back the degrees in float64.

    ``K_ij <- K_ij / (q_i q_j)^alpha`` with ``q`` the row sums (``sums``), then ``P = K / D``, ``D_i = sum_j K_ij``.
    """
    weight = sums.pow(-alpha)
    narrow = weight.to(kernel.dtype)
    degrees = torch.empty_like(sums)
    for part in panels(kernel):
        rows = kernel[part]
        if alpha:
            rows.mul_(narrow)
        total = rows.sum(1).double() if alpha else sums[part]
        rows.mul_(total.reciprocal()[:, None].to(rows.dtype))
        degrees[part] = total * weight[part]
    return degrees


def refuse_isolated(sums: Tensor, dtype: torch.dtype) -> None:
    """Without self loops a sample beyond the kernel's reach has nowhere to go: say which."""
    lost = (sums < (1e-25 if dtype == torch.float32 else 1e-200)).nonzero()[:, 0].tolist()
    if lost:
        raise ActivationError(
            f"{len(lost)} of {len(sums)} samples have no neighbour within the kernel's reach ({lost[:5]}), and "
            "self_loops=False leaves them no transition; use self_loops=True, more knn or a larger bandwidth"
        )
