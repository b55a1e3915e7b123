"""Samples as they are before a model's own preprocessing: texts, images or sounds, with labels and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

from repaudit.errors import ProbeSetError

Kind = Literal["text", "image", "audio"]


@dataclass(frozen=True)
class Samples:
    """Texts (str), images (PIL, RGB), or sounds (a waveform and its rate in Hz), one per sample."""

    kind: Kind
    values: Sequence[Any]
    ids: Sequence[str] | None = None
    labels: Sequence[str] | None = None


_HIDDEN: Final = "."


def read_images(folder: str | PathLike[str]) -> Samples:
    """Read the images in a folder and below, in the order of their paths, which are their ids.

    Where images are in subfolders, the name of the first one on the way is the label. Hidden files are left out, and
    so are those whose endings are not an image's.

    Raises
    ------
    ProbeSetError
        When there are no images, one cannot be read, or some have a label and others have none.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from PIL import Image
    >>> folder = Path(mkdtemp())
    >>> for label in ("cat", "dog"):
    ...     (folder / label).mkdir()
    ...     Image.new("L", (4, 4)).save(folder / label / "0.png")
    >>> samples = read_images(folder)
    >>> samples.ids, samples.labels, samples.values[0].mode
    (['cat/0.png', 'dog/0.png'], ['cat', 'dog'], 'RGB')
    """
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise ProbeSetError(
            f"{folder}: expected a folder of images, found {'a file' if folder.exists() else 'nothing'}"
        )
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in endings)
    paths = [path for path in paths if not any(part.startswith(_HIDDEN) for part in path.parts)]
    if not paths:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise ProbeSetError(f"{folder}: expected images (such as .png or .jpg), found {held or 'nothing'}")
    labels = [path.parts[0] if len(path.parts) > 1 else None for path in paths]
    if None in labels and any(labels):
        alone = paths[labels.index(None)]
        raise ProbeSetError(
            f"{folder}: expected every image in a subfolder, its label, or none, found {alone} in neither"
        )
    images = [_read_image(folder / path) for path in paths]
    names = [label for label in labels if label is not None]
    return Samples("image", images, [path.as_posix() for path in paths], names or None)


def _read_image(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ProbeSetError(f"{path}: cannot be read as an image ({error})") from error
