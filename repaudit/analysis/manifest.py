"""Which files of a folder an analysis wrote: only these are ever replaced or removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repaudit.errors import AnalysisError

MANIFEST: Final = "files.json"
_KEY: Final = "repaudit_files"


@dataclass(frozen=True)
class Manifest:
    """The names of what analyses wrote into a folder, each with the hashes of what may stand there.

    There are two hashes while a piece is being replaced: a run that dies in between leaves a folder that is still known
    as its own.
    """

    folder: Path
    hashes: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; without one only results that say so are of an analysis, an earlier one."""
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return cls(folder, {name: (digest_of(folder / name),) for name in _pieces_of_old(folder)})
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))[_KEY]
            return cls(folder, {str(name): tuple(map(str, hashes)) for name, hashes in listed.items()})
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise AnalysisError(
                f"{path} is not the list of files that an analysis writes ({type(error).__name__}), so that nothing in "
                f"{folder} can be replaced; move it away, or choose another out"
            ) from error

    def write(self, scratch: Path) -> None:
        """Put the manifest into its folder, by way of a folder for work in progress."""
        text = json.dumps({_KEY: self.hashes}, indent=1, sort_keys=True)
        (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
        (scratch / MANIFEST).replace(self.folder / MANIFEST)

    def owns(self, name: str) -> bool:
        """Return whether what stands under a name is what an analysis wrote there."""
        listed = self.hashes.get(name, ())
        return bool(listed) and os.path.lexists(self.folder / name) and digest_of(self.folder / name) in listed

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Return the names under which something stands that no analysis wrote, or that was changed since."""
        return [name for name in names if os.path.lexists(self.folder / name) and not self.owns(name)]


def _pieces_of_old(folder: Path) -> list[str]:
    """Return what an analysis wrote into a folder before there were lists, if its results are there."""
    try:
        attributes = json.loads((folder / "results.zarr/zarr.json").read_text(encoding="utf-8"))["attributes"]
        versions = json.loads(attributes["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    pieces = [name for name in ("results.zarr", "summary.json", "report.html") if (folder / name).exists()]
    return pieces if isinstance(versions, dict) and "repaudit" in versions else []


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder with everything in it; links count by where they lead."""
    digest = hashlib.sha256()
    for part in [path] if path.is_symlink() or not path.is_dir() else sorted(path.rglob("*")):
        digest.update(f"\0{part.relative_to(path)}\0".encode(errors="surrogateescape"))
        if part.is_symlink():
            digest.update(b"link " + os.fsencode(part.readlink()))
        elif part.is_file():
            with part.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
