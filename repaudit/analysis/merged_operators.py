"""The merged operators themselves, kept so that a student or a notebook need not merge again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import xarray as xr

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.study import Study
from repaudit.merge.merging import DiffusionMerging, Strategy
from repaudit.names import LAYER, SAMPLE, SCALE, SCALE_NAME, STEP
from repaudit.operators.files import AnyOperatorFile
from repaudit.operators.kept import entries_of
from repaudit.operators.operator import DiffusionOperator


def merged_operators(layers: Sequence[Sequence[LayerOperators]], study: Study) -> xr.Dataset:
    """Return P* of every layer at every scale, at the last step that the models share, or at all of these."""
    everything = study.settings.keep_merged == "all"
    steps = sorted({step for scales in layers for one in scales for step in _steps(one, everything)})
    matrices = {
        (i, j, steps.index(step)): merge(study, one.at(step)).matrix
        for i, scales in enumerate(layers)
        for j, one in enumerate(scales)
        for step in _steps(one, everything)
    }
    coords: dict[str, Any] = {
        LAYER: np.array([scales[0].layer for scales in layers], dtype=object),
        SCALE: [scale.value for scale in study.scales],
        SCALE_NAME: (SCALE, np.array([scale.name for scale in study.scales], dtype=object)),
        STEP: steps,
        SAMPLE: study.tree.to_dataset()[SAMPLE].values,
    }
    return entries_of(matrices, coords).assign_attrs(merge=study.settings.merge)


def merge(study: Study, operators: dict[str, AnyOperatorFile]) -> DiffusionOperator:
    """Merge the operators of several models as the settings ask."""
    matrices = {model: file.matrix for model, file in operators.items()}
    return DiffusionMerging(cast(Strategy, study.settings.merge)).merge(matrices)


def _steps(operators: LayerOperators, everything: bool) -> list[int]:
    return (operators.shared_steps() if everything else []) or [operators.last_step()]
