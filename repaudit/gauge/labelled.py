"""Activations as they come in, an array, a tensor or a DataArray, and what their labels say of where they are from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from repaudit.errors import ActivationError
from repaudit.names import LAYER, MODEL, SAMPLE, STEP

_EXACT: Final = {torch.float32: 2**24, torch.float64: 2**53}
"""Integers up to which every one of them is a float."""


@dataclass(frozen=True)
class Activations:
    """Samples ``(sample, feature)`` in float32 or float64, the sample ids if known, and the place they are from."""

    samples: Tensor
    ids: NDArray[Any] | None = None
    place: dict[str, Any] = field(default_factory=dict)

    def where(self) -> str:
        """Return the place in words, for messages."""
        return ", ".join(f"{key} {value}" for key, value in self.place.items())


def read(X: Any) -> Activations:
    """Take activations ``(sample, feature)`` of any kind; refuse what has another shape or is not finite.

    Raises
    ------
    ActivationError
        Naming the samples, and the model, layer and step where a DataArray's coordinates or attrs carry them.
    """
    found = _from_dataarray(X) if isinstance(X, xr.DataArray) else Activations(_tensor(X))
    shape = tuple(found.samples.shape)
    if len(shape) != 2:
        raise ActivationError(f"expected activations (sample, feature), found shape {shape}{_at(found)}")
    if shape[0] < 2 or shape[1] < 1:
        raise ActivationError(f"expected at least 2 samples of 1 feature, found shape {shape}{_at(found)}")
    _refuse_not_finite(found)
    return found


def _from_dataarray(array: xr.DataArray) -> Activations:
    place = {}
    for key in (MODEL, LAYER, STEP):
        if key in array.coords and array.coords[key].ndim == 0:
            place[key] = array.coords[key].item()
        elif key in array.attrs:
            place[key] = array.attrs[key]
    if LAYER not in place and array.name is not None:
        place[LAYER] = array.name
    if array.ndim != 2:
        raise ActivationError(
            f"expected activations on (sample, feature), found dims {array.dims}: select one step (and token) first, "
            "or map the gauge over the tree: gauge.map(tree)"
        )
    if SAMPLE in array.dims:
        array = array.transpose(SAMPLE, ...)
    ids = array.coords[SAMPLE].values if SAMPLE in array.coords else None
    return Activations(_tensor(array.values), ids, place)


def _tensor(X: Any) -> Tensor:
    if isinstance(X, np.ma.MaskedArray) or (isinstance(X, Tensor) and X.layout != torch.strided):
        raise ActivationError(f"expected dense activations without a mask, found {type(X).__name__}")
    tensor = X if isinstance(X, Tensor) else _from_numpy(np.asarray(X))
    if tensor.is_complex():
        raise ActivationError(f"expected real activations, found {tensor.dtype}")
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.to(_wide_enough(tensor))


def _wide_enough(tensor: Tensor) -> torch.dtype:
    """Return the dtype that holds each of these values: float32 for half precision and for integers up to 2^24."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return torch.float32
    largest = max(abs(int(bound)) for bound in torch.aminmax(tensor))
    if largest > _EXACT[torch.float64]:
        raise ActivationError(f"expected integers up to 2^53, found {largest}, which float64 would round")
    return torch.float32 if largest <= _EXACT[torch.float32] else torch.float64


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """Copy an array of numbers into a tensor that holds each value exactly, whatever its width and byte order."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind not in "fiub":
        raise ActivationError(f"expected activations of numbers, found dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        narrow = array.astype(np.float64)
        if not np.array_equal(narrow.astype(array.dtype), array, equal_nan=True):
            raise ActivationError(f"expected numbers that float64 holds, found {array.dtype}: convert them yourself")
        array = narrow
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with signed integers
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ActivationError(f"expected integers up to 2^53, found {array.max()}, which float64 would round")
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), copy=True))


def _refuse_not_finite(found: Activations) -> None:
    # the extremes are finite where all entries are: one pass, and no mask as large as the activations
    bounds = torch.aminmax(found.samples.detach())
    if all(torch.isfinite(bound) for bound in bounds):
        _refuse_vanishing(max(abs(float(bound)) for bound in bounds), found)
        return
    bad = ~torch.isfinite(found.samples.detach()).all(1)
    rows = bad.nonzero()[:, 0].tolist()
    if rows:
        names = [f"{row}" if found.ids is None else f"{row} ({found.ids[row]!s})" for row in rows[:5]]
        more = ", ..." if len(rows) > 5 else ""
        raise ActivationError(
            f"NaN or infinite activations in {len(rows)} of {len(bad)} samples: sample {', '.join(names)}{more}"
            f"{_at(found)}; no operator can be made of them: leave those samples out, or look for the overflow"
        )


def _refuse_vanishing(largest: float, found: Activations) -> None:
    """Refuse activations with fewer digits than their dtype has: what they tell apart is rounding."""
    smallest = torch.finfo(found.samples.dtype).smallest_normal
    if 0 < largest < smallest:
        raise ActivationError(
            f"expected activations above {smallest:.2g}, below which {found.samples.dtype} loses digits, found at most "
            f"{largest:.2g}{_at(found)}; the layer has died out: leave it out, or these steps of it"
        )


def _at(found: Activations) -> str:
    return f" at {found.where()}" if found.place else ""
