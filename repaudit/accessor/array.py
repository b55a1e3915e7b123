"""``.repaudit`` on arrays: operators of activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from repaudit.operators.operator import DiffusionOperator


class ArrayAccessor:
    """What can be computed from activations.

    Examples
    --------
    >>> import numpy as np
    >>> points = xr.DataArray(np.random.default_rng(0).normal(size=(20, 3)), dims=("sample", "feature"))
    >>> points.repaudit
    repaudit of an array (sample 20, feature 3): gauge() computes its operator
    >>> points.repaudit.gauge(knn=5).n_samples
    20
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim} {size}" for dim, size in self._array.sizes.items())
        return f"repaudit of an array ({sizes}): gauge() computes its operator"

    def gauge(self, **parameters: Any) -> DiffusionOperator:
        """Compute the diffusion operator of activations (sample, feature).

        Parameters
        ----------
        parameters
            Parameters of :class:`repaudit.DiffusionGauge`.

        Returns
        -------
        DiffusionOperator

        Raises
        ------
        ActivationError
            The array has other dims, or values that are not finite; the message names model, layer and step if known.
        """
        from repaudit.gauge.gauge import DiffusionGauge

        return DiffusionGauge(**parameters)(self._array)
