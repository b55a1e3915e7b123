"""Operators of an audit: their layers in a store, and a test of the gauge before the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from repaudit.errors import CaptureError
from repaudit.names import GAUGE, KIND, OPERATOR, OPERATOR_OF, SPARSE
from repaudit.operators.sparse import SparseDiffusionOperator

Record: TypeAlias = Literal["activations", "operators", "both"]

ACTIVATIONS: Final = "activations"
OPERATORS: Final = "operators"

Gauge = Callable[[torch.Tensor], Any]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]
Attributes = Mapping[str, Mapping[str, Any]]


def operator_name(layer: str) -> str:
    """Return the name of the layer that holds the operators of `layer`.

    Examples
    --------
    >>> operator_name("model.layers.3")
    'model.layers.3@operator'
    """
    return f"{layer}@{OPERATOR}"


def check_record(record: str, gauge: Gauge | None) -> None:
    """Refuse a choice of record that the gauge does not allow.

    Raises
    ------
    ValueError
        For an unknown choice, and for operators without a gauge.
    """
    if record not in get_args(Record):
        raise ValueError(f"record: expected one of {', '.join(get_args(Record))}, found {record!r}")
    if record == ACTIVATIONS:
        return
    if gauge is None:
        raise ValueError(f"record={record!r} needs a gauge: give gauge=, such as DiffusionGauge()")


def try_gauge(gauge: Gauge, shapes: Shapes) -> dict[str, Any]:
    """Try the gauge on random samples in each layer's shape, to find its errors before the training.

    Returns
    -------
    dict
        For each layer an operator like the recorded ones: its dtype, and the parameters that the gauge uses.

    Raises
    ------
    CaptureError
        When a layer keeps its tokens.
    ActivationError
        When the gauge refuses so many samples.
    """
    operators, tried = {}, {}
    for name, (shape, dtype) in shapes.items():
        if len(shape) != 2:
            raise CaptureError(
                f"layer {name!r} keeps its tokens, {shape}, but an operator needs one row per sample: use "
                "reduce='mean', 'last_token' or 'cls', or give no gauge"
            )
        key = (shape, dtype)
        if key not in tried:
            samples = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            tried[key] = gauge(samples.to(getattr(torch, dtype)))
        operators[name] = tried[key]
    return operators


def operator_layers(operators: Mapping[str, Any], gauge: Gauge) -> tuple[Shapes, Attributes]:
    """Return the shapes, dtypes and attributes of the layers that hold operators in a store."""
    shapes, attributes = {}, {}
    for layer, operator in operators.items():
        matrix = np.asarray(operator)
        shapes[operator_name(layer)] = matrix.shape, matrix.dtype.name
        attributes[operator_name(layer)] = {
            KIND: OPERATOR,
            OPERATOR_OF: layer,
            **({SPARSE: True} if isinstance(operator, SparseDiffusionOperator) else {}),
            GAUGE: {"name": type(gauge).__name__, **_plain(getattr(operator, "attrs", {}))},
        }
    return shapes, attributes


def to_store(
    record: str, activations: Mapping[str, torch.Tensor], operators: Mapping[str, Any]
) -> dict[str, torch.Tensor | NDArray[Any]]:
    """Return what a record keeps of one audit, by the layers' names in the store."""
    kept: dict[str, torch.Tensor | NDArray[Any]] = {} if record == OPERATORS else dict(activations)
    if record != ACTIVATIONS:
        kept |= {operator_name(layer): np.asarray(operator) for layer, operator in operators.items()}
    return kept


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that JSON can hold."""
    return {name: value for name, value in attributes.items() if isinstance(value, str | int | float | type(None))}
