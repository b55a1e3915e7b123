"""From what a training loop holds to what a store keeps: arrays and tensors of any float dtype, exactly."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import LayoutError, kind_of
from repaudit.names import STEP
from repaudit.store.format.encoding import round_mantissa
from repaudit.store.format.layer_layout import LayerLayout

MOST_SECONDS: Final = 9.2e9
"""Largest time, in seconds from 1970 on or back, that 64 bits hold in nanoseconds, as readers represent it."""

MOST_STEP: Final = 2**63


def stored_values(layer: LayerLayout, values: Any, *, copy: bool) -> NDArray[Any]:
    """Return the values of one step as the store keeps them: C-contiguous, little-endian, in the layer's dtype on disk.

    bfloat16 becomes float32, which holds each of its values exactly. No other change of dtype is made.

    Parameters
    ----------
    layer : LayerLayout
    values : ndarray or CPU tensor (sample[, token], feature)
    copy : bool
        Whether the result must own its memory, because the caller may write into `values` again.

    Raises
    ------
    LayoutError
        If the shape or the dtype is not the layer's.
    """
    array, source = _as_numpy(layer, values)
    if tuple(array.shape) != layer.shape:
        raise LayoutError(f"layer {layer.name!r}: expected shape {layer.shape}, found {tuple(array.shape)}")
    if source != layer.source_dtype:
        raise LayoutError(
            f"layer {layer.name!r}: expected {layer.source_dtype}, found {source}: the store never changes a dtype "
            f"silently; convert it, or declare the layer as {source}"
        )
    stored = np.ascontiguousarray(array, dtype=layer.dtype)
    stored = round_mantissa(stored, layer.codec)
    if copy and np.may_share_memory(stored, array):
        stored = stored.copy()
    return stored


def _as_numpy(layer: LayerLayout, values: Any) -> tuple[NDArray[Any], str]:
    """Return an array view of the values, and the name of the dtype they came in."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        tensor = values.detach().cpu()
        source = str(tensor.dtype).removeprefix("torch.")
        array = tensor.float().numpy() if source == "bfloat16" else tensor.numpy()
        return array, source
    array = np.asarray(values)
    source = array.dtype.name
    if source == "bfloat16":  # ml_dtypes
        array = array.astype(np.float32)
    elif array.dtype.kind != "f":
        raise LayoutError(f"layer {layer.name!r}: expected {layer.source_dtype}, found {source}")
    return array, source


def step_number(step: Any, name: str = "step") -> int:
    """Return a step as an integer; anything else, a truth value too, is a TypeError.

    Examples
    --------
    >>> import numpy as np
    >>> step_number(np.int64(3))
    3
    """
    if isinstance(step, bool):
        raise TypeError(f"{name}={step!r}: expected an integer, found a truth value")
    try:
        found = operator.index(step)
    except TypeError:
        raise TypeError(f"{name}={step!r}: expected an integer, found {kind_of(step)}") from None
    if abs(found) >= MOST_STEP:
        raise ValueError(f"{name}={step!r}: expected an integer of 64 bits")
    return found


def step_before(step: Any, name: str) -> int:
    """Return a step to go back to as an integer; one before all steps would drop them, and is a ValueError.

    Examples
    --------
    >>> step_before(0, "truncate_after")
    0
    """
    found = step_number(step, name)
    if found < 0:
        raise ValueError(f"{name}={step!r}: expected a step, 0 or later; if_exists='replace' begins a record anew")
    return found


def text(value: Any, what: str) -> str | None:
    """Return a text that UTF-8 can hold; None where there is none.

    Examples
    --------
    >>> text(3, "trigger")
    '3'
    """
    if value is None:
        return None
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}={value!r}: expected a text that UTF-8 can hold ({error.reason})") from error
    return str(value)


def number(value: Any, what: str) -> float | None:
    """Return a number as it is now: the caller may change an array or a tensor in place while the step waits."""
    if value is None:
        return None
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{what}={value!r}: expected a number ({error})") from error


def point_in_time(value: Any, what: str) -> float:
    """Return a time that readers can represent, in nanoseconds of 64 bits."""
    finite = number(value, what)
    if finite is None or not abs(finite) <= MOST_SECONDS:
        raise ValueError(f"{what}={value!r}: expected seconds since 1970-01-01 UTC, at most {MOST_SECONDS:.0f}")
    return finite


def stored_coordinate(name: str, row: Mapping[str, Any]) -> Any:
    """Return a coordinate as it is stored: unknown numbers are NaN, times whole microseconds."""
    value = row.get(name)
    if name == STEP:
        return int(row[STEP])
    if name == "wall_time":
        return round((time.time() if value is None else float(value)) * 1e6)
    if name == "trigger":
        return "" if value is None else str(value)
    return float("nan") if value is None else float(value)
