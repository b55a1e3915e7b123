"""Loading models and tokenizers: Hugging Face folders and ids, GGUF files, adapters, Lightning checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn

from repaudit.capture.extract.layer_spec import Reduction
from repaudit.capture.pretrained.adapters import base_class, base_of, n_labels, still_unset, with_adapter
from repaudit.capture.pretrained.architectures import build, load_fitting, model_classes, quiet
from repaudit.capture.pretrained.lightning_checkpoint import load_state, read_lightning
from repaudit.capture.pretrained.samples import Kind
from repaudit.capture.pretrained.sentence_embedding import own_pooling
from repaudit.capture.pretrained.sources import Source, check_exists, like
from repaudit.errors import PretrainedError
from repaudit.extras import require

_READERS: Final = frozenset({"AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"})


@dataclass(frozen=True)
class Loaded:
    """A model, and those of its tensors that were not among the weights it was loaded from, by name."""

    model: nn.Module
    unset: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loader:
    """Whose code may run, and what replaces what checkpoints lack.

    Parameters
    ----------
    trust_remote_code
        Whether a model may run code that comes with it.
    config
        What a Lightning checkpoint's weights are loaded into: a config, a model, or a path or hub id of a config. For
        an adapter, the model that it was trained on, in place of the one that it names: a path or hub id.
    stand_in
        A tokenizer, or a path or hub id of one, instead of those of the models.
    """

    trust_remote_code: bool = False
    config: Any = None
    stand_in: Any = None

    def load(self, source: Source) -> Loaded:
        """Load one set of weights, in the dtype it is stored in, ready to be forwarded.

        The class is the one that the config names; where the weights lack some of it, the bare model if that lacks
        fewer (a sentence encoder whose config still names a masked language model).

        Raises
        ------
        PretrainedError
            When the path or id does not hold such a model, or its code would have to run.
        """
        if source.adapter is not None:
            return self._with_adapter(source, source.adapter)
        with quiet():
            return Loaded(self._from_lightning(source)) if source.is_lightning else self._from_pretrained(source)

    def _from_pretrained(self, source: Source, model_class: Any = None, **more: Any) -> Loaded:
        from transformers import AutoConfig

        classes = model_classes(self._load(AutoConfig, source)) if model_class is None else [model_class]
        options = {"dtype": "auto", "output_loading_info": True, **_dequantized(source), **more}
        model, unset = load_fitting(classes, partial(self._load, source=source, **options))
        return Loaded(model.eval(), unset)

    def _with_adapter(self, source: Source, folder: Path) -> Loaded:
        labels = n_labels(folder)
        more = {} if labels is None else {"num_labels": labels}
        with quiet():
            base = self._from_pretrained(self._base(source, folder), base_class(folder), **more)
            model = with_adapter(base.model, folder)
        return Loaded(model, still_unset(model, base.unset))

    def tokenizer(self, source: Source) -> Any:
        """Return the tokenizer of a set of weights: the one passed, its own, or that of the config or base.

        Raises
        ------
        PretrainedError
            When there is none.
        """
        found = self._processor("AutoTokenizer", source, "tokenizer")
        if _knows_nothing(found):  # as transformers makes one for a folder without any
            raise PretrainedError(
                f"{source.place}: expected a tokenizer beside the model, found none: pass the path or id of its own "
                "(--tokenizer)"
            )
        return found

    def preprocessor(self, source: Source, kind: Kind) -> Any:
        """Return what makes a model's inputs of images or sounds: the one passed, its own, or that of the config."""
        auto = "AutoImageProcessor" if kind == "image" else "AutoFeatureExtractor"
        with quiet():
            return self._processor(auto, source, "preprocessor")

    def pooling(self, source: Source) -> Reduction:
        """Return how a model of sentence-transformers pools tokens.

        Raises
        ------
        PretrainedError
            When it is none, or its pooling cannot be recorded.
        """
        return own_pooling(Path(source.place))

    def _processor(self, auto: str, source: Source, what: str) -> Any:
        import transformers

        if self.stand_in is not None and not isinstance(self.stand_in, str | PathLike):
            return self.stand_in
        origin = self.config if self.stand_in is None and source.is_lightning else self.stand_in
        if isinstance(origin, str | PathLike):
            source = Source(str(origin), 0)
        elif source.is_lightning:
            raise PretrainedError(
                f"{source.place}: a Lightning checkpoint holds no {what}: pass the one of its model "
                "(--tokenizer), or the path or id of a config with one (--config)"
            )
        elif source.adapter is not None and not any(source.adapter.glob(f"{what}*.json")):
            source = self._base(source, source.adapter)
        return self._load(getattr(transformers, auto), source)

    def _base(self, source: Source, adapter: Path) -> Source:
        if isinstance(self.config, str | PathLike):
            return Source(str(self.config), source.step)
        return Source(base_of(adapter), source.step)

    def _from_lightning(self, source: Source) -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = self.config
        if config is None:
            raise PretrainedError(f"{source.place}: a Lightning checkpoint holds only weights: pass the model's config")
        if isinstance(config, str | PathLike):
            config = self._load(AutoConfig, Source(str(config), 0))
        path = Path(source.place)
        state = read_lightning(path)["state_dict"]
        if isinstance(config, nn.Module):
            return load_state(path, state, [lambda: config]).eval()
        classes = model_classes(config)
        if type(config) in AutoModelForCausalLM._model_mapping:
            classes.insert(1, AutoModelForCausalLM)
        return load_state(path, state, [partial(build, found, config) for found in classes]).eval()

    def _load(self, auto: Any, source: Source, **options: Any) -> Any:
        check_exists(source.place)
        where = {"revision": source.revision} if source.revision else {}
        path: str | Path = source.folder
        if source.file is not None:
            path, where = source.file.parent, {"gguf_file": source.file.name}
        try:
            return auto.from_pretrained(path, trust_remote_code=self.trust_remote_code, **where, **options)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            lacks = "; pass the path or id of one (--tokenizer)" if auto.__name__ in _READERS else ""
            if not Path(source.place).exists():
                lacks = f"; nothing here is called {source.place}{like(Path(source.place))}"
            asks = "trust_remote_code" in str(error) and not self.trust_remote_code
            hint = " (pass --trust-remote-code to allow)" if asks else ""
            at = f" at revision {source.revision}" if source.revision else ""
            if isinstance(error, ImportError) and source.file is not None:
                require(f"{source.place}: a packed model", "gguf", "accelerate")
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PretrainedError(
                f"{source.place}{at}: cannot be loaded{hint}: {lines[0].rstrip('.')}{lacks}"
            ) from error


def _knows_nothing(tokenizer: Any) -> bool:
    special = getattr(tokenizer, "all_special_tokens", None)
    return special is not None and hasattr(tokenizer, "__len__") and len(tokenizer) <= len(special)


def _dequantized(source: Source) -> dict[str, Any]:
    """Return what makes a GGUF file's weights plain ones; before GgufConfig existed they always were."""
    import transformers

    if source.file is None or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}
