"""Row-wise Wasserstein barycenter of diffusion operators: all rows of all operators at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repaudit.merge.projections import RANGE, Projections, Rows, in_passes

SMALLEST_REG: Final = 1e-4
"""Below this the iterations do not reach a marginal error that means anything."""

_ENTRIES: Final = {"cpu": 2**17, "cuda": 2**27}
_EQUAL: Final = 1e-12


@dataclass(frozen=True)
class Barycenter:
    """Rows on the simplex ``(row, sample)``, the largest L1 error of a marginal, the iterations of the slowest row."""

    rows: Tensor
    marginal_error: float
    iterations: int


@dataclass(frozen=True)
class Settings:
    """Settings of the barycenter of each row; ``reg`` is 0 for the exact one."""

    reg: float
    debiased: bool = True
    tolerance: float = 1e-4
    max_iterations: int = 2000


def barycenter(
    matrices: list[Tensor],
    weights: list[float],
    cost: Tensor,
    reg: float,
    *,
    debiased: bool = True,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
) -> Barycenter:
    """Compute per row ``i`` the ``b`` that minimises ``Σ_k w_k S(P_k[i], b)``, ``S`` the Sinkhorn divergence.

    ``S(a, b) = OT(a, b) - [OT(a, a) + OT(b, b)] / 2`` with ``OT`` regularised by ``reg`` times the relative entropy, in
    the unit of ``cost``; its barycenter of equal rows is that row. With ``debiased=False``, ``OT`` only, which blurs.
    ``b`` lies on the samples where one of the rows has mass: mass that is moved stops at such a sample.
    See :class:`repaudit.merge.projections.Projections` for the iterations, where they end and the sources.
    """
    kept = [index for index, weight in enumerate(weights) if weight > 0]
    rows = torch.stack([matrices[index].detach().double() for index in kept], dim=1)
    project = projections([weights[index] for index in kept], Settings(reg, debiased, tolerance), rows.device)
    scaled = cost.double() / reg
    entries = len(kept) * rows.shape[2] * (1 if float(scaled.amax()) <= RANGE else rows.shape[2])
    few = max(1, _ENTRIES.get(rows.device.type, 2**17) // entries)
    merged, reached = torch.empty_like(rows[:, 0]), Reached()
    for batch, found in in_passes(
        lambda left: torch.split(left, few),
        lambda batch, limit: of_rows(project, rows[batch], scaled, limit),
        len(rows),
        tolerance,
        max_iterations,
    ):
        merged[batch] = found.rows
        reached.see(found)
    return Barycenter(merged, reached.error, reached.iterations)


@dataclass
class Reached:
    """The largest error and number of iterations seen so far."""

    error: float = 0.0
    iterations: int = 0

    def see(self, found: Rows) -> None:
        """Take in the rows of a batch."""
        if len(found.errors):
            self.error = max(self.error, float(found.errors.amax()))
            self.iterations = max(self.iterations, int(found.iterations.amax()))


def projections(weights: list[float], settings: Settings, device: torch.device) -> Projections:
    """Return the iterations for operators of these weights, not all zero."""
    shares = torch.tensor(weights, dtype=torch.float64, device=device)
    return Projections(shares / shares.sum(), settings.debiased, settings.tolerance)


def of_rows(project: Projections, rows: Tensor, cost: Tensor, limit: int, there: Tensor | None = None) -> Rows:
    """Return the barycenters of a batch ``(row, operator, sample)``; of equal rows, that row, if there is no blur."""
    merged = rows[:, 0] / rows[:, 0].sum(1, keepdim=True)
    errors, iterations = rows.new_zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    differ = (rows - rows[:, :1]).abs().sum(2).amax(1) > _EQUAL
    if not project.debiased:
        differ[:] = True
    if bool(differ.any()):
        own = cost if cost.dim() == 2 else cost[differ]
        found = project(rows[differ], own, limit, None if there is None else there[differ])
        merged[differ], errors[differ], iterations[differ] = found.rows, found.errors, found.iterations
    return Rows(merged, errors, iterations)


def exact_barycenter(matrices: list[Tensor], weights: list[float], cost: Tensor) -> Barycenter:
    """Compute the unregularised barycenter by linear programming, row by row: for a few hundred samples at most.

    ``min_b Σ_k w_k W(P_k[i], b)`` over the simplex on all samples. Source: Agueh and Carlier, Barycenters in the
    Wasserstein space (2011); solved by POT's ``ot.lp.barycenter``.
    """
    stacked = torch.stack([matrix.detach().double().cpu() for matrix in matrices], dim=1).numpy()
    solved = np.stack([exact_row(row, weights, cost.cpu().numpy()) for row in stacked])
    return Barycenter(torch.from_numpy(solved).to(matrices[0].device), 0.0, 1)


def exact_row(row: NDArray[Any], weights: list[float], cost: NDArray[Any]) -> NDArray[Any]:
    """Return the exact barycenter of one row ``(operator, sample)``, on the samples where an operator has mass."""
    import ot

    own = (row > 0).any(0)
    if not own.all():
        merged = np.zeros(row.shape[1])
        merged[own] = exact_row(row[:, own], weights, cost[np.ix_(own, own)])
        return merged

    # the solver's feasibility is absolute, so costs are of the order of 1 and the rows sum to 1 exactly
    masses = (row / row.sum(1, keepdims=True)).T
    largest = cost.max()
    if largest == 0:
        return np.asarray(masses @ np.array(weights))
    solved = np.clip(ot.lp.barycenter(masses, cost / largest, weights=np.array(weights), solver="highs"), 0, None)
    return np.asarray(solved / solved.sum())
