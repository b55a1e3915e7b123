"""Stationary distribution of any row-stochastic matrix, reducible ones included."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.float64]

_ABSENT: Final = 1e-14
"""Transitions weaker than this are within rounding of none."""


def stationary_distribution(transition: Array) -> Array:
    """Where a walk that starts at a uniformly drawn sample spends its time, ``(sample)``, summing to 1.

    Solves ``π = π P``. Where the chain falls into several closed classes ``π`` is not unique; each class then weighs as
    much as the uniform start sends there, ``a_c = Σ_i Pr(i ends in c) / N``, so that permuting samples permutes ``π``.

    Source: Kemeny and Snell, Finite Markov Chains (1960), chapters 3 and 5.

    Examples
    --------
    >>> stationary_distribution(np.array([[0.7, 0.3], [0.1, 0.9]])).round(6).tolist()
    [0.25, 0.75]
    """
    count = len(transition)
    labels = _strong_classes(transition)
    closed = _closed(transition, labels)
    inside = np.isin(labels, closed)
    start = np.full(count, 1 / count)
    transient = np.flatnonzero(~inside)
    if len(transient):
        stay = transition[np.ix_(transient, transient)]
        visits = np.linalg.solve((np.eye(len(transient)) - stay).T, start[transient])
        start = np.where(inside, start, 0.0)
        start[inside] += visits @ transition[np.ix_(transient, np.flatnonzero(inside))]
    result = np.zeros(count)
    for label in closed:
        members = np.flatnonzero(labels == label)
        block = transition if len(members) == count else transition[np.ix_(members, members)]
        result[members] = start[members].sum() * _irreducible(block)
    return result


def _irreducible(transition: Array) -> Array:
    count = len(transition)
    system = np.eye(count) - transition.T + 1.0 / count
    found: Array = np.clip(np.linalg.solve(system, np.full(count, 1.0 / count)), 0.0, None)
    found /= found.sum()
    return found


def _strong_classes(transition: Array) -> NDArray[np.int32]:
    if transition.min() > _ABSENT:
        return np.zeros(len(transition), dtype=np.int32)
    links = csr_array(transition > _ABSENT)
    labels: NDArray[np.int32] = connected_components(links, directed=True, connection="strong")[1]
    return labels


def _closed(transition: Array, labels: NDArray[np.int32]) -> list[int]:
    """Classes that no transition leaves."""
    if labels.max() == 0:
        return [0]
    rows, columns = np.nonzero(transition > _ABSENT)
    leaving = labels[rows] != labels[columns]
    return sorted(set(labels.tolist()) - set(labels[rows[leaving]].tolist()))
