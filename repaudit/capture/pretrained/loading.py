"""Loading models and tokenizers: Hugging Face folders and ids, GGUF files, Lightning checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from torch import nn

from repaudit.capture.pretrained.sources import Source, read_lightning
from repaudit.errors import PretrainedError

_PREFIX: Final = "network."


@dataclass(frozen=True)
class Loader:
    """Whose code may run, and what replaces what checkpoints lack.

    Parameters
    ----------
    trust_remote_code
        Whether a model may run code that comes with it.
    config
        What a Lightning checkpoint's weights are loaded into: a config, a model, or a path or hub id of a config.
    stand_in
        A tokenizer, or a path or hub id of one, instead of those of the models.
    """

    trust_remote_code: bool = False
    config: Any = None
    stand_in: Any = None

    def model(self, source: Source) -> nn.Module:
        """Load one set of weights, in the dtype it is stored in, ready to be forwarded.

        Raises
        ------
        PretrainedError
            When the path or id does not hold such a model, or its code would have to run.
        """
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        if source.is_lightning:
            return self._from_lightning(source)
        architectures = getattr(self._load(AutoConfig, source), "architectures", None) or []
        is_gguf = source.file is not None  # the format of language models, which names no class
        causal = is_gguf or any("CausalLM" in name or "LMHead" in name for name in architectures)
        loaded: nn.Module = self._load(AutoModelForCausalLM if causal else AutoModel, source, dtype="auto")
        return loaded.eval()

    def tokenizer(self, source: Source) -> Any:
        """Return the tokenizer of a set of weights: the one passed, its own, or that of the config."""
        from transformers import AutoTokenizer

        origin = self.config if self.stand_in is None and source.is_lightning else self.stand_in
        if isinstance(origin, str | PathLike):
            return self._load(AutoTokenizer, Source(str(origin), 0))
        if self.stand_in is not None:
            return self.stand_in
        if source.is_lightning:
            raise PretrainedError(
                f"{source.place}: a Lightning checkpoint holds no tokenizer: pass the one of its model "
                "(--tokenizer), or the path or id of a config with one (--config)"
            )
        return self._load(AutoTokenizer, source)

    def _from_lightning(self, source: Source) -> nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = self.config
        if config is None:
            raise PretrainedError(f"{source.place}: a Lightning checkpoint holds only weights: pass the model's config")
        if isinstance(config, str | PathLike):
            config = self._load(AutoConfig, Source(str(config), 0))
        state = read_lightning(Path(source.place))["state_dict"]
        if all(name.startswith(_PREFIX) for name in state):
            state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
        model: nn.Module = config if isinstance(config, nn.Module) else AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise PretrainedError(f"{source.place}: its weights do not fit {type(model).__name__}: {error}") from error
        return model.eval()

    def _load(self, auto: Any, source: Source, **options: Any) -> Any:
        where = {"revision": source.revision} if source.revision else {}
        path: str | Path = source.place
        if source.file is not None:
            path, where = source.file.parent, {"gguf_file": source.file.name}
        try:
            return auto.from_pretrained(path, trust_remote_code=self.trust_remote_code, **where, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            asks = "trust_remote_code" in str(error) and not self.trust_remote_code
            hint = " (pass --trust-remote-code to allow)" if asks else ""
            at = f" at revision {source.revision}" if source.revision else ""
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PretrainedError(f"{source.place}{at}: cannot be loaded{hint}: {lines[0]}") from error
