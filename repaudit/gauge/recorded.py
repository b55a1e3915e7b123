"""Operators that were recorded during training, and the gauge that made them, as a store tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import GAUGE, SAMPLE, SPARSE
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator


def recorded_operator(values: xr.DataArray) -> DiffusionOperator:
    """Return the operator of one step of a layer ``<layer>@operator``, sparse where it was.

    The parameters of its gauge are in its attrs. Degrees and diagnostics are those that the matrix tells: how many
    duplicates the samples had is not in it.

    Parameters
    ----------
    values : DataArray (sample, neighbor)

    Raises
    ------
    OperatorError
        The matrix is not finite, negative somewhere, or a row does not sum to 1.

    Examples
    --------
    >>> recorded_operator(xr.DataArray(np.eye(3, dtype="float32"), dims=("sample", "neighbor"))).diagnostics["isolated"]
    3
    """
    matrix: Any = np.asarray(values.values)
    attrs = {name: value for name, value in values.attrs.get(GAUGE, {}).items() if name not in ("name", "given")}
    if values.attrs.get(SPARSE):
        operator = SparseDiffusionOperator.from_matrix(csr_array(matrix), attrs)
    else:
        operator = DiffusionOperator.from_matrix(matrix, attrs)
    operator.samples = values[SAMPLE].values if SAMPLE in values.coords else None
    return operator


def gauge_of(array: xr.DataArray) -> DiffusionGauge:
    """Return the gauge that the attributes of a layer of operators or sketches tell.

    Raises
    ------
    AnalysisError
        It was no :class:`repaudit.DiffusionGauge`.
    """
    told = array.attrs[GAUGE]
    if told.get("name") != DiffusionGauge.__name__:
        raise AnalysisError(
            f"expected operators of a DiffusionGauge, whose parameters tell what they may be compared with, found "
            f"those of {told.get('name')}: compare them by hand, with repaudit.spread"
        )
    known = {field.name for field in fields(DiffusionGauge)}
    return DiffusionGauge(**{name: value for name, value in given_parameters(told).items() if name in known})


def given_parameters(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a recorded gauge was given, beside its name; not what it made of them.

    Examples
    --------
    >>> given_parameters({"name": "DiffusionGauge", "neighbors": 23, "given": {"perplexity": 15.0}})
    {'name': 'DiffusionGauge', 'perplexity': 15.0}
    """
    given = told.get("given", told)  # beside what the gauge made of it, such as the neighbors of a perplexity
    return {"name": told.get("name"), **given}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return in words what two gauges or kinds of sketches differ in, of the one and of the other; None if in nothing.

    Examples
    --------
    >>> difference({"perplexity": 15.0, "metric": "cosine"}, {"perplexity": 8.0, "metric": "cosine"})
    ('perplexity=15.0', 'perplexity=8.0')
    """
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if not names:
        return None
    return _in_words(ours, names), _in_words(theirs, names)


def _in_words(parameters: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={parameters.get(name)}" for name in names)
