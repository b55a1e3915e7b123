"""One layer's units over steps as one diffusion operator: the multislice kernel of M-PHATE."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from repaudit.errors import ActivationError

Array = NDArray[np.float64]

MOST_POINTS: Final = 5000
SAME: Final = 1e-9
"""Smallest bandwidth, as a share of the largest distance in the slice: copies of a unit are not divided by zero."""
TINY: Final = 1e-300


def standardised_units(activations: ArrayLike) -> tuple[Array, int]:
    """Return activations as (step, feature, sample) of mean 0 and variance 1 over samples, and how many do not vary."""
    units = np.asarray(activations, dtype=np.float64)
    if units.ndim != 3 or min(units.shape) < 2:
        raise ActivationError(f"expected (step, sample, feature), at least 2 of each, found {units.shape}")
    if not np.isfinite(units).all():
        step = int((~np.isfinite(units)).any((1, 2)).argmax())
        raise ActivationError(f"expected finite activations, found NaN or infinity at step index {step}")
    if units.shape[0] * units.shape[2] > MOST_POINTS:
        count = units.shape[0] * units.shape[2]
        raise ActivationError(f"expected at most {MOST_POINTS} points (steps x features), found {count}: choose fewer")
    units = units.transpose(0, 2, 1)
    deviation = units.std(2, keepdims=True)
    varies = deviation > 1e-12 * np.abs(units).max(2, keepdims=True)
    standardised = np.divide(units - units.mean(2, keepdims=True), deviation, out=np.zeros_like(units), where=varies)
    return standardised, int((~varies).sum())


def multislice_operator(units: Array, *, knn: int = 2, step_knn: int = 25, decay: float = 5.0) -> Array:
    """Compute the diffusion operator over all (step, unit) pairs of standardised activations (step, feature, sample).

    Units of one step are joined by ``exp(-(d / s)^decay)`` with s the distance to the `knn`-th neighbour, one unit
    over the steps by ``exp(-d^2 / e^2)`` with e the mean distance to its `step_knn`-th nearest other step; everything
    else is 0. The kernel is made symmetric, ``(K + K') / 2``, and row-stochastic. `knn` and `step_knn` are reduced to
    the number of other units and steps.

    Returns
    -------
    ndarray (step x feature, step x feature)

    References
    ----------
    Gigante, Charles, Krishnaswamy and Mishne (2019), Visualizing the PHATE of neural networks, NeurIPS.
    """
    steps, features = units.shape[:2]
    knn, step_knn = min(knn, features - 1), min(step_knn, steps - 1)
    kernel = np.zeros((steps, features, steps, features))
    for step in range(steps):
        distances = cdist(units[step], units[step])
        scale = np.maximum(np.sort(distances, axis=1)[:, knn], SAME * distances.max(initial=0)) + TINY
        with np.errstate(over="ignore"):
            kernel[step, :, step, :] = np.exp(-((distances / scale[:, None]) ** decay))
    across = np.stack([cdist(units[:, unit], units[:, unit]) for unit in range(features)])
    scale = np.sort(across, axis=2)[:, :, step_knn].mean() + TINY
    off = ~np.eye(steps, dtype=bool)
    for unit in range(features):
        kernel[:, unit, :, unit][off] = np.exp(-((across[unit][off] / scale) ** 2))
    flat = kernel.reshape(steps * features, -1)
    symmetric = (flat + flat.T) / 2
    operator: Array = symmetric / symmetric.sum(1, keepdims=True)
    return operator
