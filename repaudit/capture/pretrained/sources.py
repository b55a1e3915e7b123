"""Sets of weights that are not in training: where they are, and the steps they stand for."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from repaudit.errors import PretrainedError

_NUMBER: Final = re.compile(r"(\d+)(?!.*\d)")
_STEP: Final = re.compile(r"step[=_\-]?(\d+)")
_LAST: Final = "last.ckpt"
_TRAINER_STATE: Final = "trainer_state.json"


@dataclass(frozen=True)
class Source:
    """One set of weights: where it is, which revision or file of it, and the step it stands for."""

    place: str
    step: int
    revision: str | None = None
    file: Path | None = None

    @property
    def is_lightning(self) -> bool:
        """Whether these are the weights of a Lightning checkpoint."""
        return _is_lightning(Path(self.place))


def find_sources(place: str | PathLike[str], revisions: Sequence[str] = ()) -> list[Source]:
    """Find the sets of weights that a path or hub id holds, by increasing step.

    Raises
    ------
    PretrainedError
        When there are no checkpoints, when two have the same step, or when a local path is given revisions.

    Examples
    --------
    >>> [source.step for source in find_sources("user/model", revisions=["step1000", "step200"])]
    [200, 1000]
    """
    path = Path(place)
    if revisions and path.exists():
        raise PretrainedError(
            f"{place}: a local path has one set of weights and no revisions, found {', '.join(revisions)}: leave "
            "them out, or pass a hub id"
        )
    if revisions:
        sources = [Source(str(place), _number(revision), revision=revision) for revision in revisions]
    elif path.is_file():
        sources = [Source(str(path), _checkpoint_step(path) if _is_lightning(path) else 0, file=path)]
    elif path.is_dir() and (not _is_model(path) or any(path.glob("checkpoint-*/config.json"))):
        sources = list(_checkpoints(path))
    else:
        sources = [Source(str(place), 0)]
    steps = [source.step for source in sources]
    if len(set(steps)) != len(steps):
        raise PretrainedError(f"{place}: two checkpoints have the same step, found the steps {sorted(steps)}")
    return sorted(sources, key=lambda source: source.step)


def _checkpoints(folder: Path) -> Iterator[Source]:
    """Yield the checkpoints in a folder, and the model in the folder itself if its trainer saved the step."""
    paths = [path for path in sorted(folder.iterdir()) if _is_lightning(path) or _is_model(path)]
    if not paths:
        raise PretrainedError(
            f"{folder}: expected a model (config.json) or checkpoints (folders such as checkpoint-500, or *.ckpt), "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
        )
    sources = [
        Source(str(path), _checkpoint_step(path), file=path if path.is_file() else None)
        for path in paths
        if path.name != _LAST or len(paths) == 1
    ]
    yield from sources
    if _is_model(folder) and (folder / _TRAINER_STATE).exists():
        step = int(json.loads((folder / _TRAINER_STATE).read_text(encoding="utf-8"))["global_step"])
        if step not in {source.step for source in sources}:
            yield Source(str(folder), step)


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists()


def _is_lightning(path: Path) -> bool:
    return path.suffix == ".ckpt"


def _checkpoint_step(path: Path) -> int:
    """Return the step in a checkpoint's name, or else the one inside a Lightning checkpoint."""
    if not _is_lightning(path) or _STEP.search(path.stem):
        return _number(path.stem)
    step = read_lightning(path).get("global_step")
    return _number(path.stem) if step is None else int(step)


def read_lightning(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint; only tensors and plain values are unpickled.

    Raises
    ------
    PretrainedError
        When it is damaged, something else, or holds other objects.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes the unpickler raise
        raise PretrainedError(
            f"{path}: expected a Lightning checkpoint of tensors and plain values, but it cannot be read as one "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): save one with "
            "save_weights_only=True, whose hyperparameters are plain values"
        ) from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        held = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, dict) else type(loaded).__name__
        raise PretrainedError(f"{path}: expected a Lightning checkpoint with a 'state_dict', found {held}")
    return loaded


def _number(text: str) -> int:
    match = _STEP.search(text) or _NUMBER.search(text)
    if match is None:
        raise PretrainedError(f"{text!r}: expected a name with the step, such as step1000 or checkpoint-500")
    return int(match[1])
