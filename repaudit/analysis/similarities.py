"""Similarity of every pair of layers of all models at some steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.study import Study
from repaudit.errors import StoreError
from repaudit.measure.similarity import Measure, similarity_map
from repaudit.names import LAYER, MODEL, SAMPLE, STEP
from repaudit.results import MEASURE, NULL, OTHER, REPRESENTATION, SIMILARITY

FEWEST = 4
NEIGHBORS = 10
"""Neighbours of mutual_knn, or half of the other samples if those are fewer than 20."""


def similarity_dataset(layers: Sequence[LayerOperators], study: Study) -> xr.Dataset | None:
    """Compute the measures asked for, of all pairs of (model, layer) at the steps asked for; None if there are none."""
    measures, steps = study.settings.similarity, _steps(layers, study)
    names = [(model, one.layer) for model in study.selection.models for one in layers if model in one.models()]
    if not measures or len(names) < 2 or no_similarity(study):
        return None
    shape = (len(measures), len(steps), len(names), len(names))
    values = np.full((2, *shape), np.nan)
    for column, step in enumerate(steps):
        stored = {one.layer: one.content(step) for one in layers}
        every = [index for index, (model, layer) in enumerate(names) if model in stored[layer]]
        for row, measure in enumerate(measures):
            for here in _readable(study, names, every, step):
                digests = [stored[layer][model] for model, layer in (names[index] for index in here)]
                views = _Activations(study, [names[index] for index in here], step)
                content = ["similarity", measure, study.settings.seed, digests]
                try:
                    maps = study.cache.recall(content, partial(_compare, study, views, measure))
                except StoreError:  # once more, without what could not be read
                    continue
                for part, name in enumerate((SIMILARITY, NULL)):
                    values[part, row, column][np.ix_(here, here)] = maps[name]
                break
    labels = [f"{model}/{layer}" for model, layer in names]
    coords = {
        MEASURE: _texts(measures),
        STEP: steps,
        REPRESENTATION: _texts(labels),
        OTHER: _texts(labels),
        MODEL: (REPRESENTATION, _texts(model for model, _ in names)),
        LAYER: (REPRESENTATION, _texts(layer for _, layer in names)),
    }
    dims = (MEASURE, STEP, REPRESENTATION, OTHER)
    return xr.Dataset({name: (dims, value) for name, value in zip((SIMILARITY, NULL), values, strict=True)}, coords)


def _readable(study: Study, names: Sequence[tuple[str, str]], every: Sequence[int], step: int) -> Iterator[list[int]]:
    """Yield those of which the activations are not known to be unreadable, until all are read, or there are none."""
    while len(here := [index for index in every if (*names[index], step) not in study.unread]) > 1:
        yield here


def no_similarity(study: Study) -> list[str]:
    """Say why there is no similarity: too few samples, or operators within these, which have no activations."""
    if study.settings.tokens == "within":
        return ["similarity: a position within samples has no activations of its own (see tokens='samples')"]
    count = study.samples.sizes[SAMPLE]
    return [f"similarity: expected at least {FEWEST} samples, found {count}"] * (count < FEWEST)


def _texts(names: Iterable[str]) -> NDArray[Any]:
    return np.array(list(names), dtype=object)


def _compare(study: Study, views: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    k = min(NEIGHBORS, (study.samples.sizes[SAMPLE] - 1) // 2)
    dataset = similarity_map(views, measure, k=k, seed=study.settings.seed, memory=study.settings.budget)
    return {name: dataset[name].values for name in (SIMILARITY, NULL)}


class _Activations(Mapping[str, Any]):
    """Activations of one step by "model/layer", read on access."""

    def __init__(self, study: Study, names: Sequence[tuple[str, str]], step: int) -> None:
        self._study, self._step = study, step
        self._names = {f"{index}: {model}/{layer}": (model, layer) for index, (model, layer) in enumerate(names)}

    def __getitem__(self, name: str) -> Any:
        model, layer = self._names[name]
        return self._study.read(model, layer, self._step).values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _steps(layers: Sequence[LayerOperators], study: Study) -> list[int]:
    """Return the steps asked for; by default the last one that the models share."""
    if study.settings.similarity_steps is None:
        return [max(one.last_step() for one in layers)]
    return sorted(set(study.settings.similarity_steps))
