"""Operators kept in the results of an analysis: the entries of all layers, scales and steps in one list."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.names import (
    ENTRY,
    ENTRY_INDICES,
    GAUGES,
    KEPT,
    LAYER,
    RAW,
    SAMPLE,
    SCALE,
    SCALE_NAME,
    SHA256,
    STEP,
    VALUE,
    meant_layer,
)
from repaudit.operators.written import changed

Key: TypeAlias = tuple[int, int, int]
"""Indices of layer, scale and step."""


def entries_of(matrices: Mapping[Key, Tensor], coords: Mapping[str, Any]) -> xr.Dataset:
    """Return the entries of matrices, by the indices of their layer, scale and step, as one list on dim ``entry``.

    Each matrix is asked for twice, and none is held meanwhile: first the entries are counted.
    """
    counts = [_coo(matrix)._nnz() for matrix in matrices.values()]
    columns: dict[str, NDArray[Any]] = {name: np.empty(sum(counts), np.int32) for name in ENTRY_INDICES}
    columns[VALUE] = np.empty(sum(counts), np.float32)
    stop = 0
    for (key, matrix), count in zip(matrices.items(), counts, strict=True):
        coo, here = _coo(matrix), slice(stop, stop + count)
        for name, index in zip(ENTRY_INDICES, (*key, *coo.indices().numpy()), strict=True):
            columns[name][here] = index
        columns[VALUE][here] = coo.values().numpy()
        stop += count
    return xr.Dataset({name: (ENTRY, column) for name, column in columns.items()}, coords=coords)


def _coo(matrix: Tensor) -> Tensor:
    entries: Tensor = matrix.detach().cpu().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    return entries


@dataclass(frozen=True)
class KeptOperator:
    """A kept matrix, dense or scipy sparse, float32; where it is from; its samples' ids; the gauge of its operators.

    ``gauge`` is None where the rows are not whole samples; ``hashes`` are the SHA-256 of the samples' texts, or of
    their inputs where ``raw`` is "inputs", if known.
    """

    matrix: Any
    attrs: dict[str, Any]
    samples: NDArray[Any]
    gauge: dict[str, Any] | None
    hashes: list[str]
    raw: str


def kept_operator(
    results: str | os.PathLike[str] | xr.DataTree, layer: str, scale: float | str | None, step: int | None
) -> KeptOperator:
    """Return a kept operator; see :meth:`repaudit.DiffusionOperator.from_results`."""
    kept = _kept(results)
    names = [str(name) for name in kept[LAYER].values]
    layer = meant_layer(layer, names)
    index = {
        "layer_index": _chosen("layer", layer, names),
        "scale_index": _scale_index(scale, kept),
        "step_index": _step_index(names.index(layer), step, kept),
    }
    chosen = np.ones(kept.sizes[ENTRY], dtype=bool)
    for name, at in index.items():
        chosen &= kept[name].values == at
    if not chosen.any():
        raise OperatorError(f"expected an operator of layer {layer!r} at scale {scale!r} and step {step!r}, found none")
    count = kept.sizes[SAMPLE]
    rows, columns = kept["row"].values[chosen], kept["column"].values[chosen]
    matrix: Any = coo_array((kept[VALUE].values[chosen], (rows, columns)), shape=(count, count))
    if chosen.sum() * 4 > count * count:
        matrix = matrix.toarray()
    attrs = {
        LAYER: layer,
        SCALE: float(kept[SCALE].values[index["scale_index"]]),
        STEP: int(kept[STEP].values[index["step_index"]]),
        "merge": kept.attrs.get("merge", ""),
    }
    gauges = json.loads(kept.attrs.get(GAUGES, "[]"))
    hashes = [str(one) for one in kept[SHA256].values] if SHA256 in kept.coords else []
    gauge = gauges[index["scale_index"]] if gauges else None
    raw = str(kept.attrs.get(RAW, "text"))  # earlier results keep hashes of texts alone
    return KeptOperator(matrix, attrs, kept[SAMPLE].values, gauge, hashes, raw)


def _kept(results: str | os.PathLike[str] | xr.DataTree) -> xr.Dataset:
    if isinstance(results, xr.DataTree):
        merged, _, name = KEPT.partition("/")
        if merged not in results.children or name not in results.children[merged].children:
            raise OperatorError(f"expected the results of an analysis, found a tree without {KEPT!r}")
        return results.children[merged].children[name].to_dataset()
    if not isinstance(results, str | os.PathLike):
        raise TypeError(
            f"results: expected a path of results.zarr, or what ra.analyze returned, found {type(results).__name__}"
        )
    within = Path(results, "results.zarr")  # where the folder of the analysis is given
    place = os.fspath(within if within.is_dir() else results)
    why = changed(place)
    if why is not None:
        raise OperatorError(why)
    try:
        with xr.open_zarr(place, group=KEPT, consolidated=False, chunks=None) as stored:
            kept: xr.Dataset = stored.load()
            return kept
    except Exception as error:  # any part of results without a list may be damaged
        raise OperatorError(
            f"expected results.zarr of an analysis with the group {KEPT!r} at {place}, found none ({error}): it is "
            "kept of two models or more with a shared step, and not of sketches"
        ) from error


def _chosen(what: str, asked: Any, known: Sequence[Any]) -> int:
    if asked not in known:
        hint = {"scale": "; `repaudit analyze --scales` chooses them", "step": "; --keep-merged all keeps more"}.get(
            what, ""
        )
        raise OperatorError(f"expected a {what} among {', '.join(map(str, known))}, found {asked!r}{hint}")
    return list(known).index(asked)


def _scale_index(scale: float | str | None, kept: xr.Dataset) -> int:
    names, values = [str(name) for name in kept[SCALE_NAME].values], kept[SCALE].values.tolist()
    if scale is None:
        return 0
    return _chosen("scale", scale, names) if isinstance(scale, str) else _chosen("scale", float(scale), values)


def _step_index(layer: int, step: int | None, kept: xr.Dataset) -> int:
    steps = kept[STEP].values.tolist()
    if isinstance(step, str):
        raise OperatorError(
            f"step: expected one of {', '.join(map(str, steps))}, found {step!r}: is it scale={step!r}?"
        )
    if step is not None:
        return _chosen("step", step, steps)
    of_layer = kept["layer_index"].values == layer
    return int(kept["step_index"].values[of_layer].max(initial=0))
