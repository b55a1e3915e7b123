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
    >>> points.repaudit.gauge(knn=5).n_samples
    20
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

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
