"""Gromov-Wasserstein barycenter: merging operators on different samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.operators.operator import DiffusionOperator

Array = NDArray[np.float64]

_ROUNDS = 50


def gromov_barycenter(
    operators: list[DiffusionOperator], weights: list[float], count: int, seed: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Compute an operator on ``count`` new samples that is nearest to all, its degrees, and the loss per operator.

    Each operator is taken as a measure network: the heat kernel ``C = P_ij / π_j``, symmetric for a reversible
    operator, with ``π`` as the measure. The barycenter ``C*`` under the square loss, with measure ``p`` the mean of the
    sorted ``π``, gives ``P* = C* diag(p)``: row-stochastic and reversible, as ``C* p = Σ w_k T_k' C_k π_k / p = 1``.
    The order of the new samples has no meaning, and the problem is not convex: ``seed`` sets where the search starts.

    Source: Peyré, Cuturi and Solomon, Gromov-Wasserstein averaging of kernel and distance matrices (2016); Chowdhury
    and Needham, Generalized spectral clustering via Gromov-Wasserstein learning (2021), for heat kernels; solved by
    POT.
    """
    networks = [_network(operator) for operator in operators]
    measure = _quantile_mean([other for _, other in networks], weights, count)
    center = _start(networks, count, seed)
    plans: list[Any] = [None] * len(networks)
    loss = np.inf
    for _ in range(_ROUNDS):
        before = loss
        plans, loss = _match(center, measure, networks, weights, plans)
        if before - loss <= 1e-9 * max(loss, 1e-9):
            break
        parts = (w * plan @ kernel @ plan.T for w, plan, (kernel, _) in zip(weights, plans, networks, strict=True))
        center = sum(parts) / np.outer(measure, measure)
    matrix = np.clip((center + center.T) / 2, 0, None) * measure
    matrix /= matrix.sum(1, keepdims=True)
    return torch.from_numpy(matrix), torch.from_numpy(measure) * count, {"gromov_loss": float(loss), "seed": seed}


def _match(
    center: Array, measure: Array, networks: list[tuple[Array, Array]], weights: list[float], plans: list[Any]
) -> tuple[list[Any], float]:
    """Return the coupling of each network with the barycenter, and the weighted loss.

    For heat kernels the product coupling, where such searches commonly start, is a stationary point that they never
    leave. The first coupling is the transport between the diagonals of the kernels' powers instead.
    """
    import ot

    couplings, loss = [], 0.0
    for (kernel, other), weight, before in zip(networks, weights, plans, strict=True):
        first = before
        if first is None:
            first = ot.emd(measure, other, ot.dist(_signature(center, measure), _signature(kernel, other)))
        plan, log = ot.gromov.gromov_wasserstein(center, kernel, measure, other, "square_loss", G0=first, log=True)
        couplings.append(plan)
        loss += weight * float(log["gw_dist"])
    return couplings, loss


def _signature(kernel: Array, measure: Array) -> Array:
    """Return the heat kernel signature ``log (P^t)_ii / π_i`` for t = 1, 2, 4, 8, ``(sample, 4)``."""
    columns, power = [], kernel * measure
    for _ in range(4):
        columns.append(np.log(np.maximum(np.diag(power) / measure, 1e-12)))
        power = power @ power
    return np.stack(columns, axis=1)


def _start(networks: list[tuple[Array, Array]], count: int, seed: int) -> Array:
    """Return the kernel of the first operator with enough samples, or of the largest, on a choice of its samples."""
    sizes = [len(other) for _, other in networks]
    kernel, other = networks[next((i for i, size in enumerate(sizes) if size >= count), int(np.argmax(sizes)))]
    order = np.argsort(-other, kind="stable")
    if len(other) != count:
        generator = np.random.default_rng(seed)
        order = order[np.sort(generator.choice(len(other), count, replace=count > len(other)))]
    return kernel[np.ix_(order, order)]


def _network(operator: DiffusionOperator) -> tuple[Array, Array]:
    if not operator.reversible:
        raise OperatorError(
            "strategy='gromov' expects reversible operators, found one whose flow circulates: use the gauge's"
        )
    measure = operator.stationary.detach().cpu().numpy()
    if (measure <= 0).any():
        raise OperatorError("strategy='gromov' expects operators without transient samples, found one that has some")
    kernel = operator.wide.detach().cpu().numpy() / measure
    return (kernel + kernel.T) / 2, measure


def _quantile_mean(measures: list[Array], weights: list[float], count: int) -> Array:
    """Return the mean of the sorted measures, as densities over quantiles averaged over ``count`` equal parts."""
    edges = np.linspace(0, 1, count + 1)
    total = np.zeros(count)
    for measure, weight in zip(measures, weights, strict=True):
        below = np.concatenate([[0.0], np.cumsum(np.sort(measure)[::-1])])
        total += weight * np.diff(np.interp(edges, np.linspace(0, 1, len(measure) + 1), below))
    total /= total.sum()
    return total
