"""Which files of a folder an analysis wrote: only these are ever replaced or removed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repaudit.errors import AnalysisError
from repaudit.operators.written import LISTED, MANIFEST, RESULTS, digest_of, listed
from repaudit.store.storage.regular import read_regular

GONE: Final = ""
"""The hash of nothing: what a piece was before it was first written, or what is to be removed."""


@dataclass(frozen=True)
class Manifest:
    """The names of what analyses wrote into a folder, each with the hashes of what may stand there.

    There are several hashes while a piece is being replaced, of which the last is that of the new one: a run that dies
    in between leaves a folder that is still known as its own, and what has yet to move into it.
    """

    folder: Path
    hashes: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; without one only results that say so are of an analysis, an earlier one."""
        try:
            known = listed(folder)
        except ValueError as error:
            raise AnalysisError(
                f"{folder / MANIFEST} is not the list of files that an analysis writes ({error}), so that nothing in "
                f"{folder} can be replaced; move it away, or choose another out"
            ) from error
        if known is None:
            known = {name: (digest_of(folder / name),) for name in _pieces_of_old(folder)}
        return cls(folder, known)

    def write(self, scratch: Path) -> None:
        """Put the manifest into its folder, by way of a folder for work in progress."""
        text = json.dumps({LISTED: self.hashes}, indent=1, sort_keys=True)
        (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
        (scratch / MANIFEST).replace(self.folder / MANIFEST)

    @property
    def changes(self) -> dict[str, str]:
        """What is being replaced, each with the hash of what comes; ``GONE`` for what is being removed."""
        return {name: hashes[-1] for name, hashes in self.hashes.items() if len(hashes) > 1}

    def with_changes(self, changes: Mapping[str, str]) -> Manifest:
        """Return the manifest while pieces are replaced."""
        both = {name: (*self.hashes.get(name, (GONE,)), new) for name, new in changes.items()}
        return Manifest(self.folder, {**self.hashes, **both})

    def without_changes(self, made: Collection[str]) -> Manifest:
        """Return the manifest once pieces are replaced: those made just now, and those that stand there already."""
        hashes = dict(self.hashes)
        for name, new in self.changes.items():
            if new == GONE:
                del hashes[name]
            elif name in made or self.stands(name, new):
                hashes[name] = (new,)
        return Manifest(self.folder, hashes)

    def stands(self, name: str, digest: str) -> bool:
        """Return whether what stands under a name has a digest."""
        path = self.folder / name
        return os.path.lexists(path) and digest_of(path) == digest

    def owns(self, name: str) -> bool:
        """Return whether what stands under a name is what an analysis wrote there."""
        hashes, path = self.hashes.get(name, ()), self.folder / name
        if name != RESULTS and path.is_dir():  # all else that an analysis writes are files
            return False
        return bool(hashes) and os.path.lexists(path) and digest_of(path) in hashes

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Return the names under which something stands that no analysis wrote, or that was changed since."""
        return [name for name in names if os.path.lexists(self.folder / name) and not self.owns(name)]


def _pieces_of_old(folder: Path) -> list[str]:
    """Return what an analysis wrote into a folder before there were lists, if its results are there."""
    try:
        attributes = json.loads(read_regular(folder / RESULTS / "zarr.json"))["attributes"]
        versions = json.loads(attributes["versions"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    pieces = [name for name in (RESULTS, "summary.json", "report.html") if (folder / name).exists()]
    return pieces if isinstance(versions, dict) and "repaudit" in versions else []
