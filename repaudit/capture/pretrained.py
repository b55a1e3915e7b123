"""Recording models that are not in training: pretrained ones, and the checkpoints of finished runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from torch import nn

from repaudit.capture.layers import LayerSpec
from repaudit.capture.probe import ATTENTION_MASK, ProbeSet
from repaudit.capture.probe_files import read_probe_file
from repaudit.capture.recorder import Recorder
from repaudit.errors import PretrainedError

_NUMBER: Final = re.compile(r"(\d+)(?!.*\d)")
_STEP: Final = re.compile(r"step[=_\-]?(\d+)")
_PREFIX: Final = "network."


@dataclass(frozen=True)
class Source:
    """One set of weights: where it is, which revision or file of it, and the step it stands for."""

    place: str
    step: int
    revision: str | None = None
    file: Path | None = None


def record_pretrained(
    models: Sequence[str | PathLike[str]],
    probe_file: str | PathLike[str] | ProbeSet,
    layers: Sequence[LayerSpec | str],
    store: str | PathLike[str],
    *,
    revisions: Sequence[str] = (),
    names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    max_length: int = 64,
    batch_size: int = 32,
    tokenizer: Any = None,
    config: Any = None,
    **recorder_options: Any,
) -> dict[str, list[int]]:
    """Record pretrained models, or series of their checkpoints, into a store.

    Parameters
    ----------
    models
        Each a local folder, a hub id, a ``.gguf`` file, or a folder of checkpoints (Hugging Face's ``checkpoint-N``
        or Lightning's ``*.ckpt``, whose weights go into a model of ``config``).
    probe_file
        A ``.txt``, ``.jsonl`` or ``.csv`` file, or a probe set. All models of a store share one; texts are cut to
        ``max_length`` tokens by the models' own tokenizer, which must be one and the same.
    layers
        Layer specs.
    store
        Path or URL.
    revisions
        Revisions recorded of every model, in the order of their steps: the last number in each name (``step1000``).
    names
        Names in the store, one a model; by default the last part of the place.
    tokenizer
        Used for all models, and taken for theirs, in place of the ones that come with them.
    trust_remote_code
        Whether a model may run code that comes with it.
    recorder_options
        Further keywords of :class:`repaudit.Recorder`.

    Returns
    -------
    dict of str to list of int
        The steps recorded of each model; a single set of weights is step 0.

    Raises
    ------
    PretrainedError
        When a place holds no model, when checkpoints have no or the same steps, or when the models' own tokenizers
        make different tokens of the texts.
    """
    chosen = _names(models, names)
    series = {name: find_sources(model, revisions) for name, model in zip(chosen, models, strict=True)}
    if isinstance(probe_file, ProbeSet):
        probe_set = probe_file
    elif tokenizer is not None:
        probe_set = _probe_set(probe_file, tokenizer, max_length)
    else:
        firsts = {name: sources[0] for name, sources in series.items()}
        own = {name: _tokenizer(source, trust_remote_code) for name, source in firsts.items()}
        probe_set = _shared_probe_set(probe_file, own, max_length)
    recorded = {}
    for name, sources in series.items():
        recorder = Recorder(
            store, name, probe_set, layers, batch_size=batch_size, on_store_error="raise", **recorder_options
        )
        with recorder:
            for source in sources:
                recorder.audit(load_model(source, trust_remote_code=trust_remote_code, config=config), source.step)
        recorded[name] = recorder.steps
    return recorded


def find_sources(place: str | PathLike[str], revisions: Sequence[str] = ()) -> list[Source]:
    """Find the sets of weights that a place holds, by increasing step."""
    path = Path(place)
    if revisions and path.exists():
        raise PretrainedError(
            f"{place}: a local place has one set of weights and no revisions, found {', '.join(revisions)}: leave "
            "them out, or pass a hub id"
        )
    if revisions:
        found = [Source(str(place), _number(revision), revision=revision) for revision in revisions]
    elif path.is_file():
        found = [Source(str(path), 0, file=path)]
    elif path.is_dir() and not (path / "config.json").exists():
        found = list(_checkpoints(path))
    else:
        found = [Source(str(place), 0)]
    steps = [source.step for source in found]
    if len(set(steps)) != len(steps):
        raise PretrainedError(f"{place}: two checkpoints have one step, found the steps {sorted(steps)}")
    return sorted(found, key=lambda source: source.step)


def _checkpoints(folder: Path) -> Iterator[Source]:
    places = [path for path in sorted(folder.iterdir()) if path.suffix == ".ckpt" or (path / "config.json").exists()]
    if not places:
        raise PretrainedError(
            f"{folder}: expected a model (config.json) or checkpoints (folders such as checkpoint-500, or *.ckpt), "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
        )
    for path in places:
        if path.name != "last.ckpt":
            yield Source(str(path), _number(path.stem), file=path if path.is_file() else None)


def _number(text: str) -> int:
    found = _STEP.search(text) or _NUMBER.search(text)
    if found is None:
        raise PretrainedError(f"{text!r}: expected a name that tells the step, such as step1000 or checkpoint-500")
    return int(found[1])


def load_model(source: Source, *, trust_remote_code: bool = False, config: Any = None) -> nn.Module:
    """Load one set of weights, in the dtype it is stored in, ready to be forwarded."""
    from transformers import AutoModel, AutoModelForCausalLM

    if source.file is not None and source.file.suffix == ".ckpt":
        return _from_lightning(source.file, config)
    known = _load_config(source, trust_remote_code)
    architectures = getattr(known, "architectures", None) or []
    is_gguf = source.file is not None  # the format of language models, which names no class
    causal = is_gguf or any("CausalLM" in name or "LMHead" in name for name in architectures)
    loaded: nn.Module = _load(AutoModelForCausalLM if causal else AutoModel, source, trust_remote_code, dtype="auto")
    return loaded.eval()


def _load_config(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    return _load(AutoConfig, source, trust_remote_code)


def _load(auto: Any, source: Source, trust_remote_code: bool, **options: Any) -> Any:
    where = {"revision": source.revision} if source.revision else {}
    place: str | Path = source.place
    if source.file is not None:
        place, where = source.file.parent, {"gguf_file": source.file.name}
    try:
        return auto.from_pretrained(place, trust_remote_code=trust_remote_code, **where, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = (
            "" if trust_remote_code or "trust_remote_code" not in str(error) else " (pass --trust-remote-code to allow)"
        )
        at = f" at revision {source.revision}" if source.revision else ""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PretrainedError(f"{source.place}{at}: cannot be loaded{hint}: {lines[0]}") from error


def _from_lightning(path: Path, config: Any) -> nn.Module:
    """Put the weights of a Lightning checkpoint into a model; only tensors and plain values are unpickled."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if config is None:
        raise PretrainedError(f"{path}: a Lightning checkpoint holds weights alone: pass the model's config")
    if isinstance(config, str | PathLike):
        config = AutoConfig.from_pretrained(config)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    if all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    model: nn.Module = config if isinstance(config, nn.Module) else AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise PretrainedError(f"{path}: its weights do not fit {type(model).__name__}: {error}") from error
    return model.eval()


def _names(models: Sequence[str | PathLike[str]], names: Sequence[str] | None) -> list[str]:
    chosen = list(names) if names else [_name_of(model) for model in models]
    if len(chosen) != len(models) or len(set(chosen)) != len(chosen) or not chosen:
        raise PretrainedError(f"expected one name a model, each once, found {chosen} for {len(models)} models")
    return chosen


def _name_of(model: str | PathLike[str]) -> str:
    return Path(model).resolve().name.removesuffix(".gguf") if Path(model).exists() else str(model).rsplit("/", 1)[-1]


def _tokenizer(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, source, trust_remote_code)


def _shared_probe_set(path: str | PathLike[str], tokenizers: Mapping[str, Any], max_length: int) -> ProbeSet:
    """The probe set of models whose own tokenizers agree on it; padding, which is masked, may differ."""
    first, *others = tokenizers
    probe_set = _probe_set(path, tokenizers[first], max_length)
    expected = _tokens(probe_set)
    for name in others:
        for i, (ids, found) in enumerate(
            zip(expected, _tokens(_probe_set(path, tokenizers[name], max_length)), strict=True)
        ):
            if ids != found:
                raise PretrainedError(
                    f"models {first!r} and {name!r} tokenize differently: of sample {probe_set.ids[i]!r} {first!r} "
                    f"makes {_brief(ids)}, {name!r} {_brief(found)}. A store has one probe set: record {name!r} "
                    "into a store of its own"
                )
    return probe_set


def _tokens(probe_set: ProbeSet) -> list[list[int]]:
    """The token ids of each sample, without padding."""
    rows = zip(probe_set.inputs["input_ids"], probe_set.inputs[ATTENTION_MASK], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def _brief(ids: list[int], most: int = 6) -> str:
    return f"{len(ids)} tokens ({', '.join(map(str, ids[:most]))}{', ...' if len(ids) > most else ''})"


def _probe_set(path: str | PathLike[str], tokenizer: Any, max_length: int) -> ProbeSet:
    texts, labels, ids = read_probe_file(path)
    return ProbeSet.from_texts(texts, tokenizer, max_length=max_length, ids=ids, labels=labels)
