"""Folders of sentence-transformers: where the transformer is in them, and how they pool its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from repaudit.capture.extract.layer_spec import Reduction
from repaudit.errors import PretrainedError

MODULES: Final = "modules.json"
_POOLINGS: Final[dict[str, Reduction]] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
_FLAG: Final = "pooling_mode_"


def transformer_folder(folder: Path) -> Path:
    """Return where the transformer of a sentence-transformers folder is: the folder itself, or one inside.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> modules = [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    >>> _ = (folder / "modules.json").write_text(json.dumps(modules))
    >>> transformer_folder(folder).name
    '0_Transformer'
    """
    return folder / _module(folder, "Transformer")


def own_pooling(folder: Path) -> Reduction:
    """Return how a sentence-transformers folder pools tokens.

    Raises
    ------
    PretrainedError
        When the folder is no such folder, or pools in a way that cannot be recorded.
    """
    if not (folder / MODULES).exists():
        raise PretrainedError(
            f"{folder}: has no pooling of its own, which models of sentence-transformers have ({MODULES}): pass mean, "
            "cls, last_token or all (--pooling)"
        )
    path = folder / _module(folder, "Pooling") / "config.json"
    options = _read(path)
    modes = [options["pooling_mode"]] if isinstance(options.get("pooling_mode"), str) else _set_flags(options)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise PretrainedError(
            f"{path}: expected one pooling of {', '.join(_POOLINGS)}, found {' and '.join(modes) or 'none'}: pass "
            "another one (--pooling)"
        )
    return _POOLINGS[modes[0]]


def _set_flags(options: dict[str, Any]) -> list[str]:
    names = [name for name, is_on in options.items() if name.startswith(_FLAG) and is_on is True]
    return [name.removeprefix(_FLAG).removesuffix("_token").removesuffix("_tokens") for name in names]


def _module(folder: Path, kind: str) -> str:
    modules = _read(folder / MODULES)
    found = [module for module in modules if str(module.get("type", "")).rsplit(".", 1)[-1] == kind]
    if not found:
        raise PretrainedError(f"{folder / MODULES}: expected a module of type {kind}, found none")
    return str(found[0].get("path", ""))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path}: cannot be read as JSON ({error})") from error
