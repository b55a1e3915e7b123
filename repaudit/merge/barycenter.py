"""Row-wise Wasserstein barycenter of diffusion operators: all rows of all operators in one matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.merge.means import weighted_mean
from repaudit.operators.operator import DiffusionOperator

SMALLEST_REG: Final = 1 / 300
"""Below this the scalings, of the order of ``exp(2 / reg)``, leave the range of float64."""

_ENTRIES: Final = {"cpu": 2**23, "cuda": 2**27}


@dataclass(frozen=True)
class Barycenter:
    """Rows on the simplex ``(row, sample)``, the largest L1 error of a marginal, the iterations of the slowest row."""

    rows: Tensor
    marginal_error: float
    iterations: int


def ground_cost(matrices: list[Tensor], weights: list[float], cost: Any = None) -> Tensor:
    """Return the cost of moving mass between samples, ``(sample, sample)``, float64, scaled to maximum 1.

    The squared diffusion distance of the mean operator, ``Σ_k (P_ik - P_jk)² / π_k``, or the given one, which belongs
    to the samples and not to their order.

    Raises
    ------
    OperatorError
        The given cost is not a symmetric, non-negative matrix over the samples with a zero diagonal.
    """
    if cost is None:
        mean = DiffusionOperator(weighted_mean(matrices, weights))
        unscaled = mean.diffusion_distance(1).square()
    else:
        unscaled = _given(cost, matrices[0])
    largest = float(unscaled.amax())
    return unscaled / largest if largest > 0 else unscaled


def _given(cost: Any, matrix: Tensor) -> Tensor:
    given = cost.detach() if isinstance(cost, Tensor) else torch.from_numpy(np.array(cost, dtype=np.float64))
    given = given.double().to(matrix.device)
    if given.shape != matrix.shape:
        raise OperatorError(f"expected a cost between {len(matrix)} samples, found shape {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()) or float(given.amin()) < 0:
        raise OperatorError("expected a cost that is finite and not negative, found other entries")
    if float((given - given.mT).abs().amax()) > 1e-9 * float(given.amax()) or bool(given.diagonal().any()):
        raise OperatorError("expected a symmetric cost with a zero diagonal, found another matrix")
    return given


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

    ``S(a, b) = OT(a, b) - [OT(a, a) + OT(b, b)] / 2`` with ``OT`` regularised by ``reg`` times the relative entropy;
    its barycenter of equal rows is that row. With ``debiased=False``, ``OT`` only, which blurs. Iterations end, row by
    row, when the marginals of all couplings, including that of ``b`` with itself, are within ``tolerance`` (L1).

    Source: Benamou et al., Iterative Bregman projections for regularized transportation problems (2015), proposition 2;
    Janati et al., Debiased Sinkhorn barycenters (2020), algorithm 1.
    """
    kept = [index for index, weight in enumerate(weights) if weight > 0]
    rows = torch.stack([matrices[index].detach().double() for index in kept])
    shares = torch.tensor([weights[index] for index in kept], dtype=torch.float64, device=rows.device)
    projections = _Projections(torch.exp(-cost / reg), shares / shares.sum(), debiased, tolerance, max_iterations)
    count = max(1, _ENTRIES.get(rows.device.type, 2**23) // (len(kept) * rows.shape[2]))
    parts = [projections(part) for part in rows.split(count, dim=1)]  # type: ignore[no-untyped-call]
    rows = torch.cat([part.rows for part in parts])
    return Barycenter(rows, max(part.marginal_error for part in parts), max(part.iterations for part in parts))


@dataclass(frozen=True)
class _Projections:
    """Iterative Bregman projections of a batch of rows ``(operator, row, sample)``."""

    kernel: Tensor
    weights: Tensor
    debiased: bool
    tolerance: float
    max_iterations: int

    def __call__(self, rows: Tensor) -> Barycenter:
        merged = torch.empty_like(rows[0])
        open_rows = torch.arange(rows.shape[1], device=rows.device)
        reached = torch.empty(len(open_rows), dtype=rows.dtype, device=rows.device)
        debias = self._start(torch.tensordot(self.weights, rows, dims=1))
        spread = (debias @ self.kernel).expand_as(rows)
        for iteration in range(1, self.max_iterations + 1):
            left = rows / spread
            back = left @ self.kernel
            center = debias * torch.exp(torch.tensordot(self.weights, back.log(), dims=1))
            spread = (center / back) @ self.kernel
            error = (left * spread - rows).abs().sum(2).amax(0)
            if self.debiased:
                itself = debias @ self.kernel
                error = torch.maximum(error, (debias * itself - center).abs().sum(1))
                debias = (debias * center / itself).sqrt()
            done = error <= self.tolerance
            last = iteration == self.max_iterations
            if last or (iteration % 10 == 0 and bool(done.any())):
                done = done | last
                merged[open_rows[done]] = center[done] / center[done].sum(1, keepdim=True)
                reached[open_rows[done]] = error[done]
                rows, spread, debias = rows[:, ~done], spread[:, ~done], debias[~done]
                open_rows = open_rows[~done]
            if len(open_rows) == 0:
                break
        return Barycenter(merged, float(reached.amax()), iteration)

    def _start(self, mean: Tensor) -> Tensor:
        """Return the scaling of the coupling of the mean with itself: the solution where all rows are equal."""
        scaling = torch.ones_like(mean)
        if not self.debiased:
            return scaling
        for _ in range(self.max_iterations):
            spread = scaling @ self.kernel
            if float((scaling * spread - mean).abs().sum(1).amax()) <= self.tolerance / 100:
                break
            scaling = (scaling * mean / spread).sqrt()
        return scaling


def exact_barycenter(matrices: list[Tensor], weights: list[float], cost: Tensor) -> Barycenter:
    """Compute the unregularised barycenter by linear programming, row by row: for a few hundred samples at most.

    ``min_b Σ_k w_k W(P_k[i], b)`` over the simplex on all samples. Source: Agueh and Carlier, Barycenters in the
    Wasserstein space (2011); solved by POT's ``ot.lp.barycenter``.
    """
    import ot

    stacked = torch.stack([matrix.detach().double().cpu() for matrix in matrices]).numpy()
    # the solver's feasibility is absolute, so the cost keeps its scale of 1 and the rows sum to 1 exactly
    stacked /= stacked.sum(2, keepdims=True)
    solved = [
        ot.lp.barycenter(stacked[:, row].T, cost.cpu().numpy(), weights=np.array(weights), solver="highs")
        for row in range(stacked.shape[1])
    ]
    rows = torch.from_numpy(np.clip(np.stack(solved), 0, None)).to(matrices[0].device)
    return Barycenter(rows / rows.sum(1, keepdim=True), 0.0, 1)
