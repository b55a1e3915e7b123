"""What earlier runs computed, by content: the same activations and parameters are never worked on twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from repaudit.errors import OperatorError
from repaudit.names import __version__
from repaudit.operators.stack import OperatorFile
from repaudit.store.format.encoding import checksum
from repaudit.store.storage.replacing import replacing

Array = NDArray[Any]
NUMERICS: Final = 1
"""Raise it when the same input gives other numbers than before."""


def digest(*content: Any) -> str:
    """One short name for anything that JSON can say, and the versions that computed with it.

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
    file: OperatorFile
    diagnostics: dict[str, float]
    gauge: dict[str, Any]


@dataclass(frozen=True)
class Cache:
    """A folder of operators, results and tables of distances, each a file named by its content.

    Every file is written aside and renamed, so that one that is there is whole; one that is damaged nevertheless is
    computed again. The folder can be deleted at any time, and costs time alone.
    """

    folder: Path

    def operator(self, name: str) -> StoredOperator | None:
        """The operator of this digest, if it is there and its checksum is right."""
        place = self._place("operators", name, ".npy")
        try:
            facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
            file = OperatorFile.at(place)
            if checksum(file.matrix) != facts["crc32c"]:
                return None
            return StoredOperator(name, file, facts["diagnostics"], facts["gauge"])
        except (OSError, OperatorError, ValueError, KeyError, TypeError):
            return None

    def put_operator(
        self, name: str, matrix: Array, diagnostics: Mapping[str, float], gauge: Mapping[str, Any]
    ) -> StoredOperator:
        """Keep an operator; its facts come last, and without them it is not there."""
        place = self._place("operators", name, ".npy")
        matrix = np.ascontiguousarray(matrix)
        with replacing(place) as stream:
            np.save(stream, matrix, allow_pickle=False)
        facts = {"crc32c": checksum(matrix), "diagnostics": dict(diagnostics), "gauge": dict(gauge)}
        with replacing(place.with_suffix(".json")) as stream:
            stream.write(json.dumps(facts).encode())
        return StoredOperator(name, OperatorFile.at(place), dict(diagnostics), dict(gauge))

    def recall(self, content: Sequence[Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Array]:
        """Named arrays that `content` determines: from an earlier run, or computed and kept."""
        place = self._place("results", digest(*content), ".npz")
        found = _read(place)
        if found is None:
            found = {key: np.asarray(value) for key, value in compute().items()}
            with replacing(place) as stream:
                np.savez(stream, allow_pickle=False, **found)
        return found

    def distances(
        self,
        content: Sequence[Any],
        operators: Sequence[StoredOperator],
        compute: Callable[[list[OperatorFile], int], Array],
    ) -> Array:
        """Distances (T, T) of operators, of which those that a table of an earlier run has are taken from there.

        ``compute(files, first)`` gives the distances (first, T) of the first so many to all.
        """
        place = self._place("distances", digest(*content), ".npz")
        table = _read(place) or {"operators": np.array([], dtype="U32"), "distances": np.zeros((0, 0))}
        known = {str(name): index for index, name in enumerate(table["operators"])}
        names = [operator.digest for operator in operators]
        old = [index for index, name in enumerate(names) if name in known]
        new = [index for index, name in enumerate(names) if name not in known]
        distances = np.zeros((len(names), len(names)))
        at = [known[names[index]] for index in old]
        distances[np.ix_(old, old)] = table["distances"][np.ix_(at, at)]
        if new:
            order = new + old
            rows = compute([operators[index].file for index in order], len(new))
            distances[np.ix_(new, order)] = rows
            distances[np.ix_(order, new)] = rows.T
            with replacing(place) as stream:
                np.savez(stream, operators=np.array(names), distances=distances)
        return distances

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        return self.folder / kind / name[:2] / f"{name}{suffix}"


def _read(place: Path) -> dict[str, Array] | None:
    try:
        with place.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            return dict(found)
    except Exception:  # noqa: BLE001 - a damaged file may fail anywhere in its readers, and is computed again
        return None
