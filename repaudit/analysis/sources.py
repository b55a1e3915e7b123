"""Where each model's activations come from: which store, which of its samples, which of its layers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.analysis.layer_names import LayerNames
from repaudit.analysis.settings import Settings
from repaudit.analysis.shared_samples import SharedSamples, share_samples
from repaudit.analysis.thumbnails import thumbnails
from repaudit.analysis.token_rows import TokenRows
from repaudit.errors import AnalysisError
from repaudit.names import (
    ATTRS,
    BY_DEPTH,
    CHECKSUM,
    LAYER,
    MODEL,
    MODELS,
    PROBE,
    SAMPLE,
    at_home,
    encode_name,
    matching_models,
)
from repaudit.store.format.layout import INPUTS_FINGERPRINT, LOST
from repaudit.store.format.sample_set import inputs_key
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step, step_checksums
from repaudit.store.read.reader import open_store
from repaudit.store.read.stand_ins import stand_ins_by_layer, stands_in

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


@dataclass(frozen=True)
class Source:
    """One model as an analysis shows it: its store and its name there, the rows of the samples, its layers' names."""

    url: str
    fingerprint: str
    model: str
    layers: Mapping[str, str] | None = None
    rows: NDArray[np.int64] | None = None
    tokens: TokenRows | None = None
    """Which stored tokens make the rows, where tokens are analysed; ``within``: sample by sample."""
    within: bool = False

    def recorded(self, layer: str) -> str:
        """Return the name under which a layer was recorded."""
        return layer if self.layers is None else self.layers[layer]

    def take_samples(self, values: Labelled) -> Labelled:
        """Return the samples that are analysed, of values with a dim over all samples of the store."""
        return values if self.rows is None else values.isel({SAMPLE: self.rows})

    def take(self, values: xr.DataArray) -> xr.DataArray:
        """Return the rows that are analysed: samples, or tokens of them, in the place of dim ``sample``."""
        samples = self.take_samples(values)
        return samples if self.tokens is None else self.tokens.of(samples)

    def identity(self, layer: str) -> tuple[Any, ...]:
        """Return what, beside a step's checksum, determines operators: the inputs, model, layer and rows."""
        chosen = () if self.rows is None else (hashlib.sha256(self.rows.tobytes()).hexdigest(),)
        tokens = () if self.tokens is None else (self.tokens.identity(), self.within)
        return (self.fingerprint, self.model, self.recorded(layer), *chosen, *tokens)


@dataclass(frozen=True)
class Sources:
    """All models of an analysis, in one tree of the samples that they share.

    Attributes
    ----------
    tree : DataTree
        As of one store, with the models and layers under the names that the analysis gives them.
    of_model : dict of model name to Source
    notes : what was left out
    rows : Dataset, with the coordinates of the rows of operators where these are not the samples
    """

    tree: xr.DataTree
    trees: Mapping[str, xr.DataTree]
    of_model: Mapping[str, Source]
    notes: tuple[str, ...] = ()
    rows: xr.Dataset | None = None

    @property
    def samples(self) -> xr.Dataset:
        """What the rows of operators are along dim ``sample``: ids, and labels and texts where there are any."""
        return self.tree.to_dataset() if self.rows is None else self.rows

    @cached_property
    def thumbnails(self) -> list[str] | None:
        """Small pictures of the samples, where these are images."""
        if self.rows is not None:
            return None
        encodings = catalog.all_inputs(self.tree).values()
        return next((found for encoded in encodings if (found := thumbnails(encoded)) is not None), None)

    def read(self, model: str, layer: str, step: int, checksum: int | None = None) -> xr.DataArray:
        """Read the activations (sample, feature) of one step, checked by their checksum; or those of tokens."""
        source = self.of_model[model]
        return source.take(read_step(self.trees[source.url], source.model, source.recorded(layer), step, checksum))

    def checksums(self, model: str, layer: str) -> dict[int, int]:
        """Return the checksum of a layer's stored activations at every step."""
        source = self.of_model[model]
        return step_checksums(self.trees[source.url], source.model, source.recorded(layer))

    @property
    def urls(self) -> str:
        """The stores, as a text."""
        return ", ".join(self.trees)


def open_sources(urls: Sequence[str | os.PathLike[str]], settings: Settings) -> Sources:
    """Open stores of the same samples as one, with the names that the settings give to layers.

    Models of one name in several stores get the name of their store in front: ``a:seed0``. Samples that not all stores
    have are left out, and the notes say so.

    Raises
    ------
    AnalysisError
        Stores without common samples, or where samples of one id differ; or a layer that no model has.
    StoreError
        A store cannot be opened.
    """
    given = [_everywhere(url) for url in urls]
    if not given or len({os.path.realpath(url) if "://" not in url else url for url in given}) < len(given):
        raise AnalysisError(f"expected one or more stores, each once, found {', '.join(given) or 'none'}")
    trees = {url: stand_ins_by_layer(open_store(url)) for url in given}
    notes = [f"{what}: lost to damage" for tree in trees.values() for what in catalog.lost(tree)]
    for tree in trees.values():
        tree.dataset = tree.to_dataset().drop_vars(tree.attrs.get(LOST, ()), errors="ignore")
    shared = share_samples(trees) if len(trees) > 1 else SharedSamples({})
    rows = {url: places for url, places in shared.rows.items() if not _are_all(places, trees[url], url)}
    shown = _shown_names(trees)
    recorded = {name: _recorded(trees[url], model) for name, (url, model) in shown.items()}
    asked = [name for pattern in settings.models or shown for name in matching_models(pattern, shown)]
    chosen = [name for name in shown if name in asked]
    counts = [len(recorded[name]) for name in chosen] if settings.match == "depth" else ()
    names = LayerNames(settings.layers_by_model, counts)
    names.refuse_unused(shown)
    of_model = {
        name: Source(url, _fingerprint(trees[url]), model, names.of_model(name, recorded[name]), rows.get(url))
        for name, (url, model) in shown.items()
    }
    if len(trees) == 1 and not names.renames:
        return Sources(trees[given[0]], trees, of_model, tuple(notes))
    notes += shared.notes
    if names.counts:
        notes += [f"{BY_DEPTH}of {name}: in the order of {', '.join(recorded[name])}" for name in chosen]
        notes += _by_depth({name: of_model[name].layers or {} for name in chosen})
    return Sources(_view(trees, of_model, shared), trees, of_model, tuple(notes))


def _by_depth(layers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Say which layer of each model stands at a depth."""
    depths = dict.fromkeys(depth for names in layers.values() for depth in names)
    of_depth = {depth: [f"{names[depth]} of {model}" for model, names in layers.items()] for depth in depths}
    return [f"{depth} is {', '.join(some)}" for depth, some in of_depth.items()]


def _are_all(places: NDArray[np.int64], tree: xr.DataTree, url: str) -> bool:
    """Return whether rows are all samples of a store in its order, as those of operators and sketches have to be."""
    if np.array_equal(places, np.arange(tree.sizes[SAMPLE])):
        return True
    every = [(model, layer) for model in catalog.models(tree) for layer in catalog.layers(tree, model)]
    recorded = next((array for key in every if stands_in(array := catalog.activations(tree, *key))), None)
    if recorded is not None:
        what = "operators" if catalog.holds_operators(recorded) else "sketches"
        raise AnalysisError(
            f"store {url}: expected to analyse its {tree.sizes[SAMPLE]} samples in its order, of which its {what} "
            f"are, found {len(places)} that the stores share, or another order: give it first, or alone"
        )
    return False


def _recorded(tree: xr.DataTree, model: str) -> list[str]:
    """Return the layers of a model that hold activations, or what was computed of them alone."""
    arrays = {layer: catalog.activations(tree, model, layer) for layer in catalog.layers(tree, model)}
    return [layer for layer, array in arrays.items() if stands_in(array) or not catalog.holds_operators(array)]


def _fingerprint(tree: xr.DataTree) -> str:
    return str(tree.attrs[ATTRS]["fingerprint"])


def _shown_names(trees: Mapping[str, xr.DataTree]) -> dict[str, tuple[str, str]]:
    """Return store and recorded name of every model by a name that is its own."""
    found = [(url, model) for url, tree in trees.items() for model in catalog.models(tree)]
    counts: dict[str, int] = {}
    for _, model in found:
        counts[model] = counts.get(model, 0) + 1
    shown = {model if counts[model] == 1 else f"{_stem(url)}:{model}": (url, model) for url, model in found}
    if len(shown) < len(found):
        raise AnalysisError(
            f"expected stores of different names where models have the same, found {', '.join(trees)}: rename one"
        )
    return shown


def _stem(url: str) -> str:
    return Path(url.rstrip("/").rpartition("/")[2]).name.removesuffix(".zarr")


def _view(trees: Mapping[str, xr.DataTree], of_model: Mapping[str, Source], shared: SharedSamples) -> xr.DataTree:
    """Return one tree with the shared samples, every encoding of them, and the models under their shown names."""
    first = next(iter(trees))
    root = trees[first].to_dataset()
    attrs = {**root.attrs, ATTRS: {**root.attrs[ATTRS], "version": 2}}
    if shared.rows:
        root = root.isel({SAMPLE: shared.rows[first]})
        attrs[ATTRS]["fingerprint"] = shared.fingerprint
    groups: dict[str, xr.Dataset] = {"/": root.assign_attrs(attrs), PROBE: xr.Dataset(), MODELS: xr.Dataset()}
    for url, tree in trees.items():
        rows = shared.rows.get(url)
        for fingerprint, encoded in catalog.all_inputs(tree).items():
            some = encoded if rows is None else encoded.isel({SAMPLE: rows})
            some = some.assign_attrs({INPUTS_FINGERPRINT: fingerprint}).drop_vars(SAMPLE, errors="ignore")
            groups[f"{PROBE}/{inputs_key(fingerprint)}"] = some
    for shown, source in of_model.items():
        groups[f"{MODELS}/{encode_name(shown)}"] = _renamed(trees[source.url], shown, source)
    return xr.DataTree.from_dict(groups)


def _renamed(tree: xr.DataTree, shown: str, source: Source) -> xr.Dataset:
    """Return a model's layers by the names that the analysis gives them, in its order."""
    dataset = catalog.model_dataset(tree, source.model)
    layers = source.layers
    layers = {layer: layer for layer in catalog.layers(tree, source.model)} if layers is None else layers
    recorded = {name: catalog.activations(tree, source.model, layer) for name, layer in layers.items()}
    arrays = {
        encode_name(name): source.take_samples(array).assign_attrs({LAYER: name}) for name, array in recorded.items()
    }
    steps = {name: array for name, array in dataset.coords.items() if LAYER not in array.dims and name != CHECKSUM}
    steps.pop(SAMPLE, None)
    facts = {INPUTS_FINGERPRINT: source.fingerprint, **catalog.facts(tree, source.model), "name": shown}
    attrs = {**dataset.attrs, MODEL: shown, ATTRS: facts}
    bare = {key: array.drop_vars([name for name in array.coords if name not in steps]) for key, array in arrays.items()}
    return xr.Dataset(bare, coords={**steps, LAYER: np.array(list(layers), dtype=object)}, attrs=attrs)


def _everywhere(url: str | os.PathLike[str]) -> str:
    """Return the URL for other processes: a path becomes absolute."""
    text = os.fspath(url)
    return text if "://" in text or "::" in text else str(at_home(text).absolute())
