"""The list of files that an analysis keeps in its folder, and whether its results are still what the list says."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Final

from repaudit.names import at_home
from repaudit.store.storage.regular import read_regular

RESULTS: Final = "results.zarr"
FIGURES: Final = "figures"
MANIFEST: Final = "files.json"
LISTED: Final = "repaudit_files"


def listed(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Return the names in the list of an analysis folder, each with its digests; None where there is no list.

    Raises
    ------
    ValueError
        A file of that name is no such list, or names something outside the folder; the text says why.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        names = {str(name): tuple(map(str, kept)) for name, kept in json.loads(read_regular(path))[LISTED].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(type(error).__name__) from error
    for name in names:
        if not _is_held(name):
            raise ValueError(f"{name!r} is no file that one writes into its folder")
    return names


def _is_held(name: str) -> bool:
    """Return whether a name is that of a piece or a figure: it cannot lead out, not even by a link."""
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and "\0" not in name and str(path) == name
    return plain and (len(path.parts) == 1 or (len(path.parts) == 2 and path.parts[0] == FIGURES))


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


def changed(results: str | os.PathLike[str]) -> str | None:
    """Return in words that results are not as an analysis wrote them, by the list beside them; None if they may be.

    Results that stand without a list, as copies do, may be; so may those at a URL that is no local path, which are not
    compared.
    """
    path = local_path(results)
    if path is None:
        return None
    place = path.parent.resolve() / path.name  # a link is compared with both lists, the one beside it and its target's
    return next((why for one in dict.fromkeys((place, place.resolve())) if (why := _changed(one)) is not None), None)


def _changed(place: Path) -> str | None:
    if not os.path.lexists(place):
        return _missing(place)
    strange = next((part for part in (place, *place.rglob("*")) if not (part.is_dir() or part.is_file())), None)
    if strange is not None:
        return f"{strange} is not a regular file, as all files of results are; run `repaudit analyze` again"
    try:
        known = listed(place.parent)
        if known is None or (place.name not in known and place.name != RESULTS):
            return None
        found = digest_of(place)
        # an analysis may have replaced the results between the two: the list is always written before them
        if found in known.get(place.name, ()) or found in (listed(place.parent) or {}).get(place.name, ()):
            return None
    except ValueError as error:
        return (
            f"{place.parent / MANIFEST} is not the list of files that an analysis writes ({error}), so that nothing "
            f"tells whether {place.name} is as it was: move both away and run `repaudit analyze` again"
        )
    return (
        f"{place} changed since an analysis wrote it, or none did: {MANIFEST} beside it has another digest; move "
        f"{place.name} away and run `repaudit analyze` again"
    )


def _missing(place: Path) -> str | None:
    """Return in words that results are listed and not there: an analysis ended, or is, between two renames."""
    try:
        if place.name not in (listed(place.parent) or {}):
            return None
    except ValueError:
        return None
    return (
        f"{place} is not there, though {MANIFEST} beside it lists it: an analysis is moving its files in, or ended "
        f"while it did; run `repaudit report {place.parent}`, which finishes that, or `repaudit analyze` again"
    )


def local_path(url: str | os.PathLike[str]) -> Path | None:
    """Return the local path that a path or URL stands for, if it is one."""
    place = os.fspath(url)
    scheme, separator, rest = place.partition("://")
    if "::" in place or (separator and scheme not in ("file", "local")):
        return None
    return at_home(rest if separator else place)
