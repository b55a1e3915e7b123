"""The merged operators themselves, kept so that neither another part, another run, nor a student need merge again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import xarray as xr
from scipy.sparse import csr_array
from torch import Tensor

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.study import Study
from repaudit.merge.merging import DiffusionMerging, Strategy
from repaudit.names import ATTRS, GAUGES, LAYER, RAW, SAMPLE, SCALE, SCALE_NAME, SHA256, STEP
from repaudit.operators.kept import Key, entries_of
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator


def merged_operators(layers: Sequence[Sequence[LayerOperators]], study: Study) -> xr.Dataset:
    """Return P* of every layer at every scale, at the last step that the models share, or at all of these."""
    everything = study.settings.keep_merged == "all"
    steps = sorted({step for scales in layers for one in scales for step in _steps(one, everything)})
    merged = {
        (i, j, steps.index(step)): (one, step)
        for i, scales in enumerate(layers)
        for j, one in enumerate(scales)
        for step in _steps(one, everything)
    }
    coords: dict[str, Any] = {
        LAYER: np.array([scales[0].layer for scales in layers], dtype=object),
        SCALE: [scale.value for scale in study.scales],
        SCALE_NAME: (SCALE, np.array([scale.name for scale in study.scales], dtype=object)),
        STEP: steps,
        SAMPLE: study.samples[SAMPLE].values,
    }
    if SHA256 in study.samples:
        coords[SHA256] = (SAMPLE, study.samples[SHA256].values)
    # a student is taught by samples, which tokens are not
    gauges = [] if study.settings.tokens else [asdict(scale.gauge) for scale in study.scales]
    raw = study.tree.attrs[ATTRS].get(RAW, "inputs")
    attrs = {"merge": study.settings.merge, GAUGES: json.dumps(gauges), RAW: raw}
    return entries_of(_Merged(study, merged), coords).assign_attrs(attrs)


@dataclass(frozen=True)
class _Merged(Mapping[Key, Tensor]):
    """Merged operators that are made, or read again, when they are asked for: all at once are many."""

    study: Study
    of: Mapping[Key, tuple[LayerOperators, int]]

    def __getitem__(self, key: Key) -> Tensor:
        return merge(self.study, *self.of[key]).matrix

    def __iter__(self) -> Iterator[Key]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


def merge(study: Study, operators: LayerOperators, step: int) -> DiffusionOperator:
    """Return the merged operator of one step: from an earlier part or run, or computed and kept."""
    content = ["merged operator", study.settings.merge, sorted(operators.content(step).items())]
    arrays = study.cache.recall(content, partial(_arrays, study, operators, step))
    if "dense" in arrays:
        return DiffusionOperator.from_matrix(arrays["dense"])
    count = len(arrays["indptr"]) - 1
    matrix = csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(count, count))
    return DiffusionOperator.from_matrix(matrix)


def _arrays(study: Study, operators: LayerOperators, step: int) -> dict[str, Any]:
    matrices = {model: file.matrix for model, file in operators.at(step).items()}
    merged = DiffusionMerging(cast(Strategy, study.settings.merge)).merge(matrices)
    if isinstance(merged, SparseDiffusionOperator):
        rows = merged.csr.astype(np.float32)
        return {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}
    return {"dense": merged.to_numpy()}


def _steps(operators: LayerOperators, everything: bool) -> list[int]:
    return (operators.shared_steps() if everything else []) or [operators.last_step()]
