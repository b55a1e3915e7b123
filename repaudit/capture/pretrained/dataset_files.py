"""Data sets on disk: folders of the datasets library, and parquet files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from repaudit.capture.pretrained.samples import Kind, Samples
from repaudit.errors import ProbeSetError

_TEXT: Final = "text"
_LABELS: Final = ("label", "labels")
_ID: Final = "id"
_SAVED: Final = ("state.json", "dataset_dict.json")


def read_dataset(path: str | PathLike[str], label: str | None = None) -> Samples:
    """Read the samples of a data set on disk: its column of images, or else of sounds, or else ``text``.

    Parameters
    ----------
    path
        A folder written by ``datasets.Dataset.save_to_disk``, a parquet file, or a folder of parquet files.
    label
        The column of the labels; by default ``label`` or ``labels``, if there is one. Numbers of classes become their
        names. A column ``id`` holds the ids.

    Raises
    ------
    ProbeSetError
        When the path holds no such data set, when datasets is not installed, or when a sample cannot be read.
    """
    with TemporaryDirectory() as cache:
        data = _open(Path(path), cache)
        if not len(data):
            raise ProbeSetError(f"{path}: expected at least one sample, found none")
        kind, column = _samples_column(path, data.features)
        data = data.cast_column(column, _undecoded(kind)) if kind != "text" else data
        values = [_READERS[kind](path, row, value) for row, value in enumerate(data[column])]
        return Samples(kind, values, _ids(data), _labels(path, data, label))


def _open(path: Path, cache: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ProbeSetError(f"{path}: data sets need the datasets library: pip install 'repaudit[datasets]'") from error
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    try:
        if path.is_dir() and any((path / name).exists() for name in _SAVED):
            data = datasets.load_from_disk(str(path))
        elif files:
            data = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=cache, keep_in_memory=True)
        else:
            raise FileNotFoundError("no state.json and no parquet file")
    except Exception as error:  # whatever the libraries raise on files that are something else
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ProbeSetError(
            f"{path}: expected a folder written by datasets' save_to_disk, or parquet, but it cannot be read as one "
            f"({first[:200]})"
        ) from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if len(data) == 1:
        return next(iter(data.values()))
    parts = ", ".join(str(path / name) for name in data)
    raise ProbeSetError(f"{path}: holds {len(data)} parts, expected one: pass one of {parts}")


def _samples_column(path: str | PathLike[str], features: Mapping[str, Any]) -> tuple[Kind, str]:
    kinds: dict[Kind, str] = {"image": "Image", "audio": "Audio"}
    for kind, feature in kinds.items():
        found = [name for name, type_ in features.items() if type(type_).__name__ == feature]
        if len(found) > 1:
            raise ProbeSetError(f"{path}: expected one column of {kind}s, found {', '.join(found)}")
        if found:
            return kind, found[0]
    if _TEXT in features:
        return "text", _TEXT
    raise ProbeSetError(
        f"{path}: expected a column of images or sounds (of the types Image and Audio), or 'text', found "
        f"{', '.join(features)}"
    )


def _undecoded(kind: Kind) -> Any:
    import datasets

    return datasets.Image(decode=False) if kind == "image" else datasets.Audio(decode=False)


def _ids(data: Any) -> list[str] | None:
    return [str(value) for value in data[_ID]] if _ID in data.features else None


def _labels(path: str | PathLike[str], data: Any, label: str | None) -> list[str] | None:
    name = label or next((name for name in _LABELS if name in data.features), None)
    if name is None:
        return None
    if name not in data.features:
        raise ProbeSetError(f"{path}: expected a column {name!r} of labels, found {', '.join(data.features)}")
    names = getattr(data.features[name], "int2str", str)
    lacking = next((row for row, value in enumerate(data[name]) if value is None), None)
    if lacking is not None:
        raise ProbeSetError(f"{path}: row {lacking} has no {name!r}")
    return [str(names(value)) for value in data[name]]


def _content(path: str | PathLike[str], row: int, value: Any) -> io.BytesIO:
    """Return the file in a cell, which holds its bytes or its path."""
    held = value or {}
    try:
        return io.BytesIO(held["bytes"] if held.get("bytes") is not None else Path(held["path"]).read_bytes())
    except (OSError, KeyError, TypeError) as error:
        raise ProbeSetError(f"{path}: row {row} holds neither a file nor a path to one ({error})") from error


def _image(path: str | PathLike[str], row: int, value: Any) -> Any:
    from PIL import Image

    try:
        with Image.open(_content(path, row, value)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ProbeSetError(f"{path}: row {row} cannot be read as an image ({error})") from error


def _sound(path: str | PathLike[str], row: int, value: Any) -> tuple[np.ndarray, int]:
    """Read a sound as one waveform between -1 and 1: WAV by SciPy, other formats by soundfile."""
    content = _content(path, row, value)
    try:
        rate, wave = _read_wave(content) if content.getvalue()[:4] == b"RIFF" else _read_sound(content)
    except ImportError as error:
        raise ProbeSetError(f"{path}: row {row} is no WAV: pip install 'repaudit[audio]' to read it") from error
    except (ValueError, RuntimeError) as error:
        raise ProbeSetError(f"{path}: row {row} cannot be read as a sound ({error})") from error
    return (wave if wave.ndim == 1 else wave.mean(1)).astype(np.float32), rate


def _read_wave(content: io.BytesIO) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    rate, wave = wavfile.read(content)
    if wave.dtype == np.uint8:
        return rate, (wave.astype(np.float32) - 128) / 128
    return rate, wave / np.float32(-float(np.iinfo(wave.dtype).min)) if wave.dtype.kind == "i" else wave


def _read_sound(content: io.BytesIO) -> tuple[int, np.ndarray]:
    import soundfile

    wave, rate = soundfile.read(content, dtype="float32")
    return rate, wave


def _string(path: str | PathLike[str], row: int, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ProbeSetError(f"{path}: row {row}: expected a non-empty 'text', found {value!r}")
    return value


_READERS: Final[dict[Kind, Callable[..., Any]]] = {"image": _image, "audio": _sound, "text": _string}
