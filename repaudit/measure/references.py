"""Operators less the reference nearest to each, so that in products of close ones next to nothing cancels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from repaudit.measure.products import add_products

MOST: Final = 32
"""References at most: each is one more row of the products."""

_UNSEEN: Final = 1e-6
"""Share of the squared norms below which a distance in single precision is not known."""


@dataclass(frozen=True)
class References:
    """Some of the operators, and which of them each operator is taken less of.

    With ``y_i = x_i - a_k(i)`` and the references in a tree, whose edges are ``c_e``, the difference of two operators
    is ``y_i - y_j`` and the edges between their references. These are short where the operators are close.

    Attributes
    ----------
    operators : (K), int
        The references, as numbers of operators, each behind its parent in the tree.
    parents : (K), int
        Number of each one's parent among the references; the first has none, and is its own.
    nearest : (T), int
        Number of each operator's reference among them.
    """

    operators: NDArray[np.int64]
    parents: NDArray[np.int64]
    nearest: NDArray[np.int64]

    @property
    def paths(self) -> NDArray[np.float64]:
        """Which edges lead from the first reference to each operator's, (T, K - 1)."""
        edges = np.zeros((len(self.operators), len(self.operators) - 1))
        for index in range(1, len(edges)):
            edges[index] = edges[self.parents[index]]
            edges[index, index - 1] = 1
        return edges[self.nearest]


class Links:
    """The way back from operators less their references to the products of the operators themselves.

    With ``s_i`` the edges from the first reference to that of operator i, ``x_i = a_0 + y_i + sum of s_ie c_e``. All
    are taken less ``a_0``.

    Parameters
    ----------
    references : References
    """

    def __init__(self, references: References) -> None:
        self.references = references
        self._paths = torch.from_numpy(references.paths)
        count, edges = self._paths.shape
        self._between = torch.zeros((edges, edges), dtype=torch.float64)
        self._with = torch.zeros((edges, count), dtype=torch.float64)

    def take(self, flat: torch.Tensor) -> torch.Tensor:
        """Take from each of the operators (T, cell) its reference, in place; return the entries of these."""
        ends = flat[torch.from_numpy(self.references.operators)]
        rows, taken = flat.numpy(), ends.numpy()
        for row, index in zip(rows, self.references.nearest.tolist(), strict=True):
            np.subtract(row, taken[index], out=row)
        return ends

    def add(self, ends: torch.Tensor, flat: torch.Tensor) -> None:
        """Add the products of the edges with each other, and with what is left of the operators."""
        edges = ends[1:] - ends[torch.from_numpy(self.references.parents[1:])]
        add_products(self._between, edges, edges)
        add_products(self._with, edges, flat)

    def rejoin(self, gram: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Turn products (first, T) of what is left into those of the operators, in place; return squared norms."""
        onto = torch.addmm(self._with, self._between, self._paths.T, alpha=0.5)
        top = len(gram)
        gram.addmm_(self._paths[:top], onto).addmm_(onto[:, :top].T, self._paths.T)
        return norms + 2 * (self._paths.T * onto).sum(0)

    def rounded(self, norms: torch.Tensor, first: int) -> torch.Tensor:
        """Return of what size the products were that a squared distance is made of, (first, T)."""
        lengths = self._paths * self._between.diagonal()
        sizes = norms + lengths.sum(1)
        return (sizes[:first, None] + sizes[None, :]).addmm_(lengths[:first], self._paths.T, alpha=-2)


def choose(squared: NDArray[np.floating[Any]], norms: NDArray[np.floating[Any]], share: float) -> References | None:
    """Choose references from rough squared distances, so that few pairs are closer than rounding allows.

    Parameters
    ----------
    squared : (first, T)
        From a part of the entries; references are among the first.
    norms : (T)
        Squared norms of the same, about their mean.
    share : float
        Of the squared norms of two operators, below which rounding shows in the square of their distance.

    Returns
    -------
    References, or None where one centre is enough, or what was measured is not finite
    """
    if not np.isfinite(squared).all():
        return None
    first, count = squared.shape
    apart = squared.copy()
    apart[np.diag_indices(first)] = np.inf
    near = np.minimum(np.append(apart.min(1), np.full(count - first, np.inf)), apart.min(0))
    allowed = np.maximum(near, _UNSEEN * norms + np.finfo(np.float32).tiny) / (2 * share)
    if (norms <= allowed).all():
        return None
    chosen: list[int] = []
    nearest, distance = np.zeros(count, np.int64), np.full(count, np.inf)
    worst = int(np.argmax(norms / allowed))
    while len(chosen) < min(MOST, first // 4) and distance[worst] > allowed[worst]:
        one = worst if worst < first else int(squared[:, worst].argmin())
        if one in chosen:
            break
        closer = squared[one] < distance
        nearest[closer], distance[closer] = len(chosen), squared[one][closer]
        distance[one], nearest[one] = 0, len(chosen)
        chosen.append(one)
        worst = int(np.argmax(distance / allowed))
    return _in_a_tree(np.array(chosen), nearest, squared) if len(chosen) > 1 else None


def _in_a_tree(chosen: NDArray[np.int64], nearest: NDArray[np.int64], squared: NDArray[Any]) -> References:
    between = squared[np.ix_(chosen, chosen)].astype(np.float64)
    between = between / (between.max() or 1) + _UNSEEN  # SciPy takes lengths below 1e-8 for no edge
    np.fill_diagonal(between, 0)
    order, before = breadth_first_order(minimum_spanning_tree(between), 0, directed=False)
    place = np.empty(len(chosen), np.int64)
    place[order] = np.arange(len(order))
    parents = np.append(0, place[before[order[1:]]])
    return References(chosen[order], parents, place[nearest])
