"""Points placed among landmarks that are laid out already, so that a layout of very many points stays small."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEIGHBORS: Final = 5
"""Landmarks between which a point is placed: as many as PHATE's kernel looks at."""

_AT_ONCE: Final = 256
"""Points that are placed at once: what is made of their distances is as large as these."""

NO_EXTENT: Final = 1e-9
"""Share of the largest extent below which a component holds rounding alone."""


def placed_between(distances: Array, landmarks: Array, neighbors: int = NEIGHBORS) -> Array:
    """Place points between their nearest landmarks, with weights ``1 / d^2``: a landmark's copy lies on it.

    Parameters
    ----------
    distances : (T, L)
        Of every point from every landmark.
    landmarks : (L, component)
    neighbors : int

    Returns
    -------
    ndarray (T, component)

    References
    ----------
    Shepard (1968), A two-dimensional interpolation function for irregularly-spaced data, ACM National Conference.

    Examples
    --------
    >>> placed_between(np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0], [4.0]])).tolist()
    [[2.0], [0.0]]
    """
    some = min(neighbors, len(landmarks))
    if len(distances) > _AT_ONCE:
        parts = (distances[start : start + _AT_ONCE] for start in range(0, len(distances), _AT_ONCE))
        return np.concatenate([placed_between(part, landmarks, neighbors) for part in parts])
    nearest = np.argpartition(distances, some - 1, axis=1)[:, :some]
    near = np.take_along_axis(distances, nearest, axis=1)
    closest = near.min(axis=1, keepdims=True)
    # relative to the closest one: the square of a small distance may be 0
    weights = np.divide(closest, near, out=np.ones_like(near), where=near > 0) ** 2
    weights[(closest == 0).ravel()] = near[(closest == 0).ravel()] == 0
    placed: Array = np.einsum("tk,tkc->tc", weights / weights.sum(axis=1, keepdims=True), landmarks[nearest])
    return placed


def placed_by_gower(distances: Array, among: Array, landmarks: Array) -> Array:
    """Add points to a classical MDS of landmarks: ``y = 1/2 L^-1 Y' (m - d^2)``, exact where the picture is.

    Parameters
    ----------
    distances : (T, L)
        Of every point from every landmark.
    among : (L, L)
        Of the landmarks from each other; ``m`` is the mean of each of their squares' columns.
    landmarks : (L, component)
        ``Y``, as :func:`repaudit.embed.mds.classical_mds` lays them out; ``L`` is ``Y'Y``, and in a component
        without extent all points are 0.

    Returns
    -------
    ndarray (T, component)

    References
    ----------
    Gower (1968), Adding a point to vector diagrams in multivariate analysis, Biometrika 55.

    Examples
    --------
    >>> line = np.array([[-1.0], [0.0], [1.0]])
    >>> placed_by_gower(np.array([[3.0, 2.0, 1.0]]), np.abs(line - line.T), line).round(9).tolist()
    [[2.0]]
    """
    extent = (landmarks**2).sum(axis=0)
    inverse = np.divide(0.5, extent, out=np.zeros_like(extent), where=extent > NO_EXTENT * extent.max(initial=0))
    means = (among**2).mean(axis=0)
    parts = (distances[start : start + _AT_ONCE] for start in range(0, max(1, len(distances)), _AT_ONCE))
    return np.concatenate([(means - part**2) @ landmarks * inverse for part in parts])
