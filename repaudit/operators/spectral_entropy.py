"""The entropy of a spectrum that is too large to be computed: from random vectors, with its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXACT: Final = 1000
"""Samples up to which an entropy is computed from all eigenvalues: of 2,000 these take 9 times as long, of 5,000 40."""
VECTORS: Final = 8
"""Random vectors: what they differ by tells the error."""
STEPS: Final = 40
"""Products with the operator for each vector; half of them tell what the others still add."""


@dataclass(frozen=True)
class SpectralEntropy:
    """An entropy in nats, and its standard error; 0 where it is computed from all eigenvalues."""

    value: float
    error: float


def estimate_entropy(conjugate: Any, stationary: Array, t: float = 1, *, seed: int = 0) -> SpectralEntropy:
    """Estimate ``-Σ p log p``, ``p = |λ|^t / Σ |λ|^t``, of a reversible operator by stochastic Lanczos quadrature.

    ``Σ f(λ) = E z' f(S) z`` over random signs ``z``; Lanczos iteration from ``z`` gives nodes and weights of a Gauss
    quadrature of each term. The eigenvalue 1 of the stationary distribution is known and taken out before. The error
    is the jackknife's over the vectors, and what the second half of the steps changes.

    Parameters
    ----------
    conjugate : dense or scipy sparse (sample, sample), float64
        The symmetric conjugate of the operator.
    stationary : (sample)
    t : float
    seed : int
        Of the vectors.

    Examples
    --------
    >>> ring = np.roll(np.eye(256), 1, axis=0) / 2
    >>> exact = np.abs(np.linalg.eigvalsh(ring + ring.T))
    >>> found = estimate_entropy(ring + ring.T, np.full(256, 1 / 256))
    >>> bool(abs(found.value + (exact / exact.sum() * np.log(exact / exact.sum() + 1e-300)).sum()) < 4 * found.error)
    True

    References
    ----------
    Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal.
    Appl. 38.
    """
    samples, known = len(stationary), np.sqrt(stationary)[:, None]
    start = np.random.default_rng(seed).choice([-1.0, 1.0], size=(samples, VECTORS))
    start -= known * (known * start).sum(0)
    alphas, betas = _lanczos(conjugate, start / np.linalg.norm(start, axis=0), min(STEPS, samples - 1))
    half = -(-len(alphas) // 2)
    sums, before = (
        (samples - 1) * _quadrature(alphas[:steps], betas[:steps], t) + [[1.0], [0.0]] for steps in (len(alphas), half)
    )
    value = _entropy(sums.mean(1))
    left_out = np.array([_entropy(np.delete(sums, one, axis=1).mean(1)) for one in range(VECTORS)])
    spread = float(np.sqrt((VECTORS - 1) * left_out.var()))
    return SpectralEntropy(value, float(np.hypot(spread, value - _entropy(before.mean(1)))))


def _entropy(sums: Array) -> float:
    """Return the entropy from ``Σ w`` and ``-Σ w log w`` of weights that are not normalised."""
    total, logs = sums
    return float(np.log(total) + logs / total)


def _quadrature(alphas: Array, betas: Array, t: float) -> Array:
    """Return ``z' |S|^t z`` and ``-z' |S|^t log |S|^t z`` of every vector, (2, V), from tridiagonal matrices."""
    steps, vectors = alphas.shape
    matrices = np.zeros((vectors, steps, steps))
    at = np.arange(steps)
    matrices[:, at, at] = alphas.T
    matrices[:, at[1:], at[:-1]] = matrices[:, at[:-1], at[1:]] = betas[: steps - 1].T
    nodes, frames = np.linalg.eigh(matrices)
    weight, values = frames[:, 0] ** 2, np.abs(nodes) ** t
    logs = np.where(values > 0, values * np.log(np.where(values > 0, values, 1)), 0)
    return np.stack([(weight * values).sum(1), -(weight * logs).sum(1)])


def _lanczos(matrix: Any, start: Array, steps: int) -> tuple[Array, Array]:
    """Return the diagonals and off-diagonals (steps, V) of the Lanczos matrices of V vectors at once.

    Every new vector is made orthogonal to all before it, since rounding would give the large eigenvalues again.
    """
    samples, vectors = start.shape
    basis = np.zeros((vectors, steps, samples))
    basis[:, 0] = start.T
    alphas, betas = np.zeros((steps, vectors)), np.zeros((steps, vectors))
    for step in range(steps):
        found = np.ascontiguousarray((matrix @ basis[:, step].T).T)
        alphas[step] = np.einsum("vn,vn->v", basis[:, step], found)
        known = basis[:, : step + 1]
        for _ in range(2):
            found -= (found[:, None] @ known.mT @ known)[:, 0]
        betas[step] = np.linalg.norm(found, axis=1)
        if step + 1 < steps:
            length = betas[step][:, None]
            basis[:, step + 1] = np.where(length > _NOTHING, found / np.maximum(length, _NOTHING), 0)
    return alphas, np.where(betas > _NOTHING, betas, 0)


_NOTHING: Final = 1e-12
"""The norm of a vector that rounding alone has left: all of the spectrum that the start sees is found."""
