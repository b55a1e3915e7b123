"""What does not depend on the order of an operator's samples, or compares the distances of samples only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.stack import Operator, matrix_of

RSA_TIME = 8
"""Diffusion time of the distances that representational similarity analysis compares."""


def spectrum(operator: Operator) -> NDArray[np.complex128]:
    """Compute the eigenvalues (N,) of an operator, largest real part first; those of a reversible operator are real.

    Examples
    --------
    >>> spectrum(np.array([[0.7, 0.3], [0.1, 0.9]])).real.round(6).tolist()
    [1.0, 0.6]
    """
    values = _as_operator(operator).eigenpairs()[0].numpy().astype(np.complex128)
    return values[np.lexsort((-values.imag, -values.real))]


def diffusion_distances(operator: Operator, t: int = RSA_TIME) -> NDArray[np.float64]:
    """Compute the diffusion distances (N, N) of the samples after `t` transitions.

    ``sqrt(sum_k (P^t_ik - P^t_jk)^2 / pi_k)`` (Coifman and Lafon, Diffusion maps, 2006).
    """
    distances: NDArray[np.float64] = _as_operator(operator).diffusion_distance(t).cpu().numpy()
    return distances


def standardized(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return off-diagonal distances with mean 0 and norm 1, the diagonal 0; all 0 if the distances are equal.

    Half the squared Frobenius distance of two of these is 1 - r, Pearson's r of the off-diagonal distances.
    """
    off = ~np.eye(len(distances), dtype=bool)
    centred = np.where(off, distances - distances[off].mean(), 0.0)
    norm = float(np.linalg.norm(centred))
    if norm <= 1e-9 * float(np.linalg.norm(distances)) or norm == 0:
        return np.zeros_like(centred)
    return centred / norm


def _as_operator(operator: Operator) -> DiffusionOperator:
    if isinstance(operator, DiffusionOperator):
        return operator
    return DiffusionOperator.from_matrix(matrix_of(operator))
