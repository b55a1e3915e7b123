"""What an operator is beside a constant diagonal and a constant elsewhere: all that unrelated ones differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

_AT_ONCE: Final = 64
"""Operators that are copied at once: a part of a band, and few calls."""


@dataclass(frozen=True)
class Structure:
    """Means of T operators on and off the diagonal, and the squares about them, of some rows or of all.

    With ``a`` and ``b`` these means of an operator and ``s`` the sum of the squares about them, what a randomly
    relabelled one is expected to be from another is ``s_i + s_j + N (a_i - a_j)^2 + N (N - 1) (b_i - b_j)^2``: the same
    number as :func:`repaudit.measure.null.null_squared_distance`, of which nothing cancels where operators are nearly
    uniform, or nearly a multiple of the identity.

    Attributes
    ----------
    rows, samples : int
        So many rows of operators of so many samples.
    diagonal, elsewhere : (T,)
        Means of the entries.
    squares : (T,)
        Sum of the squares about the one or the other.
    """

    rows: int
    samples: int
    diagonal: Array
    elsewhere: Array
    squares: Array

    @classmethod
    def of_dense(cls, band: torch.Tensor, start: int) -> Structure:
        """Compute it of rows (T, rows, sample) from a row `start` on.

        Sums run in the operators' own precision over one row each, of entries less about their mean, and are added in
        float64.
        """
        found = [_of_dense(some, start) for some in torch.split(band, _AT_ONCE)]
        return cls(band.shape[1], band.shape[2], *np.concatenate(found, axis=1))

    @classmethod
    def of_sparse(
        cls, every: Sequence[tuple[NDArray[np.int64], NDArray[Any]]], rows: int, samples: int, start: int
    ) -> Structure:
        """Compute it of the places in rows from `start` on, in order, and the values there, of each operator."""
        found = [_of_sparse(places, values, rows, samples, start) for places, values in every]
        return cls(rows, samples, *np.array(found).T)

    def __add__(self, others: Structure) -> Structure:
        """Return that of both sets of rows, of the same operators: squares about means of both."""
        rows = self.rows + others.rows
        share, together = others.rows / rows, self.rows * others.rows / rows
        diagonal, elsewhere = others.diagonal - self.diagonal, others.elsewhere - self.elsewhere
        squares = self.squares + others.squares
        squares += together * (diagonal**2 + (self.samples - 1) * elsewhere**2)
        return Structure(
            rows, self.samples, self.diagonal + share * diagonal, self.elsewhere + share * elsewhere, squares
        )

    def null(self, some: slice) -> Array:
        """Return the expected squared distances (some, T) of some of the operators from all."""
        diagonal = self.diagonal[some, None] - self.diagonal
        elsewhere = self.elsewhere[some, None] - self.elsewhere
        found: Array = self.samples * (diagonal**2 + (self.samples - 1) * elsewhere**2)
        found += self.squares[some, None] + self.squares
        return found


def _of_dense(band: torch.Tensor, start: int) -> Array:
    rows, samples = band.shape[1:]
    on = torch.diagonal(band[:, :, start : start + rows], dim1=1, dim2=2).double()
    about = (band[:, 0].double().sum(1) - on[:, 0]) / (samples - 1)  # of one row: it need not be the mean
    about = about.to(band.dtype)
    rest = band - about[:, None, None]
    torch.diagonal(rest[:, :, start : start + rows], dim1=1, dim2=2).zero_()
    sums = rest.sum(2).sum(1, dtype=torch.float64)
    squares = torch.linalg.vector_norm(rest, dim=2).double().square_().sum(1)
    diagonal, count = on.mean(1), rows * (samples - 1)
    squares += (on - diagonal[:, None]).square_().sum(1) - sums.square() / count
    return torch.stack([diagonal, about.double() + sums / count, squares.clamp_(min=0)]).numpy()


def _of_sparse(
    places: NDArray[np.int64], values: NDArray[Any], rows: int, samples: int, start: int
) -> tuple[float, float, float]:
    wide, on = values.astype(np.float64), np.zeros(rows)
    if len(places):
        diagonal = np.arange(rows) * (samples + 1) + start
        at = np.minimum(np.searchsorted(places, diagonal), len(places) - 1)
        held = places[at] == diagonal
        on[held] = wide[at[held]]
        wide[at[held]] = 0
    mean, total, count = on.mean(), wide.sum(), rows * (samples - 1)
    squares = float(np.square(on - mean).sum()) + max(float(wide @ wide) - total**2 / count, 0.0)
    return float(mean), float(total / count), squares
