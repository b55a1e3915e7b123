"""Tokens in the place of samples: which of them are compared, and from which stored tokens each model has its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array

from repaudit.analysis.scales import SHAPE_ALONE, Scale, resolve_scales
from repaudit.analysis.selection import Selection
from repaudit.analysis.settings import Settings
from repaudit.analysis.shared_samples import FEWEST
from repaudit.analysis.sources import Source, Sources
from repaudit.analysis.token_rows import TokenRows
from repaudit.analysis.tokens import Tokens, shared_characters
from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import LABEL, OF_SAMPLE, POSITION, SAMPLE, TEXT, TOKEN
from repaudit.store.read import catalog

Integers = NDArray[np.int64]


def rows_and_scales(sources: Sources, selection: Selection, settings: Settings) -> tuple[Sources, list[Scale]]:
    """Return the sources with the rows that the settings ask for, samples or tokens, and the scales to look at.

    Raises
    ------
    AnalysisError
        Tokens of models cannot be compared, or too few are left.
    """
    if settings.tokens is None:
        return sources, resolve_scales(settings.scales, settings.gauge, sources.samples.sizes[SAMPLE])
    every = {model: _tokens(sources, selection, model) for model in _models(selection)}
    if settings.tokens == "within":
        return _within(sources, every, settings)
    shown = _as_samples(sources, every, settings)
    return shown, resolve_scales(settings.scales, settings.gauge, shown.samples.sizes[SAMPLE])


def fewest_tokens(gauges: Sequence[DiffusionGauge]) -> int:
    """Return how many tokens a sample needs so that these gauges can tell its tokens apart.

    Examples
    --------
    >>> fewest_tokens([DiffusionGauge()]), fewest_tokens([DiffusionGauge(knn=5)])
    (17, 6)
    """
    needs = [0 if gauge.perplexity is None else math.floor(gauge.perplexity) + 2 for gauge in gauges]
    needs += [count + 1 for gauge in gauges for count in (gauge.knn, gauge.neighbors) if count is not None]
    return max(FEWEST, *needs, *(gauge.landmarks or 0 for gauge in gauges))


def _models(selection: Selection) -> list[str]:
    return [model for model in selection.models if selection.layers_of[model] & set(selection.layers)]


def _tokens(sources: Sources, selection: Selection, model: str) -> Tokens:
    """Return the tokens that a model read, which all of its layers must have kept."""
    source = sources.of_model[model]
    tree = sources.trees[source.url]
    encoded = source.take_samples(catalog.inputs(tree, source.model))
    facts = catalog.encoding(tree, source.model)
    found: dict[tuple[int, int], Tokens] = {}
    for layer in (layer for layer in selection.layers if layer in selection.layers_of[model]):
        stored = source.take_samples(catalog.activations(tree, source.model, source.recorded(layer)))
        shape = stored.sizes[SAMPLE], stored.sizes[TOKEN]
        if shape in found:
            continue
        try:
            found[shape] = Tokens.of(encoded, shape, str(facts.get("tokenizer_sha256", "")))
            if len(found) > 1:
                other = next(iter(found))[1]
                raise AnalysisError(f"it keeps {shape[1]} tokens of a sample, another {other}: leave one of them out")
        except AnalysisError as error:
            raise AnalysisError(f"layer {layer} of model {model}: {error}") from None
    return next(iter(found.values()))


def _as_samples(sources: Sources, every: Mapping[str, Tokens], settings: Settings) -> Sources:
    """Return the sources with one row per token, at most as many as the settings allow."""
    first = next(iter(every))
    base = _with_spans(every[first], every)
    others = {model: tokens for model, tokens in every.items() if not tokens.same_as(base)}
    if others:
        _refuse_without_spans({first: base, **others})
    shares = {model: shared_characters(base, tokens) for model, tokens in others.items()}
    met = [share.sum(1) > 0 for share in shares.values()]
    common = np.flatnonzero(np.all([np.ones(len(base), bool), *met], axis=0))
    chosen = _drawn(common, settings)
    if len(chosen) < FEWEST:
        raise AnalysisError(
            f"tokens: expected at least {FEWEST} that all models have, found {len(chosen)} of {len(base)} of {first}"
        )
    rows = {
        model: _means(base, chosen, tokens, shares[model]) if model in shares else _single(tokens, chosen)
        for model, tokens in every.items()
    }
    notes = [f"tokens: {len(base) - len(common)} of {len(base)} of {first}, without a character that all models read"]
    notes = notes if len(common) < len(base) else []
    if len(chosen) < len(common):
        notes.append(f"tokens: all but {len(chosen)} of {len(common)}, drawn by the seed (max_tokens)")
    return _shown(sources, rows, _token_coordinates(sources, rows[first], base, chosen), notes)


def _within(sources: Sources, every: Mapping[str, Tokens], settings: Settings) -> tuple[Sources, list[Scale]]:
    """Return the sources with all tokens of the samples that are long enough, for operators within each."""
    (first, base), *others = every.items()
    for model, tokens in others:
        if not tokens.same_as(base):
            raise AnalysisError(
                f"tokens: models {first} and {model} read the samples as other tokens, whose positions are not the "
                "same; compare them with tokens='samples' (--tokens), or models of one tokenizer within samples"
            )
    lengths = np.bincount(base.sample)
    typical = int(np.median(lengths[lengths > 0]))
    scales = resolve_scales(settings.scales, settings.gauge, typical, SHAPE_ALONE, of_all=False)
    fewest, longest = fewest_tokens([scale.gauge for scale in scales]), int(lengths.max())
    if longest < fewest:
        raise AnalysisError(
            f"tokens: expected samples of at least {fewest} tokens, as this gauge needs within one, found at most "
            f"{longest}: give smaller scales (--scales N/4), or another gauge"
        )
    chosen = np.flatnonzero((lengths >= fewest)[base.sample])
    rows = {model: _single(tokens, chosen) for model, tokens in every.items()}
    positions = np.arange(longest)
    names = np.array([f"position {position}" for position in positions], dtype=object)
    short = int(((lengths > 0) & (lengths < fewest)).sum())
    notes = [f"tokens: {short} of {(lengths > 0).sum()} samples, which have fewer than {fewest} tokens"] * bool(short)
    shown = _shown(sources, rows, {SAMPLE: names, POSITION: (SAMPLE, positions)}, notes, within=True)
    return shown, scales


def _with_spans(base: Tokens, every: Mapping[str, Tokens]) -> Tokens:
    """Return tokens with the characters that any model of the same tokens knows."""
    spans = (tokens.spans for tokens in every.values() if tokens.spans is not None and tokens.same_as(base))
    return base if base.spans is not None else replace(base, spans=next(spans, None))


def _refuse_without_spans(unlike: Mapping[str, Tokens]) -> None:
    lacking = [model for model, tokens in unlike.items() if tokens.spans is None]
    if lacking:
        raise AnalysisError(
            f"tokens: models {', '.join(unlike)} read the samples as other tokens, and the characters that those of "
            f"{', '.join(lacking)} stand for are not known: record it from texts with a fast tokenizer of transformers "
            "(in a new store, if it has the model), or compare models of one tokenizer (--models)"
        )


def _drawn(tokens: Integers, settings: Settings) -> Integers:
    """Return at most as many tokens as the settings allow, in their order."""
    if len(tokens) <= settings.max_tokens:
        return tokens
    return np.sort(np.random.default_rng(settings.seed).choice(tokens, settings.max_tokens, replace=False))


def _single(tokens: Tokens, chosen: Integers) -> TokenRows:
    count = len(chosen)
    return TokenRows(
        tokens.sample[chosen], tokens.position[chosen], np.arange(count + 1), tokens.column[chosen], np.ones(count)
    )


def _means(base: Tokens, chosen: Integers, tokens: Tokens, share: csr_array) -> TokenRows:
    """Return rows for the chosen tokens: means of the other model's, weighted by the characters that they share."""
    shared = csr_array(share[chosen])
    total = np.repeat(shared.sum(1), np.diff(shared.indptr))
    column = tokens.column[shared.indices]
    return TokenRows(
        base.sample[chosen], base.position[chosen], shared.indptr.astype(np.int64), column, shared.data / total
    )


def _token_coordinates(sources: Sources, rows: TokenRows, base: Tokens, chosen: Integers) -> dict[str, Any]:
    samples = sources.tree.to_dataset()
    ids = samples[SAMPLE].values
    found = {
        SAMPLE: rows.ids(ids),
        OF_SAMPLE: (SAMPLE, ids[rows.of_sample]),
        POSITION: (SAMPLE, rows.position),
    }
    if LABEL in samples:
        found[LABEL] = (SAMPLE, samples[LABEL].values[rows.of_sample])
    if TEXT in samples and base.spans is not None:
        texts = samples[TEXT].values[rows.of_sample]
        parts = [str(text)[start:end] for text, (start, end) in zip(texts, base.spans[chosen].tolist(), strict=True)]
        found[TEXT] = (SAMPLE, np.array(parts, dtype=object))
    return found


def _shown(
    sources: Sources,
    rows: Mapping[str, TokenRows],
    coords: Mapping[str, Any],
    notes: Sequence[str],
    within: bool = False,
) -> Sources:
    of_model: dict[str, Source] = {
        model: replace(source, tokens=rows.get(model), within=within) for model, source in sources.of_model.items()
    }
    return replace(sources, of_model=of_model, rows=xr.Dataset(coords=coords), notes=(*sources.notes, *notes))
