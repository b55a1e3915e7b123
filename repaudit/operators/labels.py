"""What an operator's DataArray says beside its values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.errors import OperatorError, OperatorWarning
from repaudit.flat import flat, nested
from repaudit.names import NEIGHBOR, SAMPLE

DEGREE: Final = "degree"


@dataclass(frozen=True)
class Labels:
    """Attributes and diagnostics of an operator; ``exact``: its degrees are those it was made with."""

    attrs: dict[str, Any]
    exact: bool
    diagnostics: Mapping[str, Any]


def labels_of(array: xr.DataArray, attrs: Mapping[str, Any] | None) -> Labels:
    """Return what :func:`array_attrs` wrote, or what these attributes say in its place."""
    given = nested(array.attrs if attrs is None else attrs)
    exact = bool(given.pop("reversible", False)) and DEGREE in array.coords
    diagnostics = given.pop("diagnostics", {})
    for key in ("long_name", "units"):
        given.pop(key, None)
    return Labels(given, exact, diagnostics)


def array_attrs(attrs: Mapping[str, Any], reversible: bool, diagnostics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an operator's DataArray, such that every file format takes them."""
    named = {"long_name": "diffusion operator", "units": "1"}
    return flat({**named, **attrs, "reversible": reversible, "diagnostics": dict(diagnostics)})


def warn_of_scales(operators: Mapping[str, Any]) -> None:
    """Warn where operators, by model, tell of different perplexities: what differs may be the scale, not the model."""
    told: dict[float, str] = {}
    for name, operator in operators.items():
        perplexity = dict(getattr(operator, "attrs", None) or {}).get("perplexity")
        if isinstance(perplexity, int | float):
            told.setdefault(float(perplexity), name)
    if len(told) > 1:
        listed = " and ".join(f"{value:g} ({name!r})" for value, name in list(told.items())[:2])
        warnings.warn(
            f"operators with perplexity {listed}: they differ by their scale alone; make them with one gauge",
            OperatorWarning,
            stacklevel=3,
        )


def check_samples(operators: Mapping[str, Any]) -> Any:
    """Return the ids of the samples that operators, by model, are of; None where none tells them.

    Raises
    ------
    OperatorError
        Two of them tell different ids, or another order.
    """
    told = {name: getattr(operator, "samples", None) for name, operator in operators.items()}
    known = {name: np.asarray(ids) for name, ids in told.items() if ids is not None and np.ndim(ids) == 1}
    texts = {name: np.array([str(one) for one in ids], dtype=object) for name, ids in known.items()}
    first = next(iter(known), "")
    for name, ids in known.items():
        if len(ids) == len(known[first]) and len(differ := np.flatnonzero(texts[name] != texts[first])):
            at = int(differ[0])
            raise OperatorError(
                f"expected the same samples in the same order, found {_plain(known[first][at])!r} in {first!r} "
                f"and {_plain(ids[at])!r} in {name!r} at position {at}"
            )
    return known.get(first)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def same_order(array: xr.DataArray) -> xr.DataArray:
    """Return the neighbours in the order of the samples, where both are labelled."""
    if not {SAMPLE, NEIGHBOR} <= set(array.coords):
        return array
    samples, neighbors = array.coords[SAMPLE].values, array.coords[NEIGHBOR].values
    if np.array_equal(samples, neighbors):
        return array
    if len(set(samples)) < len(samples) or sorted(samples) != sorted(neighbors):
        raise OperatorError("expected transitions among the same samples, found other ids on neighbor than on sample")
    return array.sel({NEIGHBOR: samples})
