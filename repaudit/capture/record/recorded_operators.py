"""Operators of an audit and sketches of them: their layers in a store, and a test of the gauge before the training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from xarray import DataTree

from repaudit.errors import AuditWarning, CaptureError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.recorded import difference, given_parameters
from repaudit.names import GAUGE, KIND, OPERATOR, OPERATOR_OF, SKETCH, SKETCH_OF, SPARSE
from repaudit.operators.grouped_sketch import grouped_sketch
from repaudit.operators.sparse import SparseDiffusionOperator
from repaudit.store.read import catalog
from repaudit.store.read.stand_ins import computed_of

Record: TypeAlias = Literal["activations", "operators", "both", "sketches"]

ACTIVATIONS: Final = "activations"
OPERATORS: Final = "operators"
SKETCHES: Final = "sketches"
WITH_ACTIVATIONS: Final = (ACTIVATIONS, "both")

_LOGGER = logging.getLogger(__name__)

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


def sketch_name(layer: str) -> str:
    """Return the name of the layer that holds the sketches of `layer`.

    Examples
    --------
    >>> sketch_name("model.layers.3")
    'model.layers.3@sketch'
    """
    return f"{layer}@{SKETCH}"


def check_record(record: str, gauge: Gauge | None) -> None:
    """Refuse a choice of record that the gauge does not allow.

    Raises
    ------
    ValueError
        For an unknown choice, for operators without a gauge, and for sketches with one whose parameters nobody knows.
    """
    if record not in get_args(Record):
        raise ValueError(f"record: expected one of {', '.join(get_args(Record))}, found {record!r}")
    if record == ACTIVATIONS:
        return
    if gauge is None:
        raise ValueError(f"record={record!r} needs a gauge: give gauge=, such as DiffusionGauge()")
    if record == SKETCHES and not isinstance(gauge, DiffusionGauge):
        raise ValueError(
            f"record={record!r} needs a DiffusionGauge, whose parameters are kept with the sketches; found {gauge!r}"
        )


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
    operators, tried = {}, dict[Any, Any]()
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
            _warn_of_few(gauge, name, shape[0])
        operators[name] = tried[key]
    return operators


def _warn_of_few(gauge: Any, layer: str, samples: int) -> None:
    perplexity = getattr(gauge, "perplexity", None)
    if perplexity is not None and perplexity >= samples - 1 > 0:
        warnings.warn(
            f"layer {layer!r}: the gauge holds each row to {perplexity:g} neighbours, and {samples} samples have "
            f"{samples - 1}: every operator is uniform, and nothing can be compared; give "
            f"DiffusionGauge(perplexity={max(2, samples // 4)}), or more samples",
            AuditWarning,
            stacklevel=5,
        )


def operator_layers(record: str, operators: Mapping[str, Any], gauge: Gauge) -> tuple[Shapes, Attributes]:
    """Return the shapes, dtypes and attributes of the layers that hold operators, or sketches of them, in a store."""
    if record == SKETCHES:
        return _sketch_layers(operators, gauge)
    shapes, attributes = {}, {}
    for layer, operator in operators.items():
        matrix = np.asarray(operator)
        shapes[operator_name(layer)] = matrix.shape, matrix.dtype.name
        attributes[operator_name(layer)] = {
            KIND: OPERATOR,
            OPERATOR_OF: layer,
            **({SPARSE: True} if isinstance(operator, SparseDiffusionOperator) else {}),
            GAUGE: {
                "name": type(gauge).__name__,
                **_plain(getattr(operator, "attrs", {})),
                **({"given": asdict(gauge)} if isinstance(gauge, DiffusionGauge) else {}),
            },
        }
    return shapes, attributes


def _sketch_layers(operators: Mapping[str, Any], gauge: Any) -> tuple[Shapes, Attributes]:
    shapes, attributes = {}, {}
    for layer, operator in operators.items():
        made = grouped_sketch(operator)
        shapes[sketch_name(layer)] = (len(made.numbers()),), "float64"
        attributes[sketch_name(layer)] = {
            KIND: SKETCH,
            SKETCH_OF: layer,
            SKETCH: made.facts(),
            GAUGE: {"name": type(gauge).__name__, **asdict(gauge)},
        }
    return shapes, attributes


def warn_of_other_gauges(read: Callable[[], DataTree], model: str, attributes: Attributes) -> None:
    """Log a warning if another model of the store has operators or sketches of another gauge than this model's."""
    own = {of: told for told in attributes.values() if (of := computed_of(told))}
    if not own:
        return
    tree = read()
    for other in catalog.models(tree):
        for layer in catalog.layers(tree, other) if other != model else ():
            found = catalog.activations(tree, other, layer).attrs
            mine = own.get(computed_of(found))
            if mine and (apart := difference(given_parameters(mine[GAUGE]), given_parameters(found[GAUGE]))):
                _LOGGER.warning(
                    "model %r is recorded with a gauge of %s, and model %r in this store was with %s: an analysis "
                    "refuses to compare them; record all with one gauge", model, apart[0], other, apart[1],
                )  # fmt: skip
                return


def to_store(
    record: str, activations: Mapping[str, torch.Tensor], operators: Mapping[str, Any]
) -> dict[str, torch.Tensor | NDArray[Any]]:
    """Return what a record keeps of one audit, by the layers' names in the store."""
    if record == SKETCHES:
        return {sketch_name(layer): grouped_sketch(operator).numbers() for layer, operator in operators.items()}
    kept: dict[str, torch.Tensor | NDArray[Any]] = dict(activations) if record in WITH_ACTIVATIONS else {}
    if record != ACTIVATIONS:
        kept |= {operator_name(layer): np.asarray(operator) for layer, operator in operators.items()}
    return kept


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that JSON can hold."""
    return {name: value for name, value in attributes.items() if isinstance(value, str | int | float | type(None))}
