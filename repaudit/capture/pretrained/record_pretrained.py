"""Recording models that are not in training: pretrained ones, and the checkpoints of finished runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

from repaudit.capture.extract.layer_spec import LayerSpec, Reduction
from repaudit.capture.isolate.isolation import shape_sum_norm
from repaudit.capture.pretrained.loading import Loaded, Loader
from repaudit.capture.pretrained.model_layers import layers_of_models
from repaudit.capture.pretrained.own_inputs import ProbeSource, own_probe_sets
from repaudit.capture.pretrained.preprocessing import check_main_input
from repaudit.capture.pretrained.sources import Source, find_sources, tell_of_hub
from repaudit.capture.pretrained.unset_weights import refuse_unset
from repaudit.capture.record.recorder import Recorder
from repaudit.errors import CaptureError, LayerPathError, PretrainedError, RepauditError
from repaudit.extras import require
from repaudit.names import ATTRS, SOURCE
from repaudit.store.format.documents import DOCUMENT, read_document
from repaudit.store.format.keys import model_key
from repaudit.store.storage.place import open_storage

Pooling = Reduction | Literal["own"]

_FAILED_FORWARD: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a model raises that does not understand its inputs."""


def record_pretrained(
    models: Sequence[str | PathLike[str]],
    probe_file: ProbeSource,
    layers: Sequence[LayerSpec | str],
    store: str | PathLike[str],
    *,
    revisions: Sequence[str] = (),
    names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    max_length: int = 64,
    store_texts: bool = True,
    tokenizer: Any = None,
    config: Any = None,
    pooling: Pooling = "mean",
    progress: Callable[[str, int, int], None] | None = None,
    **recorder_options: Any,
) -> dict[str, list[int]]:
    """Record pretrained models, or series of their checkpoints, into a store.

    Parameters
    ----------
    models
        Each a local folder (of transformers, of sentence-transformers, or of a PEFT adapter, which is put onto its base
        model), a hub id, a ``.gguf`` file, a Lightning checkpoint (``.ckpt``), or a folder of checkpoints (Hugging
        Face's ``checkpoint-N``, or Lightning's). A model is of the class that its config names, and a layer that
        depends on weights which its checkpoint does not hold is refused.
    probe_file
        A ``.txt``, ``.jsonl`` or ``.csv`` file, whose texts each model's own tokenizer reads and cuts to ``max_length``
        tokens; a probe set, which all models read as it is; or samples that
        :func:`repaudit.capture.pretrained.samples.read_images` or
        :func:`repaudit.capture.pretrained.dataset_files.read_dataset` read, which each model's own preprocessing makes
        inputs of. Images and sounds are known by these inputs: of models in one store they must be the same.
    layers
        Layer specs, or plain texts ``[MODEL:][NAME=]PATH``. A text with a model (its name in the store) is for that one
        alone; the others are for every model that has none of the same name: ``"penultimate=encoder.layer[-2]",
        "smol:penultimate=model.layers[-2]"``. Names that hold ``:``, ``=`` or ``,`` go in quotes.
    store
        Path or URL.
    revisions
        Revisions recorded of every model, in the order of their steps: the last number in each name (``step1000``).
    names
        Names in the store, one per model; by default the last part of the path or id.
    tokenizer
        Used for all models instead of the ones that come with them: a tokenizer, or a path or hub id.
    config
        For Lightning checkpoints, what their weights are loaded into: a config, a model, or a path or hub id, whose
        tokenizer is then used. For adapters, the path or hub id of their base model, if it is not where they say.
    pooling
        How tokens are pooled in layers given as texts: ``"mean"``, ``"last_token"``, ``"cls"``, ``"all"`` of them, or
        ``"own"``, as each model of sentence-transformers does itself.
    max_length
        Tokens kept of each text.
    store_texts
        Whether the store keeps the texts; else it keeps their SHA-256.
    trust_remote_code
        Whether a model may run code that comes with it.
    progress
        Called with ("models", done, total) after each; every checkpoint counts as one.
    recorder_options
        Further keywords of :class:`repaudit.Recorder`.

    Returns
    -------
    dict of str to list of int
        The steps in the record of each model; a single set of weights is step 0. What an earlier call recorded of the
        same weights is not recorded again.

    Raises
    ------
    MissingPartError
        When transformers is not installed.
    PretrainedError
        When a path or id holds no model, when checkpoints have no steps or the same ones, or when the store holds
        another model under a model's name.
    FingerprintError
        When the store is about other samples, or holds the model with other inputs.
    LayerPathError
        When a layer is meant for a model that is not recorded, or its path does not resolve.

    See Also
    --------
    repaudit.Recorder : Records a model in a training loop.
    repaudit.ProbeSet : The inputs.

    Examples
    --------
    >>> import tempfile, torch
    >>> import repaudit as ra
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> folder = Path(tempfile.mkdtemp(), "tiny")
    >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    >>> GPT2LMHeadModel(config).save_pretrained(folder)
    >>> probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
    >>> record_pretrained([folder], probe_set, ["transformer.h[*]"], "memory://pretrained.zarr")
    {'tiny': [0]}
    """
    require("recording pretrained models", "transformers")
    chosen = _names(models, names)
    layers_of_models(layers, chosen)  # what is wrong with them is said first
    series = {name: find_sources(model, revisions) for name, model in zip(chosen, models, strict=True)}
    tell_of_hub(models)
    loader = Loader(trust_remote_code, config, tokenizer)
    poolings = {name: loader.pooling(sources[0]) if pooling == "own" else pooling for name, sources in series.items()}
    layers_of = layers_of_models(layers, chosen, poolings)
    probe_sets = own_probe_sets(probe_file, series, loader, max_length, store_texts)
    options: dict[str, Any] = {"batch_size": 32, "on_store_error": "raise"} | recorder_options
    recorded: dict[str, list[int]] = {}
    count, total = 0, sum(map(len, series.values()))
    for name, sources in series.items():
        recorder = Recorder(store, name, probe_sets[name], layers_of[name], **options)
        with _telling_of(recorded), recorder:
            for source in sources:
                with _advising(name, several=len(series) > 1):
                    _record(recorder, source, sources, loader, options.get("storage_options"))
                count += 1
                if progress is not None:
                    progress("models", count, total)
        recorded[name] = recorder.steps
    return recorded


@contextmanager
def _telling_of(recorded: Mapping[str, Any]) -> Iterator[None]:
    """Note with an error which models are in the store already."""
    try:
        yield
    except RepauditError as error:
        if recorded:
            error.add_note(f"recorded already: {', '.join(recorded)}; running again goes on behind them")
        raise


@contextmanager
def _advising(name: str, *, several: bool) -> Iterator[None]:
    """Say with a layer that one of several models lacks how each of them has layers of its own."""
    try:
        yield
    except LayerPathError as error:
        if not several:
            raise
        own = f"layers of one model alone have its name in front, such as '{name}:PATH'"
        raise LayerPathError(f"{error}; {own}") from error


def _record(
    recorder: Recorder,
    source: Source,
    sources: Sequence[Source],
    loader: Loader,
    storage_options: Mapping[str, Any] | None,
) -> None:
    """Record one of a model's sets of weights, unless the store has another model of its name."""
    loaded = loader.load(source)
    if source is sources[0]:
        recorder.model_attrs[SOURCE] = _identity(source, loaded)
        _refuse_another(recorder, storage_options)
    check_main_input(source.place, loaded.model, recorder.probe_set)
    with _naming(recorder, loaded):
        _refuse_unset(source, loaded, recorder)
        if source is sources[0]:
            recorder.open(loaded.model)
            recorder.cost.told = True  # by what is returned, of all models together
        if not recorder.has(source.step):
            recorder.audit(loaded.model, source.step)


@contextmanager
def _naming(recorder: Recorder, loaded: Loaded) -> Iterator[None]:
    """Say which of several models has no such layer, or does not understand its inputs, in one line."""
    model = recorder.model_name
    try:
        yield
    except (LayerPathError, CaptureError) as error:
        raise type(error)(f"model {model!r}: {error}") from error
    except RepauditError:
        raise
    except _FAILED_FORWARD as error:
        first = next(iter(str(error).strip().splitlines()), "")
        inputs = ", ".join(recorder.probe_set.inputs)
        raise PretrainedError(
            f"model {model!r}: {type(loaded.model).__name__} cannot be forwarded with {inputs} "
            f"({type(error).__name__}: {first}): pass samples that it reads, or save the part of it that reads these "
            "(such as CLIPTextModel) and record that"
        ) from error


def _identity(source: Source, loaded: Loaded) -> dict[str, Any]:
    """Return what distinguishes a model from others of its name: its first weights, and their origin."""
    unset = {id(tensor) for tensor in loaded.unset.values()}
    values = {
        name: shape_sum_norm(parameter)
        for name, parameter in loaded.model.named_parameters()
        if id(parameter) not in unset
    }
    weights = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return {"place": source.place, "revision": source.revision, "step": source.step, "weights": weights}


def _refuse_unset(source: Source, loaded: Loaded, recorder: Recorder) -> None:
    refuse_unset(source.place, loaded.model, loaded.unset, recorder.auditor.extractor.layer_specs, recorder.probe_set)


def _refuse_another(recorder: Recorder, storage_options: Mapping[str, Any] | None) -> None:
    name, source = recorder.model_name, recorder.model_attrs[SOURCE]
    document = read_document(open_storage(recorder.store, storage_options), f"{model_key(name)}/{DOCUMENT}")
    attributes = {} if document is None else document["attributes"].get(ATTRS, {})
    if not attributes.get("committed") or recorder.if_exists != "resume":
        return
    known = attributes.get(SOURCE)
    if known is None or known["weights"] != source["weights"]:
        other = "a model recorded in its training" if known is None else f"{_where(known)}, other weights"
        raise PretrainedError(
            f"{recorder.store} holds under the name {name!r} {other} than {_where(source)}: expected the same model, "
            "or an unused name; pass another one (--name)"
        )


def _where(source: Mapping[str, Any]) -> str:
    revision = f" at revision {source['revision']}" if source["revision"] else ""
    return f"{source['place']}{revision} (step {source['step']})"


def _names(models: Sequence[str | PathLike[str]], names: Sequence[str] | None) -> list[str]:
    chosen = list(names) if names else [_name_of(model) for model in models]
    if len(chosen) != len(models) or len(set(chosen)) != len(chosen) or not chosen:
        raise PretrainedError(f"expected one name per model, each once, found {chosen} for {len(models)} models")
    return chosen


def _name_of(model: str | PathLike[str]) -> str:
    return Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else str(model).rsplit("/", 1)[-1]
