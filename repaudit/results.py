"""The contract of ``results.zarr``: all groups and variables by name, and its readers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import (
    COMPONENT,
    ENTRY,
    ENTRY_INDICES,
    FEATURE,
    GAUGES,
    KEPT,
    LABEL,
    LAYER,
    MODEL,
    OF_SAMPLE,
    POSITION,
    SAMPLE,
    SCALE,
    SCALE_NAME,
    SHA256,
    STEP,
    TEXT,
    THUMBNAIL,
    VALUE,
    meant_layer,
)

# Groups; a group and its main variable share one name
SPREAD: Final = "spread"
COMPARISON: Final = "comparison"
APPROACH: Final = "approach"
GROUPS: Final = "groups"
TRAJECTORIES: Final = "trajectories"
MERGED: Final = "merged"
FRAMES: Final = "frames"
UNITS: Final = "units"
PAIRS: Final = "pairs"
MERGED_OPERATOR: Final = KEPT
SIMILARITY: Final = "similarity"
DIAGNOSTICS: Final = "diagnostics"

# Dims that the store does not have
GROUP: Final = "group"
OTHER: Final = "other"
UNIT: Final = "unit"
MEASURE: Final = "measure"
REPRESENTATION: Final = "representation"

# Variables
LOW: Final = "low"
HIGH: Final = "high"
NULL: Final = "null"
SPREAD_RAW: Final = "spread_raw"
SPREAD_ROWS: Final = "spread_rows"
LARGEST_ROW: Final = "largest_row"
LARGEST_SAMPLE: Final = "largest_sample"
BAND_LOW: Final = "band_low"
BAND_HIGH: Final = "band_high"
DISTANCE: Final = "distance"
PVALUE: Final = "pvalue"
PVALUE_HOLM: Final = "pvalue_holm"
HELLINGER: Final = "hellinger"
N_MODELS: Final = "n_models"
SKETCH_ERROR: Final = "sketch_error"
FROM_UNTRAINED: Final = "from_untrained"
FROM_INPUTS: Final = "from_inputs"
FEATURE_HALVES: Final = "feature_halves"
TRAJECTORY: Final = "trajectory"
MDS: Final = "mds"
TOGETHER: Final = "together"
TOGETHER_STRESS: Final = "together_stress"
TOGETHER_DISTANCE_STRESS: Final = "together_distance_stress"
STRESS: Final = "stress"
DISTANCE_STRESS: Final = "distance_stress"
EMBEDDING: Final = "embedding"
MERGED_STEP: Final = "merged_step"
MERGED_MODELS: Final = "merged_models"
OF_MODELS: Final = "models"
DIFFUSION_TIME: Final = "t"
EFFECTIVE_NEIGHBORS: Final = "effective_neighbors"
ENTROPY: Final = "entropy"
ENTROPY_ERROR: Final = "entropy_error"
COMPONENTS: Final = "components"
ISOLATED: Final = "isolated"
DUPLICATES: Final = "duplicates"
COLLAPSED: Final = "collapsed"
FLOORED: Final = "floored"
UNHELD: Final = "unheld"
FAILED: Final = "failed"
UNIFORMITY: Final = "uniformity"

# Attributes
SUMMARY: Final = "summary"
PARAMETERS: Final = "parameters"
VERSIONS: Final = "versions"
FINGERPRINT: Final = "fingerprint"

DIAGNOSTIC_NAMES: Final = {
    EFFECTIVE_NEIGHBORS: "effective neighbours",
    ENTROPY: "diffusion spectral entropy",
    COMPONENTS: "connected components",
    ISOLATED: "isolated samples",
    DUPLICATES: "duplicate samples",
    COLLAPSED: "collapsed operators",
    FLOORED: "bandwidths at the floor",
    UNHELD: "samples whose perplexity could not be held",
    FAILED: "operators that failed",
}
"""Variables of the group ``diagnostics`` that are shown, and their names, in the order in which they are shown."""


@dataclass(frozen=True)
class Variable:
    """One variable of the contract; ``kind`` is ``float``, ``integer``, ``number`` (either of them) or ``text``."""

    dims: tuple[str, ...]
    long_name: str
    kind: str = "float"
    required: bool = True

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes that the variable carries; text has no units."""
        return {"long_name": self.long_name} | ({} if self.kind == "text" else {"units": "1"})


@dataclass(frozen=True)
class Group:
    """One group of the contract: its variables, its coordinates, and attributes besides the provenance."""

    variables: Mapping[str, Variable]
    coords: Mapping[str, Variable]
    attrs: tuple[str, ...] = ()
    required: bool = True


def bounds(variable: str) -> tuple[str, str]:
    """Return the names of a distance's lower and upper bound; those of a group's main variable have no prefix.

    Examples
    --------
    >>> bounds("from_inputs"), bounds("spread")
    (('from_inputs_low', 'from_inputs_high'), ('low', 'high'))
    """
    prefix = f"{variable}_" if variable in (FROM_UNTRAINED, FROM_INPUTS) else ""
    return prefix + LOW, prefix + HIGH


def _interval(variable: str, dims: tuple[str, ...], long_name: str, required: bool = True) -> dict[str, Variable]:
    """Return a distance and the ends of its 95% interval."""
    ends = zip((variable, *bounds(variable)), ("", ", low end of its 95% interval", ", high end"), strict=True)
    return {name: Variable(dims, long_name + end, required=required) for name, end in ends}


def _coords(*names: str, on: str | None = None) -> dict[str, Variable]:
    known = (*OF_SAMPLES, SHA256)
    return {name: Variable((on or _ON.get(name, name),), *_COORDS[name], name not in known) for name in names}


OF_SAMPLES: Final = (LABEL, TEXT, THUMBNAIL, OF_SAMPLE, POSITION)
"""Coordinates on the samples that are there where something is known of these."""

_ON: Final = dict.fromkeys((*OF_SAMPLES, SHA256), SAMPLE) | {SCALE_NAME: SCALE}
_COORDS: Final = {
    LAYER: ("layer", "text"),
    MODEL: ("model", "text"),
    STEP: ("optimizer step", "integer"),
    SCALE: ("effective number of neighbours that the operators are held to", "float"),
    SCALE_NAME: ("what the scale is called", "text"),
    SAMPLE: ("sample", "text"),
    LABEL: ("label of the sample", "text"),
    TEXT: ("preview of the sample", "text"),
    THUMBNAIL: ("small picture of the sample: PNG in base64", "text"),
    SHA256: ("SHA-256 of the sample's text, or of its inputs where `raw` is `inputs`", "text"),
    OF_SAMPLE: ("sample that the token is of", "text"),
    POSITION: ("place of the token in its sample", "integer"),
    COMPONENT: ("component of the embedding", "integer"),
    GROUP: ("group of models", "text"),
    OTHER: ("what it is compared with", "text"),
    UNIT: ("number of the unit", "integer"),
    MEASURE: ("measure of similarity", "text"),
    REPRESENTATION: ("model/layer", "text"),
}
_LAYERS: Final = (LAYER, SCALE)
_CURVE: Final = (LAYER, SCALE, STEP)
_GRID: Final = (LAYER, SCALE, MODEL, STEP)
_SIMILAR: Final = (MEASURE, STEP, REPRESENTATION, OTHER)
_CALIBRATED: Final = "squared Frobenius distance over that of unrelated operators"

CONTRACT: Final[Mapping[str, Group]] = {
    SPREAD: Group(
        {
            **_interval(SPREAD, _CURVE, f"spread of the models: mean {_CALIBRATED}"),
            SPREAD_RAW: Variable(_CURVE, "mean Frobenius distance of the models"),
            NULL: Variable(_CURVE, "mean squared Frobenius distance of unrelated operators"),
            HELLINGER: Variable(_CURVE, "mean squared Hellinger distance of the rows over that of unrelated operators"),
            BAND_LOW: Variable(_CURVE, "spread, low end of the band that holds over all steps at once"),
            BAND_HIGH: Variable(_CURVE, "spread, high end of the band"),
            SPREAD_ROWS: Variable(_CURVE, "spread row by row: no sample counts for more than its share"),
            LARGEST_ROW: Variable(_CURVE, "share of the squared distances in the largest row"),
            LARGEST_SAMPLE: Variable(_CURVE, "sample of the largest row", "text"),
            N_MODELS: Variable(_CURVE, "number of models with an operator", "integer"),
            SKETCH_ERROR: Variable(_CURVE, "largest standard error of a pair, from sketches", required=False),
        },
        _coords(*_CURVE, SCALE_NAME),
    ),
    PAIRS: Group(
        {
            **_interval(DISTANCE, (*_CURVE, MODEL, OTHER), "calibrated distance of two models"),
            PVALUE: Variable((*_CURVE, MODEL, OTHER), "probability of a distance as small between unrelated operators"),
            PVALUE_HOLM: Variable((*_CURVE, MODEL, OTHER), "the same, adjusted for the number of pairs (Holm)"),
        },
        _coords(*_CURVE, MODEL, OTHER, SCALE_NAME),
        required=False,
    ),
    COMPARISON: Group(
        {
            **_interval(FROM_UNTRAINED, _CURVE, f"from the untrained networks: {_CALIBRATED}", required=False),
            **_interval(FROM_INPUTS, _CURVE, f"from the inputs' own geometry: {_CALIBRATED}", required=False),
            FEATURE_HALVES: Variable(_LAYERS, f"random halves of the features of one model: {_CALIBRATED}"),
        },
        _coords(*_CURVE, SCALE_NAME),
    ),
    APPROACH: Group(
        _interval(APPROACH, _GRID, f"from the model's own last operator: {_CALIBRATED}"),
        _coords(*_GRID, SCALE_NAME),
        required=False,
    ),
    GROUPS: Group(
        _interval(SPREAD, (*_CURVE, GROUP, OTHER), f"spread within and between groups of models: mean {_CALIBRATED}"),
        _coords(*_CURVE, GROUP, OTHER, SCALE_NAME),
        required=False,
    ),
    TRAJECTORIES: Group(
        {
            TRAJECTORY: Variable((*_GRID, COMPONENT), "operators of the layer (PHATE)"),
            MDS: Variable((*_GRID, COMPONENT), "operators of the layer (classical scaling)"),
            STRESS: Variable(_LAYERS, "stress against PHATE's potential distances"),
            DISTANCE_STRESS: Variable(_LAYERS, "stress against the operators' distances"),
            TOGETHER: Variable((*_GRID, COMPONENT), "operators of all layers in one picture (PHATE)"),
            TOGETHER_STRESS: Variable((SCALE,), "all layers: stress against PHATE's potential distances"),
            TOGETHER_DISTANCE_STRESS: Variable((SCALE,), "all layers: stress against the operators' distances"),
        },
        _coords(*_GRID, COMPONENT, SCALE_NAME),
        ("metric", "seed"),
    ),
    MERGED: Group(
        {
            EMBEDDING: Variable((*_LAYERS, SAMPLE, COMPONENT), "samples in the merged operator (PHATE)"),
            STRESS: Variable(_LAYERS, "stress against PHATE's potential distances"),
            MERGED_STEP: Variable(_LAYERS, "step whose operators are merged", "integer"),
            MERGED_MODELS: Variable(_LAYERS, "number of models merged", "integer"),
        },
        _coords(*_LAYERS, SAMPLE, COMPONENT, *OF_SAMPLES, SCALE_NAME),
        ("merge", "seed"),
        required=False,
    ),
    MERGED_OPERATOR: Group(
        {
            **{name: Variable((ENTRY,), text, "integer") for name, text in ENTRY_INDICES.items()},
            VALUE: Variable((ENTRY,), "transition probability of the merged operator"),
        },
        _coords(*_LAYERS, STEP, SAMPLE, SHA256, SCALE_NAME),
        ("merge", GAUGES),
        required=False,
    ),
    FRAMES: Group(
        {
            MERGED: Variable((*_CURVE, SAMPLE, COMPONENT), "samples in the merged operator, in one frame (PHATE)"),
            OF_MODELS: Variable((*_GRID, SAMPLE, COMPONENT), "samples in each model's operator, likewise (PHATE)"),
            STRESS: Variable(_CURVE, "stress against PHATE's potential distances"),
            DIFFUSION_TIME: Variable(_LAYERS, "diffusion time", "integer"),
        },
        _coords(*_GRID, SAMPLE, *OF_SAMPLES, SCALE_NAME),
        ("merge", "seed"),
        required=False,
    ),
    UNITS: Group(
        {
            EMBEDDING: Variable((LAYER, MODEL, STEP, UNIT, COMPONENT), "units over steps (M-PHATE)"),
            FEATURE: Variable((LAYER, MODEL, UNIT), "index of the unit's feature", "number"),
            STRESS: Variable((LAYER, MODEL), "stress against PHATE's potential distances"),
        },
        _coords(LAYER, MODEL, STEP, UNIT),
        ("seed",),
        required=False,
    ),
    SIMILARITY: Group(
        {
            SIMILARITY: Variable(_SIMILAR, "similarity of two representations"),
            NULL: Variable(_SIMILAR, "similarity by chance"),
        },
        {**_coords(*_SIMILAR), **_coords(MODEL, LAYER, on=REPRESENTATION)},
        required=False,
    ),
    DIAGNOSTICS: Group(
        {
            name: Variable(_GRID, text, "integer" if name == FAILED else "float", name == FAILED)
            for name, text in {**DIAGNOSTIC_NAMES, UNIFORMITY: "nearness to the uniform operator"}.items()
        },
        _coords(*_GRID, SCALE_NAME),
        ("gauge",),
    ),
}
"""What ``results.zarr`` holds; ``schemas/v1/results.schema.json`` says the same in JSON Schema."""


def group(results: xr.DataTree, name: str, *needed: str) -> xr.Dataset | None:
    """Return a group of the results; None where it, or one of the variables needed, is absent or nowhere known."""
    dataset = results[name].to_dataset() if name in results.children else None
    whole = dataset is not None and all(variable in dataset and known(dataset[variable]) for variable in needed)
    return dataset if whole else None


def known(values: xr.DataArray) -> bool:
    """Return whether any of these values is a number."""
    return bool(np.isfinite(np.asarray(values.values, dtype=float)).any())


def names_of(dataset: xr.Dataset, dim: Hashable) -> list[str]:
    """Return the names along a dim; those of an unlabelled dim are its indices."""
    return [str(name) for name in dataset[dim].values] if dim in dataset.dims else []


def one_layer(dataset: xr.Dataset, layer: str) -> xr.Dataset:
    """Select a layer by name; an unknown one raises :class:`AnalysisError` with the known names."""
    names = names_of(dataset, LAYER)
    if (meant := meant_layer(layer, names)) not in names:
        raise AnalysisError(f"expected one of the layers of these results ({', '.join(names)}), found {layer!r}")
    return dataset.isel({LAYER: names.index(meant)})


def of_layer(dataset: xr.Dataset | None, layer: str, variable: str) -> bool:
    """Return whether a dataset knows any value of this variable for a layer."""
    names = [] if dataset is None or variable not in dataset else names_of(dataset, LAYER)
    return dataset is not None and meant_layer(layer, names) in names and known(one_layer(dataset, layer)[variable])


def scalar(dataset: xr.Dataset, name: str) -> float | None:
    """Return a scalar variable as a number; None where it is absent or not known."""
    value: Any = dataset[name].values if name in dataset else np.nan
    return float(value) if np.ndim(value) == 0 and np.isfinite(value) else None
