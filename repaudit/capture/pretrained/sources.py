"""Sets of weights that are not in training: the places that hold them, and the steps they stand for."""

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
        found = [Source(str(path), _checkpoint_step(path) if _is_lightning(path) else 0, file=path)]
    elif path.is_dir() and (not _is_model(path) or any(path.glob("checkpoint-*/config.json"))):
        found = list(_checkpoints(path))
    else:
        found = [Source(str(place), 0)]
    steps = [source.step for source in found]
    if len(set(steps)) != len(steps):
        raise PretrainedError(f"{place}: two checkpoints have one step, found the steps {sorted(steps)}")
    return sorted(found, key=lambda source: source.step)


def _checkpoints(folder: Path) -> Iterator[Source]:
    """The checkpoints in a folder, and the model in the folder itself where its trainer left the step with it."""
    places = [path for path in sorted(folder.iterdir()) if _is_lightning(path) or _is_model(path)]
    if not places:
        raise PretrainedError(
            f"{folder}: expected a model (config.json) or checkpoints (folders such as checkpoint-500, or *.ckpt), "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
        )
    found = [
        Source(str(path), _checkpoint_step(path), file=path if path.is_file() else None)
        for path in places
        if path.name != _LAST or len(places) == 1
    ]
    yield from found
    if _is_model(folder) and (folder / _TRAINER_STATE).exists():
        step = int(json.loads((folder / _TRAINER_STATE).read_text(encoding="utf-8"))["global_step"])
        if step not in {source.step for source in found}:
            yield Source(str(folder), step)


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists()


def _is_lightning(path: Path) -> bool:
    return path.suffix == ".ckpt"


def _checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name, or in a Lightning checkpoint itself where its name tells none."""
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
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes the unpickler raise
        raise PretrainedError(
            f"{path}: expected a Lightning checkpoint of tensors and plain values, and it cannot be read as one "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): save one with "
            "save_weights_only=True, whose hyperparameters are plain values"
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        held = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else type(found).__name__
        raise PretrainedError(f"{path}: expected a Lightning checkpoint with a 'state_dict', found {held}")
    return found


def _number(text: str) -> int:
    found = _STEP.search(text) or _NUMBER.search(text)
    if found is None:
        raise PretrainedError(f"{text!r}: expected a name that tells the step, such as step1000 or checkpoint-500")
    return int(found[1])
