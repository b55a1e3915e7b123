"""The diffusion operators of one layer: one task per (model, step), computed once and kept in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from dask.utils import format_bytes
from joblib import cpu_count

from repaudit.analysis.cache import StoredOperator, digest
from repaudit.analysis.execution import Workplace
from repaudit.analysis.row_operators import row_operators
from repaudit.analysis.scales import Scale
from repaudit.analysis.sources import Source
from repaudit.analysis.study import Study
from repaudit.errors import ActivationError, AnalysisError, CorruptStoreError, NotInStoreError, OperatorError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.recorded import recorded_operator
from repaudit.names import SAMPLE, STEP
from repaudit.operators.grouped_sketch import LazySketch
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator
from repaudit.results import ENTROPY, ENTROPY_ERROR
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step
from repaudit.store.read.reader import open_store
from repaudit.store.read.stand_ins import holds_sketches, stand_ins_by_layer, stands_in

MOST_EIGENVALUES: Final = 512
"""Samples up to which the spectral entropy is exact: all eigenvalues of more take longer than everything else."""

_LOADING: Final = Lock()

Key = tuple[str, int]
"""(model, step)."""


@dataclass(frozen=True)
class LayerOperators:
    """Operators of one layer at one scale by (model, step); ``failed`` says why some could not be computed."""

    layer: str
    scale: Scale
    stored: dict[Key, StoredOperator]
    failed: dict[Key, str]
    has_activations: bool = True
    """Whether every model keeps the activations; of others, operators or sketches were recorded."""

    @property
    def sketched(self) -> bool:
        """Whether sketches stand for the operators."""
        return any(isinstance(stored.file, LazySketch) for stored in self.stored.values())

    def models(self) -> list[str]:
        """Return the models that have an operator."""
        return list(dict.fromkeys(model for model, _ in self.stored))

    def steps(self) -> list[int]:
        """Return the steps at which some model has an operator, increasing."""
        return sorted({step for _, step in self.stored})

    def shared_steps(self) -> list[int]:
        """Return the steps at which every model that has any operator has one, increasing."""
        return [step for step in self.steps() if len(self.at(step)) == len(self.models())]

    def last_step(self) -> int:
        """Return the last step that all models share, or the last of all if they share none."""
        return (self.shared_steps() or self.steps())[-1]

    def at(self, step: int) -> dict[str, Any]:
        """Return the operators of one step by model: as files, or as what stands for them."""
        return {model: stored.file for (model, s), stored in self.stored.items() if s == step}

    def content(self, step: int) -> dict[str, str]:
        """Return what determines every result of one step: the operators' digests by model."""
        return {model: stored.digest for (model, s), stored in self.stored.items() if s == step}


@dataclass(frozen=True)
class Task:
    """The operators of some activations at all scales, by name: what a worker needs, without arrays."""

    source: Source
    model: str
    layer: str
    step: int
    checksum: int
    gauges: tuple[DiffusionGauge, ...]
    device: str
    run: str

    @property
    def key(self) -> Key:
        """Model and step."""
        return self.model, self.step

    def digests(self) -> list[str]:
        """Return the digest of what determines each operator: inputs, activations' checksum, and parameters."""
        made_of = (*self.source.identity(self.layer), self.step, self.checksum)
        return [digest("operator", *made_of, asdict(gauge), torch.device(self.device).type) for gauge in self.gauges]


@dataclass(frozen=True)
class Computed:
    """An operator's matrix with its facts, or the reason for having none."""

    matrix: Any
    diagnostics: dict[str, float]
    gauge: dict[str, Any]
    failure: str = ""


def layer_operators(
    study: Study,
    layer: str,
    workplace: Workplace,
    advance: Callable[[], None] = lambda: None,
    keys: Sequence[Key] | None = None,
) -> list[LayerOperators]:
    """Read every operator of a layer, or those of some (model, step), from the cache at every scale, or compute it.

    Raises
    ------
    AnalysisError
        One operator does not fit in the memory budget.
    """
    keys = study.selection.keys(layer) if keys is None else keys
    sums, failed = _checksums(study, layer, keys)
    tasks = {key: _task(study, layer, key, checksum) for key, checksum in sums.items()}
    names = {key: task.digests() for key, task in tasks.items()}
    stored = {key: [study.cache.operator(name) for name in names[key]] for key in tasks}
    missing = [task for key, task in tasks.items() if None in stored[key]]
    for _ in range(len(keys) - len(missing)):
        advance()
    for task, every in workplace.run(compute, missing):
        for index, made in enumerate(every):
            if made.matrix is None:
                failed[task.key] = made.failure
            elif stored[task.key][index] is None:
                put = (names[task.key][index], made.matrix, made.diagnostics, made.gauge)
                stored[task.key][index] = study.cache.put_operator(*put)
        advance()
    reasons = {key: failed[key] for key in keys if key in failed}
    arrays = [catalog.activations(study.tree, model, layer) for model in dict.fromkeys(model for model, _ in keys)]
    has_activations = not any(map(stands_in, arrays))
    found = []
    for index, scale in enumerate(study.scales):
        # a step damaged since some of its scales were kept is left out of all, so that they speak of the same steps
        at_scale = {key: stored[key][index] for key in keys if key not in failed}
        known = {key: operator for key, operator in at_scale.items() if operator is not None}
        found.append(LayerOperators(layer, scale, known, reasons, has_activations))
    return found


def compute(task: Task) -> list[Computed]:
    """Read the activations and compute P at every scale; those without an operator give a reason, not an error."""
    try:
        source = task.source
        store = _store(source.url, task.run)
        values = read_step(store, source.model, source.recorded(task.layer), task.step, task.checksum)
        if stands_in(values):
            operators = [recorded_operator(values)]
        else:
            operators = row_operators(source, _on(source.take(values), task.device), task.gauges)
    except (ActivationError, CorruptStoreError, NotInStoreError, OperatorError) as error:
        return [Computed(None, {}, {}, str(error)) for _ in task.gauges]
    return [_computed(operator, gauge) for operator, gauge in zip(operators, task.gauges, strict=True)]


def _computed(operator: DiffusionOperator, gauge: DiffusionGauge) -> Computed:
    used = asdict(gauge)
    used.update({name: operator.attrs[name] for name in used if name in operator.attrs})
    diagnostics = {name: float(value) for name, value in dict(operator.diagnostics).items()}
    entropy = operator.spectral_entropy(1, MOST_EIGENVALUES)
    diagnostics |= {ENTROPY: entropy.value} | ({ENTROPY_ERROR: entropy.error} if entropy.error else {})
    if isinstance(operator, SparseDiffusionOperator):
        return Computed(operator.csr.astype(np.float32), diagnostics, used)
    return Computed(operator.to_numpy().astype(np.float32), diagnostics, used)


def threads(study: Study) -> int:
    """Return how many operators fit in the budget at once: P, its float64 eigenwork, and the activations.

    Raises
    ------
    AnalysisError
        Not even one operator fits.
    """
    n, need, layer = 0, 0, ""
    every = {(name, model) for name in study.selection.layers for model, _ in study.selection.keys(name)}
    for name, model in sorted(every):
        stored = catalog.activations(study.tree, model, name).isel({STEP: 0})
        samples = 0 if holds_sketches(stored) else study.samples.sizes[SAMPLE]
        this = samples * samples * (4 + 3 * 8) + 3 * stored.size * 8
        n, need, layer = max((n, need, layer), (samples, this, name), key=lambda candidate: candidate[1])
    if need > study.settings.budget:
        raise AnalysisError(
            f"layer {layer}: expected a memory budget of about {format_bytes(need)} for one operator of {n} samples, "
            f"found {format_bytes(study.settings.budget)}: raise `memory`"
        )
    return int(max(1, min(cpu_count(), study.settings.budget // need)))


def _checksums(study: Study, layer: str, keys: Sequence[Key]) -> tuple[dict[Key, int], dict[Key, str]]:
    """Return the checksum of every step, and why those of a model are not known."""
    sums: dict[str, dict[int, int]] = {}
    failed: dict[str, str] = {}
    for model in dict.fromkeys(model for model, _ in keys):
        try:
            sums[model] = study.sources.checksums(model, layer)
        except CorruptStoreError as error:
            failed[model] = str(error)
    known = {(model, step): sums[model][step] for model, step in keys if model in sums}
    return known, {(model, step): failed[model] for model, step in keys if model in failed}


def _task(study: Study, layer: str, key: Key, checksum: int) -> Task:
    gauges = tuple(scale.gauge for scale in study.scales)
    return Task(
        study.sources.of_model[key[0]], key[0], layer, key[1], checksum, gauges, study.settings.device, study.run
    )


@lru_cache(maxsize=16)
def _store(url: str, run: str) -> xr.DataTree:
    """Open the store once per run in every process that works for it."""
    return stand_ins_by_layer(open_store(url))


def _on(values: xr.DataArray, device: str) -> Any:
    """Move activations to the device; on the CPU they keep the labels that errors name."""
    if torch.device(device).type == "cpu":
        return values
    with _LOADING:
        _load_linear_algebra(device)
    return torch.as_tensor(values.values).to(device)


@lru_cache(maxsize=16)
def _load_linear_algebra(device: str) -> None:
    """Let torch load its linear algebra of a device, which raises where several threads are the first to need it."""
    torch.linalg.eigvalsh(torch.ones(1, 1, device=device))
