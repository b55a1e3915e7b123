"""Libraries that not every installation has, and the extra of the package that brings each."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from repaudit.errors import MissingPartError

EXTRAS: Final = {
    "accelerate": "train",
    "datasets": "datasets",
    "distributed": "distributed",
    "gguf": "gguf",
    "lightning": "train",
    "peft": "peft",
    "s3fs": "s3",
    "soundfile": "audio",
    "starlette": "serve",
    "transformers": "train",
    "uvicorn": "serve",
}


def require(what: str, *libraries: str) -> None:
    """Refuse what needs a library that is not installed, and say what to install.

    Raises
    ------
    MissingPartError
        Naming the first missing library, and the extra that brings it.

    Examples
    --------
    >>> require("an analysis", "numpy")
    """
    for library in libraries:
        if find_spec(library) is None:
            raise MissingPartError(f"{what} needs {library}, which is not installed: {advice(library)}")


def advice(library: str) -> str:
    """Return the command that installs a library together with all that belongs to it.

    Examples
    --------
    >>> advice("lightning")
    "pip install 'repaudit[train]'"
    """
    return f"pip install 'repaudit[{EXTRAS[library]}]'" if library in EXTRAS else f"pip install {library}"
