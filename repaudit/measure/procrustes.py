"""Procrustes similarity: the best agreement of two representations that an orthogonal map reaches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def procrustes(first: Array, second: Array, permutations: int, seed: int) -> tuple[float, float]:
    """Return the nuclear norm of ``Xc' Yc`` over the norms, and its mean over relabellings, of centred matrices.

    A representation is first turned into its principal axes, at most as many as samples: that changes no singular
    value of the product, which then is that of small matrices.
    """
    first, second = _principal(first), _principal(second)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not norms > 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = [_nuclear(first, second[rng.permutation(len(second))]) for _ in range(permutations)]
    return _nuclear(first, second) / norms, float(np.mean(drawn)) / norms


def _principal(centred: Array) -> Array:
    """Return the same samples on orthogonal axes, as many as the smaller side has."""
    if centred.shape[1] <= centred.shape[0]:
        return centred
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores: Array = left * values
    return scores


def _nuclear(first: Array, second: Array) -> float:
    return float(np.linalg.svd(first.T @ second, compute_uv=False).sum())
