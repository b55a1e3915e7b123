"""What figures take out of an analysis's results: groups, names, curves and points, each only as far as known."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.errors import AnalysisError
from repaudit.names import COMPONENT, LABEL, LAYER, MODEL, STEP

DIAGNOSTICS: Final = {
    "effective_neighbors": "effective neighbours",
    "entropy": "diffusion spectral entropy",
    "components": "connected components",
    "isolated": "isolated samples",
    "duplicates": "duplicate samples",
    "collapsed": "collapsed operators",
    "floored": "bandwidths at the floor",
    "failed": "operators that failed",
}
"""Variables of the group ``diagnostics`` and the words for them, in the order in which they are shown."""

DISTANCES: Final = {
    "spread": "from each other",
    "from_untrained": "from the untrained networks",
    "from_inputs": "from the inputs",
}
"""What the models of one layer are compared with, in the order in which it is shown."""


@dataclass(frozen=True)
class Line:
    """Steps, values and 95% bounds where the value is known, each of shape (steps known,); bounds may be NaN."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def top(self) -> float:
        """Largest of the values and upper bounds; 0 where there are none."""
        everything = np.concatenate([self.value, self.high[np.isfinite(self.high)]])
        return float(everything.max(initial=0.0))


def group(results: xr.DataTree, name: str, *needed: str) -> xr.Dataset | None:
    """Return a group of the results; None where it, or one of the variables needed, is absent or nowhere known."""
    if name not in results.children:
        return None
    found = results[name].to_dataset()
    return found if all(variable in found and known(found[variable]) for variable in needed) else None


def known(values: xr.DataArray) -> bool:
    """Tell whether any of these values is a number."""
    return bool(np.isfinite(np.asarray(values.values, dtype=float)).any())


def names_of(dataset: xr.Dataset, dim: Hashable) -> list[str]:
    """Return the names along a dim; those of an unlabelled dim are its indices."""
    if dim not in dataset.dims:
        return []
    return [str(name) for name in dataset[dim].values]


def one_layer(dataset: xr.Dataset, layer: str) -> xr.Dataset:
    """Select a layer by name; an unknown one raises :class:`AnalysisError` with the names there are."""
    names = names_of(dataset, LAYER)
    if layer not in names:
        raise AnalysisError(f"expected one of the layers of these results ({', '.join(names)}), found {layer!r}")
    return dataset.isel({LAYER: names.index(layer)})


def of_layer(dataset: xr.Dataset | None, layer: str, variable: str) -> bool:
    """Tell whether a dataset has anything known of a layer in this variable."""
    if dataset is None or variable not in dataset or layer not in names_of(dataset, LAYER):
        return False
    return known(one_layer(dataset, layer)[variable])


def line(dataset: xr.Dataset, layer: str, variable: str = "spread", **where: int) -> Line:
    """Return the line of one layer; ``where`` selects along the other dims by index.

    Its bounds are ``<variable>_low`` and ``<variable>_high`` where there are such, else ``low`` and ``high``.
    """
    one = one_layer(dataset, layer).isel(where)
    value = np.asarray(one[variable].values, dtype=float)
    there = np.isfinite(value)
    low, high = (_bound(one, variable, name)[there] for name in ("low", "high"))
    return Line(np.asarray(one[STEP].values)[there], value[there], low, high)


def _bound(one: xr.Dataset, variable: str, name: str) -> NDArray[np.float64]:
    found = next((own for own in (f"{variable}_{name}", name) if own in one), None)
    return np.full(one.sizes[STEP], np.nan) if found is None else np.asarray(one[found].values, dtype=float)


def distances(
    spread: xr.Dataset | None, comparison: xr.Dataset | None, layer: str
) -> tuple[dict[str, Line], float | None]:
    """Curves of what the models of a layer are compared with, as far as known, and the noise floor."""
    found = {
        name: line(dataset, layer, name)
        for name, dataset in zip(DISTANCES, (spread, comparison, comparison), strict=True)
        if dataset is not None and of_layer(dataset, layer, name)
    }
    if comparison is None or not of_layer(comparison, layer, "noise_floor"):
        return found, None
    return found, float(one_layer(comparison, layer)["noise_floor"])


def pairs(groups: xr.Dataset, layer: str) -> list[tuple[int, int, str, Line]]:
    """Curves within and between groups that are known: indices of the two groups, a name, the curve."""
    names = names_of(groups, "group")
    found = []
    for i in range(len(names)):
        for j in range(i, len(names)):
            drawn = line(groups, layer, group=i, other=j)
            if drawn.step.size:
                found.append((i, j, names[i] if i == j else f"{names[i]} | {names[j]}", drawn))
    return sorted(found, key=lambda pair: pair[0] != pair[1])


def path(dataset: xr.Dataset, layer: str, model: str, variable: str = "trajectory") -> xr.DataArray:
    """Points (step, component) of one model's trajectory, without the steps that the model lacks."""
    one = one_layer(dataset, layer)[variable]
    index = names_of(dataset, MODEL).index(model)
    return one.isel({MODEL: index}).transpose(STEP, COMPONENT).dropna(STEP, how="any")


def two(points: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First two components of points (n, component); the second is 0 where there is but one."""
    values = np.asarray(points.values, dtype=float)
    return values[:, 0], values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))


def varying(diagnostics: xr.Dataset) -> list[str]:
    """Names of the diagnostics that differ between operators, in the order in which they are shown."""
    found = []
    for name in DIAGNOSTICS:
        values = np.asarray(diagnostics[name].values, dtype=float) if name in diagnostics else np.array([])
        there = values[np.isfinite(values)]
        if there.size and np.ptp(there) > 0:
            found.append(name)
    return found


def labels_of(dataset: xr.Dataset) -> list[str] | None:
    """Labels of the samples, None where the probe set had none."""
    return [str(label) for label in dataset[LABEL].values] if LABEL in dataset.variables else None


def scalar(one: xr.Dataset, name: str) -> float | None:
    """Value of a scalar variable; None where it is absent or not known."""
    value: Any = one[name].values if name in one else np.nan
    return float(value) if np.ndim(value) == 0 and np.isfinite(value) else None


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


def arrange(similarity: xr.Dataset, by: str = MODEL) -> Arrangement:
    """Order representations by model and then layer (``by="model"``), or by layer and then model.

    Names keep the order in which they first occur.
    """
    other = LAYER if by == MODEL else MODEL
    outer, inner = (np.array([str(name) for name in similarity[dim].values], dtype=object) for dim in (by, other))
    rank = [{name: k for k, name in enumerate(dict.fromkeys(names))} for names in (outer, inner)]
    index = np.lexsort(([rank[1][name] for name in inner], [rank[0][name] for name in outer]))
    return Arrangement(index, tuple(outer[index]), tuple(inner[index]))
