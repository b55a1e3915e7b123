"""What earlier runs computed, by content: nothing is computed twice for the same activations and parameters."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, Any, Final

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from repaudit.analysis.freed_memory import FreedMemory
from repaudit.errors import AnalysisError, OperatorError
from repaudit.names import __version__
from repaudit.operators.files import AnyOperatorFile, OperatorFile, SparseOperatorFile, write_sparse
from repaudit.operators.grouped_sketch import LazySketch
from repaudit.store.storage.regular import read_regular
from repaudit.store.storage.replacing import replacing

Array = NDArray[Any]
_SUFFIX: Final = {False: ".npy", True: ".csr"}
_SEAL: Final = hashlib.sha256().digest_size
_BLOCK: Final = 2**20
NUMERICS: Final = 3
"""Raise it when the same input gives other numbers than before."""


def digest(*content: Any) -> str:
    """Return one short name for any JSON content and the versions of what computes operators.

    Examples
    --------
    >>> digest("spread", 0, ["a", "b"]) == digest("spread", 0, ("a", "b"))
    True
    """
    text = json.dumps([NUMERICS, __version__, torch.__version__, *content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StoredOperator:
    """An operator in its file, its diagnostics, and the gauge's parameters as they were used."""

    digest: str
    file: AnyOperatorFile | LazySketch
    """Or a sketch that stands for it."""
    diagnostics: dict[str, float]
    gauge: dict[str, Any]


@dataclass(frozen=True)
class Cache:
    """A folder of operators, results and tables of distances, each a file named by its content.

    Files are replaced atomically, so that an existing one is complete; a damaged one is computed again. The folder can
    be deleted at any time, which only costs time.
    """

    folder: Path
    _busy: dict[Path, Lock] = field(default_factory=dict, repr=False, compare=False)
    freed: FreedMemory = field(default_factory=FreedMemory, repr=False, compare=False)

    def operator(self, name: str) -> StoredOperator | None:
        """Return the operator of this digest; None if it is missing or its checksum is wrong."""
        path = self._path("operators", name, ".json")
        try:
            facts = json.loads(_sound(read_regular(path), name))
            entries = path.with_suffix(_SUFFIX[facts["sparse"]])
            if not entries.is_file():  # a pipe in its place would be waited for
                return None
            file = (SparseOperatorFile if facts["sparse"] else OperatorFile).at(entries)
            with entries.open("rb") as stream:
                if _checksum(stream) != facts["crc32c"]:
                    return None
            return StoredOperator(name, file, facts["diagnostics"], facts["gauge"])
        except (OSError, OperatorError, ValueError, KeyError, TypeError):
            return None

    def put_operator(
        self, name: str, matrix: Any, diagnostics: Mapping[str, float], gauge: Mapping[str, Any]
    ) -> StoredOperator:
        """Keep a dense or sparse operator; its facts are written last, and it does not count without them."""
        sparse = issparse(matrix)
        path = self._path("operators", name, _SUFFIX[sparse])
        matrix = csr_array(matrix) if sparse else np.ascontiguousarray(matrix)
        with _entry(path) as stream:
            if sparse:
                write_sparse(stream, matrix)
            else:
                np.save(stream, matrix, allow_pickle=False)
            crc = _checksum(stream)
        facts = {"sparse": sparse, "crc32c": crc, "diagnostics": dict(diagnostics), "gauge": dict(gauge)}
        with _entry(path.with_suffix(".json")) as stream:
            body = json.dumps(facts).encode()
            stream.write(body + _seal(body, name))
        self.freed.give_back()
        return StoredOperator(
            name, (SparseOperatorFile if sparse else OperatorFile).at(path), dict(diagnostics), dict(gauge)
        )

    def recall(self, content: Sequence[Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Array]:
        """Return the named arrays that `content` determines: from an earlier run, or computed and kept."""
        path = self._path("results", digest(_versions(), *content), ".npz")
        with self._busy.setdefault(path, Lock()):  # who comes second waits, and reads what the first one has computed
            arrays = _read(path)
            if arrays is None:
                arrays = {key: np.asarray(value) for key, value in compute().items()}
                _write(path, arrays)
                self.freed.give_back()
        return arrays

    def distances(
        self,
        content: Sequence[Any],
        operators: Sequence[StoredOperator],
        compute: Callable[[list[Any], int], Array],
    ) -> Array:
        """Return distances (T, T) of operators, of which those that an earlier run computed are read from its table.

        ``compute(files, first)`` returns the distances (first, T) of that many first operators to all.
        """
        path = self._path("distances", digest(*content), ".npz")
        table = _read(path) or {"operators": np.array([], dtype="U32"), "distances": np.zeros((0, 0))}
        rows_of = {str(name): index for index, name in enumerate(table["operators"])}
        names = [operator.digest for operator in operators]
        old = [index for index, name in enumerate(names) if name in rows_of]
        new = [index for index, name in enumerate(names) if name not in rows_of]
        distances = np.zeros((len(names), len(names)))
        at = [rows_of[names[index]] for index in old]
        distances[np.ix_(old, old)] = table["distances"][np.ix_(at, at)]
        if new:
            order = new + old
            rows = compute([operators[index].file for index in order], len(new))
            distances[np.ix_(new, order)] = rows
            distances[np.ix_(order, new)] = rows.T
            _write(path, {"operators": np.array(names), "distances": distances})
            self.freed.give_back()
        return distances

    def _path(self, kind: str, name: str, suffix: str) -> Path:
        return self.folder / kind / name[:2] / f"{name}{suffix}"


@cache
def _versions() -> list[str]:
    """Return the versions of what computes results from operators."""
    return [version(package) for package in ("numpy", "scipy", "scikit-learn", "phate", "pot")]


def _checksum(stream: IO[bytes]) -> int:
    """Return the CRC-32C of a whole file."""
    crc = 0
    stream.seek(0)
    while block := stream.read(_BLOCK):
        crc = google_crc32c.extend(crc, block)
    return crc


def _seal(body: bytes, name: str) -> bytes:
    """Return what stands behind the bytes of an entry: the hash of its name and of all of them."""
    return hashlib.sha256(name.encode() + body).digest()


def _sound(content: bytes, name: str) -> bytes:
    """Return the bytes of an entry without their seal; a wrong one is a ValueError."""
    body, seal = content[:-_SEAL], content[-_SEAL:]
    if _seal(body, name) != seal:
        raise ValueError(f"the entry {name} does not match its checksum")
    return body


@contextmanager
def _entry(path: Path) -> Iterator[IO[bytes]]:
    """Open an entry to write it.

    Raises
    ------
    AnalysisError
        There is a folder in its place, or something else in the place of a folder of the cache.
    """
    try:
        with replacing(path) as stream:
            yield stream
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        wrong = next((place for place in path.parents if os.path.lexists(place) and not place.is_dir()), path)
        expected, found = ("file", "a folder") if wrong == path else ("folder", "something else")
        raise AnalysisError(
            f"expected a {expected} of the cache at {wrong}, found {found}: move it away and run this again, which "
            f"computes only what is missing"
        ) from error


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    with _entry(path) as stream:
        stream.write(content.getbuffer())
        stream.write(_seal(content.getvalue(), path.stem))


def _read(path: Path) -> dict[str, Array] | None:
    try:
        with np.load(BytesIO(_sound(read_regular(path), path.stem)), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # noqa: BLE001 - a damaged file may fail anywhere in its readers, and is computed again
        return None
