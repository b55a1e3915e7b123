"""Points to draw: trajectories, their first two components, labels of samples, and the order of similarity maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import COMPONENT, LABEL, LAYER, MODEL, STEP
from repaudit.results import TRAJECTORY, names_of, one_layer


def path(dataset: xr.Dataset, layer: str, model: str, variable: str = TRAJECTORY) -> xr.DataArray:
    """Return the points of one model's trajectory, without the steps that the model lacks.

    Parameters
    ----------
    dataset
        Group ``trajectories`` of the results.
    layer, model
        Name of the layer and of the model.
    variable
        ``"trajectory"`` (PHATE), ``"mds"`` (classical scaling) or ``"together"`` (all layers in one picture).

    Returns
    -------
    DataArray (step, component)

    Raises
    ------
    AnalysisError
        The layer is not in the results.

    Examples
    --------
    >>> points = (("layer", "model", "step", "component"), [[[[0.0, 0.0], [np.nan, np.nan], [1.0, 2.0]]]])
    >>> coords = {"layer": ["norm"], "model": ["seed0"], "step": [0, 10, 20]}
    >>> path(xr.Dataset({"trajectory": points}, coords), "norm", "seed0")["step"].values.tolist()
    [0, 20]
    """
    points = one_layer(dataset, layer)[variable]
    index = names_of(dataset, MODEL).index(model)
    return points.isel({MODEL: index}).transpose(STEP, COMPONENT).dropna(STEP, how="any")


def two(points: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first two components of points (n, component); the second is 0 where there is only one."""
    values = np.asarray(points.values, dtype=float)
    return values[:, 0], values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))


def labels_of(dataset: xr.Dataset) -> list[str] | None:
    """Return the labels of the samples; None where the probe set had none, or where they are lost."""
    known = LABEL in dataset.variables and bool(dataset[LABEL].notnull().any())
    return [str(label) for label in dataset[LABEL].values] if known else None


@dataclass(frozen=True)
class Arrangement:
    """Order of the representations in a similarity map: blocks of one model, or of one layer."""

    index: NDArray[np.int64]
    outer: tuple[str, ...]
    inner: tuple[str, ...]

    @property
    def blocks(self) -> list[tuple[str, int, int]]:
        """Name, first position and end of each block."""
        starts = [k for k, name in enumerate(self.outer) if k == 0 or name != self.outer[k - 1]]
        return [(self.outer[a], a, b) for a, b in zip(starts, [*starts[1:], len(self.outer)], strict=True)]


Blocks: TypeAlias = Literal["model", "layer"]
"""What the blocks of a similarity map are of."""


def arrange(similarity: xr.Dataset, by: Blocks = MODEL) -> Arrangement:
    """Order representations by model and then layer (``by="model"``), or by layer and then model.

    Names keep the order in which they first occur.
    """
    other = LAYER if by == MODEL else MODEL
    outer, inner = (np.array([str(name) for name in similarity[dim].values], dtype=object) for dim in (by, other))
    rank = [{name: k for k, name in enumerate(dict.fromkeys(names))} for names in (outer, inner)]
    index = np.lexsort(([rank[1][name] for name in inner], [rank[0][name] for name in outer]))
    return Arrangement(index, tuple(outer[index]), tuple(inner[index]))
