"""LoRA and other PEFT adapters: their base model, and the model with them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Final

from torch import nn

from repaudit.errors import PretrainedError

ADAPTER: Final = "adapter_config.json"


def base_of(folder: Path) -> str:
    """Return the path or hub id of the model that an adapter was trained on; a relative path may start at the adapter.

    Raises
    ------
    PretrainedError
        When the adapter does not say, or its base was a path at which nothing is.
    """
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise PretrainedError(f"{folder / ADAPTER}: is not a JSON object ({error})") from error
    if not base:
        raise PretrainedError(f"{folder}: its {ADAPTER} names no base model: pass the one it was trained on (--config)")
    places = [Path(base), folder / base]
    found = next((place for place in places if place.exists()), None)
    if found is None and (Path(base).is_absolute() or base.startswith(".")):
        raise PretrainedError(
            f"{folder}: its base model was at {base}, where nothing is now: pass where it is (--config)"
        )
    return str(base if found is None else found)


def with_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """Put an adapter onto its base model.

    Raises
    ------
    PretrainedError
        When peft is not installed, or the adapter does not fit the base.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise PretrainedError(f"{folder}: adapters need peft: pip install 'repaudit[peft]'") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            model: Any = PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PretrainedError(f"{folder}: does not fit {type(base).__name__}: {first[:300]}") from error
    return model.eval()  # type: ignore[no-any-return]
