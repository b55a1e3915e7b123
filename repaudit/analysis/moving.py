"""Pieces of an analysis move from a scratch folder into place; a move that was cut short is finished by the next start.

All that is new is in the scratch folder, and in the list of the folder's files, before anything moves. So nothing is
undone: whoever comes next moves what is left. The summary is the first to go and the last to come: where there is one,
everything beside it is of the same run.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from repaudit.analysis.locking import locked
from repaudit.analysis.manifest import GONE, Manifest
from repaudit.errors import AnalysisError
from repaudit.interrupts import Shield
from repaudit.operators.written import FIGURES, RESULTS, digest_of
from repaudit.store.storage.lease import abandoned, mark
from repaudit.store.storage.replacing import naming

SUMMARY: Final = "summary.json"
REPORT: Final = "report.html"
PIECES: Final = (RESULTS, REPORT, SUMMARY)
_SCRATCH: Final = ".repaudit-"
_OF_SCRATCH: Final = re.compile(r"[0-9a-f]{12}-\d+-\w+-\d+-\w+")
"""What follows in the name of a folder for work in progress: a mark of its process, and what tells it from others."""
_EARLIER: Final = "earlier"
"""The folder in a scratch folder for what is replaced; it is there as long as not everything has moved."""
_PATIENCE: Final = 600.0
"""Seconds for which finished work waits for the lock."""

_LOGGER = logging.getLogger(__name__)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Provide a folder for work in progress; its name has the process, so that a crashed one's can be removed.

    It stays where not everything in it could be moved into place. Errors that name no file name the folder.
    """
    path = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{mark()}-", dir=folder))
    try:
        with naming(folder):
            yield path
    finally:
        if not (path / _EARLIER).exists():
            shutil.rmtree(path, ignore_errors=True)  # the next start tries again


def sweep(folder: Path) -> None:
    """Remove the scratch folders of processes that have ended; those of another host may still be at work."""
    here = mark().partition("-")[0]
    for left in _scratch_folders(folder):
        name = left.name.removeprefix(_SCRATCH)
        elsewhere = name.count("-") == mark().count("-") + 1 and not name.startswith(f"{here}-")
        if not elsewhere and abandoned(name):
            shutil.rmtree(left)


def refuse_foreign(folder: Path, pieces: Sequence[str]) -> None:
    """Refuse a folder with other files under the names of an analysis, or with pieces that were changed since."""
    foreign = Manifest.of(folder).foreign(pieces)
    figures = folder / FIGURES
    if os.path.lexists(figures) and (figures.is_symlink() or not figures.is_dir()):
        foreign.append(FIGURES)
    if foreign:
        raise AnalysisError(
            f"{folder} has {', '.join(foreign)}, which no analysis wrote or which changed since, and this one would "
            f"replace; move it away, or choose another out"
        )


def move_in(made: Path, folder: Path, pieces: Sequence[str], *, unless_results: bool = False) -> None:
    """Move pieces and figures from a scratch folder into place; what no analysis wrote stays as it is."""
    with locked(folder, _PATIENCE):
        finish_moves(folder)
        if unless_results and (folder / RESULTS).exists():
            return
        refuse_foreign(folder, pieces)
        manifest = Manifest.of(folder)
        places = {piece: piece for piece in pieces} | _places_of_figures(made / FIGURES, manifest)
        changes = {place: digest_of(made / name) for name, place in places.items()}
        changes |= {name: GONE for name in manifest.hashes if name.startswith(f"{FIGURES}/") and name not in changes}
        with Shield():
            manifest = manifest.with_changes(changes)
            manifest.write(made)
            (made / _EARLIER).mkdir()  # from here on there is no way back
            _move({place: made / name for name, place in places.items()}, made, manifest)


def unfinished(folder: Path) -> list[Path]:
    """Return the scratch folders from which not everything has moved into place; under the lock nobody is at it."""
    earlier = [made / _EARLIER for made in _scratch_folders(folder)]
    return [place.parent for place in earlier if place.is_dir() and not place.is_symlink()]


def finish_moves(folder: Path) -> None:
    """Move into place what others have left halfway.

    Raises
    ------
    AnalysisError
        What no analysis wrote stands in such a place.
    """
    for made in unfinished(folder):
        manifest = Manifest.of(folder)
        refuse_foreign(folder, [piece for piece in PIECES if piece in manifest.changes])
        with Shield():
            _move(_left_in(made, manifest), made, manifest)
            shutil.rmtree(made)


def _left_in(made: Path, manifest: Manifest) -> dict[str, Path]:
    """Return what has yet to move, by its place: known by its digest, since figures may get other names."""
    figures = made / FIGURES
    paths = [made / piece for piece in PIECES if os.path.lexists(made / piece)]
    paths += [] if figures.is_symlink() else sorted(figures.glob("*"))
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(digest_of(path), []).append(path)
    left = {}
    for name, new in manifest.changes.items():
        if not manifest.stands(name, new) and not manifest.foreign([name]) and found.get(new):
            left[name] = found[new].pop()
    return left


def _move(sources: Mapping[str, Path], made: Path, manifest: Manifest) -> None:
    """Move each source into its place, and end with a list of what is there now."""
    folder, earlier = manifest.folder, made / _EARLIER
    (folder / FIGURES).mkdir(exist_ok=True)
    if SUMMARY in sources:
        _put_aside(folder / SUMMARY, earlier)
    for place in (place for place in sources if place != SUMMARY):
        if place == RESULTS:  # no rename replaces a folder with files
            _put_aside(folder / place, earlier)
        sources[place].replace(folder / place)
    for name, new in manifest.changes.items():
        if new == GONE and manifest.owns(name):
            (folder / name).unlink()
    if SUMMARY in sources:
        sources[SUMMARY].replace(folder / SUMMARY)
    shutil.rmtree(earlier)  # first, since it makes room where a disk is full; the list is true without the next line
    manifest.without_changes(sources).write(made)


def _put_aside(path: Path, earlier: Path) -> None:
    if os.path.lexists(path):
        path.rename(Path(tempfile.mkdtemp(dir=earlier)) / path.name)


def _scratch_folders(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{_SCRATCH}*") if _OF_SCRATCH.fullmatch(path.name.removeprefix(_SCRATCH))]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _places_of_figures(made: Path, manifest: Manifest) -> dict[str, str]:
    """Return where each figure goes: under a name of its own where there is a file that no analysis wrote."""
    places: dict[str, str] = {}
    for figure in sorted(made.glob("*")):
        name = place = f"{FIGURES}/{figure.name}"
        more = count(1)
        while manifest.foreign([place]) or place in places.values():
            place = f"{FIGURES}/{figure.stem}.repaudit{next(more)}{figure.suffix}"
        if place != name:
            _LOGGER.warning("%r stays, since no analysis wrote it: see %r", str(manifest.folder / name), place)
        places[name] = place
    return places
