"""Sets of weights that are not in training: where they are, and the steps they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from repaudit.capture.pretrained.adapters import ADAPTER
from repaudit.capture.pretrained.lightning_checkpoint import read_lightning
from repaudit.capture.pretrained.sentence_embedding import MODULES, transformer_folder
from repaudit.capture.record.cost import say
from repaudit.errors import PretrainedError
from repaudit.names import beside

_NUMBER: Final = re.compile(r"(\d+)(?!.*\d)")
_CHECKPOINT: Final = re.compile(r"checkpoint|step")
_STEP: Final = re.compile(r"step[=_\-]?(\d+)")
_LAST: Final = "last.ckpt"
_FILES: Final = frozenset({".ckpt", ".gguf"})
_OF_SEVERAL: Final = (
    ": a folder of several models is taken for the checkpoints of one, so pass each model by its own folder"
)
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

    @property
    def adapter(self) -> Path | None:
        """The folder, where it holds an adapter for another model."""
        folder = Path(self.place)
        return folder if (folder / ADAPTER).exists() else None

    @property
    def folder(self) -> str:
        """Where the model's config is: the place, or the transformer inside a sentence-transformers folder."""
        folder = Path(self.place)
        inside = (folder / MODULES).exists() and not (folder / "config.json").exists()
        return str(transformer_folder(folder)) if inside else self.place


def find_sources(place: str | PathLike[str], revisions: Sequence[str] = ()) -> list[Source]:
    """Find the sets of weights that a path or hub id holds, by increasing step.

    Raises
    ------
    PretrainedError
        When a local path does not exist, is a file of another kind, or is given revisions; when there are no
        checkpoints, or two have the same step.

    Examples
    --------
    >>> [source.step for source in find_sources("user/model", revisions=["step1000", "step200"])]
    [200, 1000]
    """
    path = Path(place)
    check_exists(place)
    if revisions and path.exists():
        raise PretrainedError(
            f"{place}: a local path has one set of weights and no revisions, found {', '.join(revisions)}: leave "
            "them out, or pass a hub id"
        )
    if revisions:
        sources = [Source(str(place), _number(revision), revision=revision) for revision in revisions]
    elif path.is_file():
        _check_kind(path)
        sources = [Source(str(path), _checkpoint_step(path) if _is_lightning(path) else 0, file=path)]
    elif path.is_dir() and (not _is_model(path) or any(_is_model(part) for part in path.glob("checkpoint-*"))):
        sources = list(_checkpoints(path))
    else:
        sources = [Source(str(place), 0)]
    steps = [source.step for source in sources]
    if len(set(steps)) != len(steps):
        raise PretrainedError(f"{place}: two checkpoints have the same step, found the steps {sorted(steps)}")
    return sorted(sources, key=lambda source: source.step)


def check_exists(place: str | PathLike[str]) -> None:
    """Refuse what can only be a local path, not a hub id, and does not exist.

    Raises
    ------
    PretrainedError
        Naming the path.

    Examples
    --------
    >>> check_exists("user/model")
    """
    path = Path(place)
    text = str(place)
    is_local = path.is_absolute() or text.startswith((".", "~")) or text.endswith("/") or len(path.parts) > 2
    if (is_local or path.suffix in _FILES) and not path.exists():
        parent = next((part for part in path.parents if part.exists()), Path())
        raise PretrainedError(
            f"{place}: expected a folder, a file or a hub id (name or user/name), found nothing there; what exists is "
            f"{parent.resolve()}"
        )


def tell_of_hub(places: Iterable[str | PathLike[str]]) -> None:
    """Say which places are not here, and are asked for at the hub: where it cannot be reached, that takes long."""
    absent = [f"{place}{like(Path(place))}" for place in places if not Path(place).exists()]
    if absent:
        say(f"repaudit: nothing here is called {', '.join(absent)}: looking for it at the Hugging Face hub")


def like(path: Path) -> str:
    """Return what of a similar name is there, as a question; empty where there is nothing."""
    found = beside(path)
    return f" (did you mean {path.parent / found}?)" if found else ""


def _check_kind(path: Path) -> None:
    if path.suffix == ".ckpt":
        return
    with path.open("rb") as file:
        begins = file.read(4)
    if begins != b"GGUF" and path.suffix in _FILES:
        raise PretrainedError(f"{path}: expected a .gguf file, which begins with b'GGUF', found {begins!r}")
    if begins != b"GGUF":
        raise PretrainedError(
            f"{path}: expected a .gguf file, a Lightning checkpoint (.ckpt) or the folder of a model, found a file of "
            "another kind (weights alone, TorchScript): save the model by save_pretrained(folder)"
        )


def _checkpoints(folder: Path) -> Iterator[Source]:
    """Yield the checkpoints in a folder, and the model in the folder itself if its trainer saved the step."""
    paths = [path for path in sorted(folder.iterdir()) if _is_lightning(path) or _is_model(path)]
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) == 1 and not paths:
        yield Source(str(packed[0]), 0, file=packed[0])
        return
    if not paths:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise PretrainedError(
            f"{folder}: expected a model (config.json), an adapter ({ADAPTER}), one .gguf file, or checkpoints "
            f"(folders such as checkpoint-500, or *.ckpt), found {held or 'nothing'}"
        )
    if len(paths) == 1 and paths[0].is_dir() and not _CHECKPOINT.search(paths[0].name):
        yield Source(str(paths[0]), 0)  # a model in a folder of its own, as archives unpack
        return
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
    return any((path / name).exists() for name in ("config.json", ADAPTER, MODULES))


def _is_lightning(path: Path) -> bool:
    return path.suffix == ".ckpt"


def _checkpoint_step(path: Path) -> int:
    """Return the step in a checkpoint's name, or else the one inside a Lightning checkpoint."""
    if not _is_lightning(path) or _STEP.search(path.stem):
        return _number(path.stem, _OF_SEVERAL)
    step = read_lightning(path).get("global_step")
    return _number(path.stem) if step is None else int(step)


def _number(text: str, more: str = "") -> int:
    match = _STEP.search(text) or _NUMBER.search(text)
    if match is None:
        raise PretrainedError(f"{text!r}: expected a name with the step, such as step1000 or checkpoint-500{more}")
    return int(match[1])
