"""What it costs to move mass between samples, in units of the cost of a typical transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.merge.means import weighted_mean
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator

Array = NDArray[np.float64]

BOUND: Final = 10.0
"""Largest ground cost by default, in units of its scale."""

_NONE: Final = 1e-12
_ROWS: Final = 512


def ground_cost(matrices: list[Tensor], weights: list[float], cost: Any = None) -> Tensor:
    """Return the cost of moving mass between samples, ``(sample, sample)``, float64, in units of its scale.

    The squared diffusion distance of the mean operator, ``Σ_k (P_ik - P_jk)² / π_k``, or the given one, which belongs
    to the samples and not to their order. See :func:`scaled_cost` for the scale.
    """
    return scaled_cost(matrices, weights, cost)[0]


def scaled_cost(matrices: list[Tensor], weights: list[float], cost: Any = None) -> tuple[Tensor, float]:
    """Return the ground cost and its scale: the median over samples of the mean cost of a transition to another.

    ``median_i Σ_j≠i P_ij c_ij / Σ_j≠i P_ij`` with the mean operator ``P``, over the samples where it is above zero; 0
    if it is zero for all, so that no row of an operator has mass at samples that differ. Of a given cost, it is the
    median of the costs above zero then. By default the cost is bounded at 10 times the scale, so that a sample far from
    all others sets neither the scale nor the range of ``cost / reg``.

    Measured on 60 and 200 samples in two clusters, 3 models, ``DiffusionGauge(knn=15)``, with one more sample and with
    the same taken times 100: the largest cost grows by 1.5 to 40, this scale by .01 to .2, as the median of all costs
    does. That one depends on the share of pairs in different clusters (1.3 to 7 times this scale); the median of the
    smallest costs of the rows is .09 to .5 of it, and nearly zero where most samples have a near duplicate. Without an
    outlying sample the largest cost is 3 to 10 times this scale.

    Raises
    ------
    OperatorError
        The given cost is not a symmetric, non-negative matrix over the samples with a zero diagonal.
    """
    mean = weighted_mean(matrices, weights)
    unscaled = _given(cost, mean) if cost is not None else DiffusionOperator(mean).diffusion_distance(1).square()
    leaving = mean - torch.diag(mean.diagonal())
    scale = _typical((leaving * unscaled).sum(1), leaving.sum(1))
    if scale == 0 and cost is not None:
        scale = _middle(unscaled[unscaled > 0])
    if scale == 0:
        return torch.zeros_like(unscaled), 0.0
    scaled = unscaled / scale
    return (scaled.clamp(max=BOUND) if cost is None else scaled), scale


def _typical(costs: Tensor, masses: Tensor) -> float:
    leaves = masses > 0
    means = costs[leaves] / masses[leaves]
    return _middle(means[means > _NONE * means.amax()]) if len(means) else 0.0


def _middle(values: Tensor) -> float:
    return float(np.median(values.cpu().numpy())) if len(values) else 0.0


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


@dataclass(frozen=True)
class SparseCost:
    """The ground cost of sparse operators, computed among few samples at a time."""

    profile: csr_array
    squares: Array
    given: Array | None
    scale: float

    @classmethod
    def of(cls, matrices: list[Tensor], weights: list[float], cost: Any = None) -> SparseCost:
        """Prepare the cost, as :func:`scaled_cost` does, in memory of the order of the operators'."""
        matrix = weighted_mean(matrices, weights)
        mean = SparseDiffusionOperator(matrix.coalesce())
        leaving = mean.csr - diags_array(mean.csr.diagonal())
        masses = torch.from_numpy(np.asarray(leaving.sum(axis=1)).ravel())
        if cost is not None:
            given = _given(cost, matrix).cpu().numpy()
            costs = np.asarray(leaving.multiply(given).sum(axis=1)).ravel()
            scale = _typical(torch.from_numpy(costs), masses) or _middle(torch.from_numpy(given[given > 0]))
            return cls(mean.csr, np.zeros(0), given, scale)
        profile = _profile(mean)
        squares = np.asarray(profile.multiply(profile).sum(axis=1)).ravel()
        inner = [
            np.asarray((profile[at : at + _ROWS] @ profile.T).multiply(leaving[at : at + _ROWS]).sum(axis=1)).ravel()
            for at in range(0, len(squares), _ROWS)
        ]
        costs = squares * masses.numpy() + leaving @ squares - 2 * np.concatenate(inner)
        # what rounding leaves of a difference of equal numbers is no cost
        costs[costs <= _NONE * squares] = 0
        return cls(profile, squares, None, _typical(torch.from_numpy(costs), masses))

    def among(self, samples: NDArray[np.int64]) -> Array:
        """Return the cost among these samples, in units of the scale."""
        if self.given is not None:
            return np.asarray(self.given[np.ix_(samples, samples)] / self.scale)
        some, squares = self.profile[samples], self.squares[samples]
        cost = squares[:, None] + squares - 2 * (some @ some.T).toarray()
        cost[cost <= _NONE * (squares[:, None] + squares)] = 0
        np.fill_diagonal(cost, 0)
        return np.asarray(np.minimum(cost / self.scale, BOUND))


def _profile(mean: SparseDiffusionOperator) -> csr_array:
    """Return ``P_ik / sqrt(π_k)``, whose squared distances are the squared diffusion distances."""
    stationary = mean.stationary.cpu().numpy()
    reached = np.asarray(mean.csr.sum(axis=0)).ravel() > 0
    if (stationary[reached] <= 0).any():
        raise OperatorError("the diffusion distance divides by the stationary mass, and transient samples have none")
    return csr_array(mean.csr @ diags_array(np.where(reached, 1 / np.sqrt(np.where(reached, stationary, 1)), 0)))
