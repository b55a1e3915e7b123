"""How activations of tokens become the rows of an analysis: which tokens of a sample make a row, with what weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import SAMPLE, TOKEN

Integers = NDArray[np.int64]
_ENTRY = "entry"


@dataclass(frozen=True)
class TokenRows:
    """Rows made of the stored tokens (sample, token) of one model.

    Attributes
    ----------
    of_sample, position : (row)
        Which sample a row is of, and the how-manieth of its unmasked tokens it is, from 0.
    first : (row + 1)
        Where the entries of each row begin, and the number of entries.
    column, weight : (entry)
        The tokens that a row is the mean of, by their index along dim ``token``; the weights of a row sum to 1.

    Examples
    --------
    >>> rows = TokenRows(*(np.array(x) for x in ([0, 1], [0, 0], [0, 1, 3], [1, 0, 2], [1.0, 0.25, 0.75])))
    >>> values = xr.DataArray(np.arange(6.0).reshape(2, 3, 1), dims=("sample", "token", "feature"))
    >>> rows.of(values).values.tolist()
    [[1.0], [4.5]]
    """

    of_sample: Integers
    position: Integers
    first: Integers
    column: Integers
    weight: NDArray[np.float64]

    def of(self, values: xr.DataArray) -> xr.DataArray:
        """Return the rows (sample, feature) of activations (sample, token, feature); single tokens bit by bit."""
        sample = np.repeat(self.of_sample, np.diff(self.first))
        at = {SAMPLE: xr.DataArray(sample, dims=_ENTRY), TOKEN: xr.DataArray(self.column, dims=_ENTRY)}
        picked = values.isel(at).transpose(_ENTRY, ...)
        rows = picked.values
        if len(self.column) > len(self.of_sample):
            sums = np.add.reduceat(rows.astype(np.float64) * self.weight[:, None], self.first[:-1], axis=0)
            rows = sums.astype(np.result_type(rows.dtype, np.float32))
        coords: dict[Any, Any] = {name: one for name, one in values.coords.items() if not one.ndim}
        if SAMPLE in values.coords:
            coords[SAMPLE] = self.ids(values[SAMPLE].values)
        dims = (SAMPLE, *picked.dims[1:])
        return xr.DataArray(rows, dims=dims, coords=coords, attrs=values.attrs, name=values.name)

    def ids(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return the name of every row: the sample's and the position."""
        names = [
            f"{samples[sample]}@{position}" for sample, position in zip(self.of_sample, self.position, strict=True)
        ]
        return np.array(names, dtype=object)

    def identity(self) -> str:
        """Return a hash of what rows are made of."""
        made = hashlib.sha256()
        for part in (self.of_sample, self.first, self.column, self.weight):
            made.update(part.tobytes())
        return made.hexdigest()
