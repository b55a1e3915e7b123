"""What to compare the spread of the models with: start, inputs, halves of the features, groups, a model's end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.utils import format_bytes
from joblib import cpu_count
from numpy.typing import NDArray

from repaudit.analysis.input_geometry import InputGeometry
from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.row_operators import row_operators
from repaudit.analysis.sources import Source
from repaudit.analysis.study import Study
from repaudit.errors import ActivationError, AnalysisError, StoreError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.comparison import departure, feature_halves, group_spread
from repaudit.measure.spread import Spread, spread
from repaudit.measure.tally import Tallies
from repaudit.names import LAYER, MODEL, SAMPLE, SOURCE, STEP
from repaudit.operators.grouped_sketch import grouped_sketch
from repaudit.operators.operator import DiffusionOperator
from repaudit.results import (
    APPROACH,
    FEATURE_HALVES,
    FROM_INPUTS,
    FROM_UNTRAINED,
    GROUP,
    HIGH,
    LOW,
    OTHER,
    SPREAD,
    bounds,
)
from repaudit.store.read import catalog

Array = NDArray[np.float64]

NUMBERS: Final = ("value", "low", "high")


def undefined_spreads(dataset: xr.Dataset, operators: LayerOperators, samples: int) -> list[str]:
    """Return one line per step that has no spread although at least two models have an operator.

    One line for all steps where there are too few samples for the scale.
    """
    values = dataset[SPREAD].sel({LAYER: operators.layer})
    perplexity = operators.scale.gauge.perplexity
    if perplexity is not None and samples <= perplexity + 1 and bool(values.isnull().all()):
        fewer = max(2, samples // 4)
        how = f"--scales {fewer}" if operators.has_activations else f"gauge=DiffusionGauge(perplexity={fewer})"
        return [
            f"layer {operators.layer}: no spread at any step, since {samples} samples are too few for {perplexity:g} "
            f"neighbours of each: record more samples, or look at fewer neighbours ({how})"
        ]
    return [
        f"layer {operators.layer} at step {step}: no spread, since relabelling an operator's samples "
        "changes nothing (collapsed or uniform; see diagnostics)"
        for step, value in zip(values[STEP].values.tolist(), values.values, strict=True)
        if np.isnan(value) and len(operators.at(step)) > 1
    ]


def missing_starts(operators: LayerOperators) -> list[str]:
    """Say which models lack step 0, so that nothing is compared with the untrained networks."""
    start = operators.at(0)
    if not start and len(operators.steps()) > 1 and len(operators.models()) > 1:
        return [
            f"layer {operators.layer}: untrained networks, of which none was recorded (audit before the first step)"
        ]
    lacking = ", ".join(model for model in operators.models() if model not in start)
    return (
        [f"layer {operators.layer}: untrained networks, of which {lacking} has no step 0"] if start and lacking else []
    )


def comparison_dataset(operators: LayerOperators, study: Study, inputs: InputGeometry | None) -> xr.Dataset:
    """Compute the distances of the models from the untrained networks and the inputs, and of halves of the features."""
    references: dict[str, tuple[Any, Sequence[str]]] = {}
    start = operators.at(0)
    untrained = not any(_only_recorded(study, model) for model in start)
    if start and untrained and set(start) == set(operators.models()):
        references[FROM_UNTRAINED] = start, [*operators.content(0).values()]
    if inputs is not None:
        geometry = grouped_sketch(inputs.operator) if operators.sketched else inputs.operator
        references[FROM_INPUTS] = geometry, [inputs.words]
    halves = _mean_halves(operators, study) if operators.has_activations else np.nan
    dataset = xr.Dataset(
        {**_departures(operators, study, references), FEATURE_HALVES: ((LAYER,), [halves])},
        coords={LAYER: _names(operators.layer), STEP: study.selection.all_steps()},
    )
    if FROM_UNTRAINED in dataset:
        dataset[FROM_UNTRAINED].attrs["reference_step"] = 0
    if inputs is not None:
        dataset[FROM_INPUTS].attrs["inputs"] = inputs.words
    return dataset


def _only_recorded(study: Study, model: str) -> bool:
    """Whether a model is one set of weights that was not in training: step 0 is then not an untrained network."""
    facts = catalog.facts(study.tree, model)
    return SOURCE in facts and study.selection.steps[model] == (0,)


def approach_dataset(operators: LayerOperators, study: Study) -> xr.Dataset | None:
    """Compute a single model's calibrated squared distance from its last operator; None for several models."""
    if len(operators.models()) != 1:
        return None
    (model,) = operators.models()
    steps, last = study.selection.all_steps(), operators.steps()[-1]
    values = np.full((3, len(steps)), np.nan)
    for index, step in enumerate(steps):
        if not operators.at(step):
            continue
        content = {"then": operators.content(step)[model], "end": operators.content(last)[model]}
        pair = {"then": operators.at(step)[model], "end": operators.at(last)[model]}
        result = _recalled(study, "approach", content, partial(spread, pair, seed=study.settings.seed))
        values[:, index] = [result[name] for name in NUMBERS]
    coords = {LAYER: _names(operators.layer), MODEL: _names(model), STEP: steps}
    variables = zip((APPROACH, LOW, HIGH), values, strict=True)
    return xr.Dataset({name: ((LAYER, MODEL, STEP), value[None, None]) for name, value in variables}, coords=coords)


def groups_dataset(operators: LayerOperators, study: Study) -> xr.Dataset | None:
    """Compute the spread within and between groups of models; None if no groups were asked for."""
    belongs = study.settings.group_of(study.selection.models)
    if not belongs:
        return None
    steps, names = study.selection.all_steps(), list(dict.fromkeys(belongs.values()))
    values = np.full((3, len(steps), len(names), len(names)), np.nan)
    for index, step in enumerate(steps):
        here = operators.content(step)
        if not here:
            continue
        content = [
            "groups",
            study.settings.seed,
            names,
            sorted(here.items()),
            [belongs[model] for model in sorted(here)],
        ]
        by_pairs = partial(_by_pairs, operators.at(step), belongs, names, study.settings.seed)
        for at, triple in study.cache.recall(content, by_pairs).items():
            i, j = map(int, at.split())
            values[:, index, i, j] = values[:, index, j, i] = triple
    coords = {LAYER: _names(operators.layer), STEP: steps, GROUP: _names(*names), OTHER: _names(*names)}
    variables = zip((SPREAD, LOW, HIGH), values, strict=True)
    return xr.Dataset({name: ((LAYER, STEP, GROUP, OTHER), value[None]) for name, value in variables}, coords=coords)


def at_once(study: Study, sketched: Collection[str] = ()) -> int:
    """Return how many comparisons run at once: two operators with their roots, in float64, must fit for each.

    Sketches, if all layers are known by them, always do.

    Raises
    ------
    AnalysisError
        Not even one fits in the memory budget.
    """
    samples = study.samples.sizes[SAMPLE]
    if len(sketched) == len(study.selection.layers):
        return int(cpu_count())
    need = 10 * 8 * samples**2
    if need > study.settings.budget:
        raise AnalysisError(
            f"expected a memory budget of about {format_bytes(need)} for distances of operators on {samples} samples, "
            f"found {format_bytes(study.settings.budget)}: raise `memory`"
        )
    return int(min(cpu_count(), study.settings.budget // need))


def _recalled(study: Study, kind: str, content: Mapping[str, str], compute: Callable[[], Spread]) -> dict[str, float]:
    def numbers() -> dict[str, float]:
        result = compute()
        return {name: getattr(result, name) for name in NUMBERS}

    found = study.cache.recall([kind, study.settings.seed, sorted(content.items())], numbers)
    return {name: float(value) for name, value in found.items()}


def _departures(
    operators: LayerOperators, study: Study, references: Mapping[str, tuple[Any, Sequence[str]]]
) -> dict[str, Any]:
    """Return the distance of the models from each reference at every step; a reference has a name of its content."""
    steps, settings = study.selection.all_steps(), study.settings
    # of the untrained networks, the inputs, one step and the step before, which goes last
    tallies = Tallies(most=3 * len(operators.models()) + 1)
    values = {name: np.full((3, len(steps)), np.nan) for name in references}
    for index, step in enumerate(steps):
        here = operators.content(step)
        for variable, (reference, named) in references.items() if here else ():
            how = [f"departure {variable.replace('_', ' ')}", *named, study.inputs, asdict(operators.scale.gauge)]
            compute = partial(departure, operators.at(step), reference, seed=settings.seed, tallies=tallies)
            result = _recalled(study, json.dumps(how), here, compute)
            values[variable][:, index] = [result[name] for name in NUMBERS]
    return {
        name: ((LAYER, STEP), value[None])
        for variable, triple in values.items()
        for name, value in zip((variable, *bounds(variable)), triple, strict=True)
    }


def _mean_halves(operators: LayerOperators, study: Study) -> float:
    """Return the mean distance of two halves of a model's features at the last shared step; NaN if there is none."""
    step, settings = operators.last_step(), study.settings
    floors = []
    for model, name in operators.content(step).items():
        content = ["feature halves", settings.seed, asdict(operators.scale.gauge), name]
        with suppress(StoreError):  # which is noted
            floors.append(study.cache.recall(content, partial(_halves, study, model, operators, step))["distance"])
    return float(np.mean(floors)) if floors else math.nan


def _halves(study: Study, model: str, operators: LayerOperators, step: int) -> dict[str, float]:
    values, source = study.read(model, operators.layer, step), study.sources.of_model[model]
    try:
        of_half = partial(_operator, source, operators.scale.gauge)
        return {"distance": feature_halves(values, of_half, seed=study.settings.seed)}
    except ActivationError:  # too few features to be halved
        return {"distance": np.nan}


def _operator(source: Source, gauge: DiffusionGauge, values: Any) -> DiffusionOperator:
    return row_operators(source, values, [gauge])[0]


def _by_pairs(
    operators: Mapping[str, Any], belongs: Mapping[str, str], names: list[str], seed: int
) -> dict[str, Array]:
    """Return value, low and high within every group and between every pair, by their indices among the names."""
    spreads = group_spread(operators, belongs, seed=seed)
    pairs = {(group, group): within for group, within in spreads.within.items()} | spreads.between
    return {
        f"{names.index(a)} {names.index(b)}": np.array([pair.value, pair.low, pair.high])
        for (a, b), pair in pairs.items()
    }


def _names(*names: str) -> NDArray[Any]:
    return np.array(names, dtype=object)
