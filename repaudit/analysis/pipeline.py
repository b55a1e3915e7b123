"""The whole analysis: a store in; results, summary, figures and report out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import xarray as xr

from repaudit.analysis.cache import Cache
from repaudit.analysis.contract import labelled
from repaudit.analysis.convergence import at_once
from repaudit.analysis.execution import workplace
from repaudit.analysis.folder import (
    CACHE,
    analysis_folder,
    default_folder,
    nulls_for_nan,
    write_answer,
    write_results,
)
from repaudit.analysis.layer_names import Match
from repaudit.analysis.layer_operators import LayerOperators, layer_operators, threads
from repaudit.analysis.moving import scratch
from repaudit.analysis.needed_memory import merged_memory, needed_memory
from repaudit.analysis.parts import CurveMargins, Parts, Progress, compute_parts
from repaudit.analysis.recorded_gauge import mixed_notes, recorded_layers, recorded_scales
from repaudit.analysis.selection import select
from repaudit.analysis.settings import MAX_TOKENS, Settings, StoreStrategy
from repaudit.analysis.shared_samples import repeated_samples
from repaudit.analysis.sketched_layers import layer_sketches, sketched_layers
from repaudit.analysis.sources import open_sources
from repaudit.analysis.study import Study
from repaudit.analysis.summary import summarize
from repaudit.analysis.token_samples import rows_and_scales
from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.similarity import Measure
from repaudit.names import SAMPLE
from repaudit.operators.written import local_path
from repaudit.results import DIAGNOSTICS, FINGERPRINT, PARAMETERS, SUMMARY, VERSIONS

PARTIAL, COMPLETE = "partial", "complete"
"""What a summary says of its analysis: pictures are still being made, or all is there."""

PACKAGES: Final = ("repaudit", "torch", "numpy", "xarray", "zarr", "phate", "pot")


def analyze(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    models: Sequence[str] | None = None,
    layers: Sequence[str] | Mapping[str, Mapping[str, str]] | None = None,
    steps: Sequence[int] | None = None,
    merge: StoreStrategy = "frobenius",
    memory: str = "2GB",
    scheduler: str | None = None,
    *,
    match: Match = "name",
    tokens: Literal["samples", "within"] | None = None,
    max_tokens: int = MAX_TOKENS,
    workers: int | None = None,
    device: str = "cpu",
    gauge: DiffusionGauge | Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    similarity: Sequence[Measure] = ("cka_debiased", "mutual_knn"),
    similarity_steps: Sequence[int] | None = None,
    scales: Sequence[float | str] | None = None,
    keep_merged: Literal["last", "all"] = "last",
    frames: int = 12,
    units: int = 32,
    figures: Literal["main", "all", "none"] = "main",
    cache: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Analyse whether the models of a store converge, layer by layer, and write the results next to the store.

    For every layer the activations of each (model, step) become a diffusion operator; from these follow the calibrated
    spread of the models over steps and what to compare it with, the similarity of all layers of all models, PHATE
    trajectories of all operators, and the operator merged over models. The store is never written to. What was computed
    is kept by its content, so that another run on a grown store computes only what is new.

    Parameters
    ----------
    url
        The store: a path or an fsspec URL. Or several stores of the same samples, whose models are analysed together on
        the samples that all of them have; a model whose name is in two of them is called ``<store>:<model>``.
    out
        Folder for ``results.zarr``, ``summary.json``, ``report.html``, ``figures/`` and their list ``files.json``, and
        for ``cache/``; ``<store>.analysis`` by default. Of several stores it has to be given.
    models, layers, steps
        What to analyse; everything by default. Layers that models call differently get one name by a mapping:
        ``{"penultimate": {"bert": "encoder.layer.4", "smol-*": "model.layers.28"}}``.
    match
        ``"depth"`` compares layers of models of different depth by their relative depth, among those recorded of each,
        at as many depths as the model with the fewest has layers.
    tokens
        Analyse the layers recorded with ``reduce="all"`` instead of the pooled ones. ``"samples"``: every unmasked
        token is a sample of its own. Models of one tokenizer are compared on the same tokens. Others are compared on
        those of the first model: a row of another is the mean of its tokens that share characters with that token,
        weighted by how many. ``"within"``: an operator over each sample's own tokens, averaged position by position.
    max_tokens
        Most tokens analysed as samples; of more, the seed draws which.
    merge
        Merge strategy; see :class:`repaudit.DiffusionMerging`.
    memory
        Bound on what is held in memory at once, e.g. ``"2GB"``.
    scheduler
        Address of a Dask scheduler whose workers compute the operators; threads on this machine by default. Workers
        must reach the store under the same URL.
    workers
        Start this many worker processes instead. A script needs the guard ``if __name__ == "__main__"`` for that.
    device
        Where operators are computed, e.g. ``"cuda"``.
    gauge
        How activations become operators; ``DiffusionGauge()`` by default.
    scales
        Effective numbers of neighbours to look at, such as ``(15, "N/4")``: *neighbourhoods* and *shape*, by default.
    keep_merged
        At which steps the merged operators themselves are kept: the last one that the models share, or all of these.
    groups
        Groups of models, within and between which to compare: models or patterns such as ``"seed*"`` per name.
    similarity, similarity_steps
        Measures of :func:`repaudit.similarity` for every pair of (model, layer), and the steps at which to compute
        them; by default the last step that the models share.
    frames
        Most steps, chosen evenly, at which to embed the samples; 0 for none.
    units
        Most units per layer, chosen evenly, whose M-PHATE trajectories are drawn; 0 for none.
    figures
        Which PNG files to write: the spread, the order in which layers settle and all trajectories, or all, or none.
        ``repaudit report --figures all`` draws them later.
    cache
        Whether to keep operators and intermediate results: about ``4 N^2`` bytes per operator on N samples.
    seed
        Seed of every random choice: resampling and embeddings.
    progress
        Called with (what, done, total) as the work goes on.

    Returns
    -------
    xarray.DataTree
        Groups ``spread``, ``pairs``, ``comparison``, ``trajectories``, ``merged`` with ``merged/operator``, ``frames``,
        ``units``, ``similarity``, ``diagnostics``, and ``groups`` or ``approach`` if they apply; the summary is in
        ``attrs["summary"]`` as JSON.
        ``schemas/v1/results.md`` says what each variable means.

    Raises
    ------
    StoreError
        There is no repaudit store at ``url``.
    AnalysisError
        The selection is empty or names something that the store does not have, or a setting is invalid.

    Examples
    --------
    >>> import repaudit as ra
    >>> results = ra.analyze("store.zarr")  # doctest: +SKIP
    >>> results["spread"]["spread"].sel(layer="model.layers.2")  # doctest: +SKIP

    A store of two models, recorded by hand:

    >>> import numpy as np
    >>> from tempfile import mkdtemp
    >>> points = np.random.default_rng(0).normal(size=(2, 24, 4)).astype(np.float32)
    >>> url = Path(mkdtemp(), "store.zarr")
    >>> probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(48).reshape(24, 2)})
    >>> for model in (0, 1):
    ...     name, layers = f"seed{model}", {"norm": ((24, 4), "float32")}
    ...     with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers) as writer:
    ...         _ = writer.append(0, {"norm": points[model]})
    >>> ra.analyze(url, frames=0, units=0).repaudit.summary["headline"]
    '2 models, 1 layer at one step, 0: every two models are compared below.'

    See Also
    --------
    open_store : reads what was recorded.
    spread : the spread of some operators.
    similarity_map : the similarity of some representations.
    phate_trajectories : the picture of some operators.
    """
    choices = {name: value for name, value in locals().items() if name in Settings.model_fields}
    return run(url, out, Settings.of(choices), progress)


def run(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None,
    settings: Settings,
    progress: Progress | None = None,
    answered: Callable[[Mapping[str, Any]], None] = lambda _summary: None,
    planned: Callable[[int, Study], None] = lambda _bytes, _study: None,
) -> xr.DataTree:
    """Run :func:`analyze` with its choices in one object.

    `planned` is called with about how many bytes of memory it takes and what is chosen, `answered` with the summary
    once it is known.
    """
    report = progress or (lambda _what, _done, _total: None)
    if out is not None and not os.fspath(out):
        raise AnalysisError("out: expected a folder for the results, found an empty text")
    chosen = None if out is None else local_path(out)
    if out is not None and chosen is None:
        raise AnalysisError(f"out: expected a folder of this machine for the results, found {os.fspath(out)}")
    urls = _several(url)
    if len(urls) > 1 and out is None:
        raise AnalysisError(f"out: expected a folder for the results of {len(urls)} stores, found none (--out)")
    sources = open_sources(urls, settings)
    tokens = settings.tokens is not None
    selection = select(sources.tree, settings.models, settings.chosen_layers, settings.steps, tokens=tokens)
    sources, scales = rows_and_scales(sources, selection, settings)
    recorded = recorded_layers(sources.tree, selection)
    if recorded:
        scales = recorded_scales(sources.tree, recorded, settings, sources.samples.sizes[SAMPLE])
    sketched = sketched_layers(sources.tree, recorded)
    settings.group_of(selection.models)
    settings.check_similarity_steps(selection.all_steps())
    with (
        analysis_folder(chosen or default_folder(urls[0]), urls) as folder,
        _cache(folder, settings) as cache,
    ):
        study = Study(sources, selection, settings, cache, tuple(scales))
        slots = at_once(study, sketched)
        planned(_needed(study, sketched, slots), study)
        layers, failed = _operators(study, sketched, report)
        mixed = mixed_notes(selection, recorded, sketched, scales)
        lines = [*sources.notes, *selection.left_out, *mixed, *failed]

        def answer(found: Parts) -> None:
            parts, margins, notes = found
            summary = _summary(parts, margins, study, [*lines, *notes], PARTIAL)
            write_answer(_labelled(parts, summary), summary, folder)
            answered(summary)

        parts, margins, notes = compute_parts(layers, study, slots, report, answer)
        summary = _summary(parts, margins, study, [*lines, *notes], COMPLETE)
        results = _labelled(parts, summary)
        cache.freed.give_back(at_once=True)  # what was computed is not to be added to what pages and pictures take
        write_results(results, summary, folder, settings.figures, report)
    return results


def _several(url: Any) -> list[str | os.PathLike[str]]:
    if isinstance(url, str | os.PathLike):
        return [url]
    urls: list[Any] = [None] if isinstance(url, Mapping) or not isinstance(url, Iterable) else list(url)
    if not all(isinstance(one, str | os.PathLike) for one in urls):
        raise TypeError(f"url: expected a path or URL of a store, or several, found {type(url).__name__}")
    return urls


def _needed(study: Study, sketched: Collection[str], at_once: int) -> int:
    samples, perplexities = study.samples.sizes[SAMPLE], [scale.gauge.perplexity for scale in study.scales]
    models = {name: len({model for model, _ in study.selection.keys(name)}) for name in study.selection.layers}
    steps = len(study.selection.all_steps()) if study.settings.keep_merged == "all" else 1
    whole = [count for name, count in models.items() if name not in sketched]
    results = steps * sum(merged_memory(samples, count, perplexities) for count in whole)
    if study.settings.similarity:  # which keeps a matrix of each representation where they fit
        results += min(study.settings.budget, 8 * samples**2 * sum(whole))
    operators = max((len(study.selection.keys(name)) for name in study.selection.layers), default=0)
    smallest = min(perplexity or samples for perplexity in perplexities)
    return needed_memory(samples, operators, smallest, at_once, results)


@contextmanager
def _cache(folder: Path, settings: Settings) -> Iterator[Cache]:
    if settings.cache:
        yield Cache(folder / CACHE)
        return
    with scratch(folder) as temporary:
        yield Cache(temporary)


def _operators(
    study: Study, sketched: Mapping[str, Sequence[str]], report: Progress
) -> tuple[list[list[LayerOperators]], list[str]]:
    """Return the operators or sketches of every layer at every scale, and a line for each that there is not."""
    names = study.selection.layers
    done, total = 0, sum(len(study.selection.keys(name)) for name in names)

    def advance() -> None:
        nonlocal done
        done += 1
        report("operators", done, total)

    report("operators", done, total)
    with workplace(study.settings, threads(study)) as executor:
        layers = [
            layer_sketches(study, name, sketched[name], executor, advance)
            if name in sketched
            else layer_operators(study, name, executor, advance)
            for name in names
        ]
    failed = ((one.layer, key, why) for one, *_ in layers for key, why in one.failed.items())
    left_out = [f"layer {layer}, {model} at step {step}: {why}" for layer, (model, step), why in failed]
    good = [scales for scales in layers if scales[0].stored]
    if not good:
        raise AnalysisError(
            f"expected at least one operator, found none that can be computed; the first reason: {left_out[0]}"
        )
    return good, left_out


def _summary(
    parts: Mapping[str, xr.Dataset], margins: CurveMargins, study: Study, left_out: Sequence[str], status: str
) -> dict[str, Any]:
    parameters = {"url": study.sources.urls, **study.settings.model_dump(mode="json")}
    parameters["gauge"] = json.loads(parts[DIAGNOSTICS].attrs["gauge"])
    return {
        **summarize(parts, margins),
        "status": status,
        "alone": study.selection.alone(),
        "repeated": repeated_samples(study.samples),
        "left_out": list(left_out),
        PARAMETERS: parameters,
        FINGERPRINT: study.fingerprint,
        VERSIONS: {name: version(name) for name in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _labelled(parts: dict[str, xr.Dataset], summary: dict[str, Any]) -> xr.DataTree:
    """Return the groups as one tree; each has parameters, versions and fingerprint, since it may be taken out."""
    provenance = {name: json.dumps(summary[name]) for name in (PARAMETERS, VERSIONS)}
    provenance[FINGERPRINT] = summary[FINGERPRINT]
    groups = {name: labelled(name, part).assign_attrs(provenance) for name, part in parts.items()}
    root = xr.Dataset(attrs={SUMMARY: json.dumps(nulls_for_nan(summary)), **provenance})
    return xr.DataTree.from_dict({"/": root, **groups})
