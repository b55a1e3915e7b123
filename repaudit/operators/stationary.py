"""Stationary distribution of any row-stochastic matrix, reducible ones included."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, issparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigs, spsolve

from repaudit.errors import OperatorError

Array = NDArray[np.float64]
Transition: TypeAlias = Any
"""A dense array or a scipy sparse one."""

_ABSENT: Final = 1e-14
"""Transitions weaker than this are within rounding of none."""

_DIRECT: Final = 4000
"""Chains of up to this many samples are solved directly, larger sparse ones by Arnoldi iteration."""


def stationary_distribution(transition: Transition) -> Array:
    """Where a walk that starts at a uniformly drawn sample spends its time, ``(sample)``, summing to 1.

    Solves ``π = π P``. Where the chain falls into several closed classes ``π`` is not unique; each class then weighs as
    much as the uniform start sends there, ``a_c = Σ_i Pr(i ends in c) / N``, so that permuting samples permutes ``π``.

    Source: Kemeny and Snell, Finite Markov Chains (1960), chapters 3 and 5.

    Examples
    --------
    >>> stationary_distribution(np.array([[0.7, 0.3], [0.1, 0.9]])).round(6).tolist()
    [0.25, 0.75]
    """
    count = transition.shape[0]
    labels, closed = _classes(transition)
    start = _absorbed(transition, np.isin(labels, closed))
    result = np.zeros(count)
    for label in closed:
        members = np.flatnonzero(labels == label)
        block = transition if len(members) == count else transition[members][:, members]
        result[members] = start[members].sum() * _irreducible(block)
    return result


def reversible_part(transition: Array) -> Array:
    """Return the mean of a dense chain and its time reversal, ``(π_i P_ij + π_j P_ji) / 2 π_i``, which has the same π.

    Raises
    ------
    OperatorError
        A sample is transient, so that no walk comes back to it: there is no reversal.

    Source: Fill, Eigenvalue bounds on convergence to stationarity for nonreversible Markov chains (1991).

    Examples
    --------
    >>> reversible_part(np.roll(np.eye(3), 1, axis=1)).round(6).tolist()
    [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    stationary = stationary_distribution(transition)
    if not (stationary > 0).all():
        raise OperatorError(
            f"expected an operator whose walks come back to every sample, found {int((stationary <= 0).sum())} samples "
            "that none comes back to: it has no reversible part"
        )
    flow = stationary[:, None] * transition
    found = (flow + flow.T) / 2
    result: Array = found / found.sum(1, keepdims=True)
    return result


def _absorbed(transition: Transition, inside: NDArray[np.bool_]) -> Array:
    """Where a uniform start first enters a closed class, ``(sample)``."""
    count = transition.shape[0]
    start = np.full(count, 1 / count)
    transient = np.flatnonzero(~inside)
    if len(transient) == 0:
        return start
    leave = transition[transient]
    stay = leave[:, transient]
    if issparse(stay):
        visits = spsolve((eye_array(len(transient)) - stay).T.tocsc(), start[transient])
    else:
        visits = np.linalg.solve((np.eye(len(transient)) - stay).T, start[transient])
    return np.where(inside, start + visits @ leave, 0.0)


def _irreducible(transition: Transition) -> Array:
    count = transition.shape[0]
    if issparse(transition) and count > _DIRECT:
        vector = eigs(transition.T, k=1, which="LR", v0=np.full(count, 1.0 / count))[1][:, 0]
        found = np.abs(np.real(vector))
    else:
        dense = transition.toarray() if issparse(transition) else transition
        system = np.eye(count) - dense.T + 1.0 / count
        found = np.clip(np.linalg.solve(system, np.full(count, 1.0 / count)), 0.0, None)
    result: Array = found / found.sum()
    return result


def _classes(transition: Transition) -> tuple[NDArray[np.int32], list[int]]:
    """Return the communicating class of each sample, and which classes no transition leaves."""
    if not issparse(transition) and transition.min() > _ABSENT:
        return np.zeros(len(transition), dtype=np.int32), [0]
    links = csr_array(transition > _ABSENT)
    labels = connected_components(links, directed=True, connection="strong")[1]
    rows, columns = links.nonzero()
    leaving = labels[rows] != labels[columns]
    return labels, sorted(set(labels.tolist()) - set(labels[rows[leaving]].tolist()))
