"""Every step of a model as a repair finds it: kept or dropped, and what must not be dropped unasked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repaudit.errors import CorruptStoreError
from repaudit.names import CHECKSUM, STEP
from repaudit.store.check.model_inspection import ModelInspection
from repaudit.store.format.documents import DOCUMENT
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.layout import STEP_COLUMNS
from repaudit.store.format.model_facts import truncations_of


class IntactError(CorruptStoreError):
    """A repair would erase activations that their checksums prove."""


@dataclass
class JudgedStep:
    """One step as found: its coordinates, the checksum of each layer, what is wrong with it."""

    index: int
    columns: dict[str, Any]
    checksums: list[int]
    problem: str | None
    unknown: list[str]
    intact: bool = False


def refuse_intact(model: ModelInspection, rows: list[JudgedStep]) -> None:
    """Refuse to drop proven activations for a damaged column, or all of a model for one damaged part."""
    nameless = [row.index for row in rows if row.problem and row.intact]
    some = [row.index for row in rows if any(_readable(model, row.index))] if all(row.problem for row in rows) else []
    if not nameless and not some:
        return
    if nameless:
        what = f"the numbers of {len(nameless)} steps are lost (damaged {STEP}), but their activations are intact"
    else:
        reasons = "; ".join(dict.fromkeys(row.problem or "" for row in rows[:3]))
        what = f"not one of {len(rows)} steps can be kept ({reasons}), but other activations of them are intact"
    raise IntactError(
        f"{model.storage.url}: {model.key}: {what}, so nothing of this model was changed; restore the damaged part "
        f"from a backup, or pass force=True to drop these steps"
    )


def refuse_older(model: ModelInspection) -> None:
    """Refuse to drop proven steps that the document knows nothing of: a dead writer leaves one, a truncation is told.

    More, or one that an array's document counts, which is written after the model's, come of an older model's document.
    """
    if model.document is None or not (model.sound and model.aligned) or truncations_of(model.document):
        return
    first = index = model.committed or 0
    while _is_numbered(model, index) and all(_proven(model, index)):
        index += 1
    if index - first > (0 if model.claimed > first else 1):
        path = f"{model.key}/{DOCUMENT}"
        raise IntactError(
            f"{model.storage.url}: {path} has {first} steps, but checksums prove {index - first} more, and none was "
            f"ever dropped: an older copy of it was put back, so nothing of this model was changed; restore the newer "
            f"one, or move this one away and repair again, which rebuilds it (force=True drops these steps)"
        )


def _is_numbered(model: ModelInspection, index: int) -> bool:
    """Whether the column of step numbers has one at this index, whatever the model's document says."""
    numbers = model.stored_column(STEP, index // COORDINATE_CHUNK)
    return not isinstance(numbers, str) and numbers[index % COORDINATE_CHUNK] >= 0


def _proven(model: ModelInspection, index: int) -> Iterator[bool]:
    """Yield for each layer whether a checksum proves its activations at this index."""
    sums = model.column(CHECKSUM, index // COORDINATE_CHUNK)
    for layer, key in enumerate(model.layer_keys.values()):
        expected = None if isinstance(sums, str) else sums[index % COORDINATE_CHUNK][layer]
        yield expected is not None and model.step_problem(key, index, expected) is None


def _readable(model: ModelInspection, index: int) -> Iterator[bool]:
    """Yield for each layer whether its chunk at this index is whole by its own checksum; another may be wrong."""
    return (model.step_problem(key, index, None) is None for key in model.layer_keys.values())


def judged_steps(model: ModelInspection) -> list[JudgedStep]:
    """Look at every step that is, or could have been, committed; without a document only proven steps count."""
    rows: list[JudgedStep] = []
    last = -1
    for index in range(model.extent):
        row = _judge_step(model, index, last)
        if row.problem is None:
            last = row.columns[STEP]
        rows.append(row)
    sure = min([model.committed or 0, *model.lengths])
    while len(rows) > sure and rows[-1].problem and not rows[-1].intact and not _numbered(rows[-1]):
        rows.pop()  # a step that was being written, not one that is lost
    return rows


def _numbered(row: JudgedStep) -> bool:
    return row.columns[STEP] is not None and row.columns[STEP] >= 0


def _judge_step(model: ModelInspection, index: int, last: int) -> JudgedStep:
    chunk, position = divmod(index, COORDINATE_CHUNK)
    columns: dict[str, Any] = {}
    unknown = []
    for name in STEP_COLUMNS:
        values = model.column(name, chunk)
        if isinstance(values, str) and name != STEP:
            unknown.append(name)
        missing = None if name == STEP else STEP_COLUMNS[name].unknown
        columns[name] = missing if isinstance(values, str) else values[position]
    if columns[STEP] is None or columns[STEP] <= last:
        return JudgedStep(index, columns, [], "its step number is lost", unknown, all(_proven(model, index)))
    sums = model.column(CHECKSUM, chunk)
    checksums: list[int] = []
    for layer, (name, key) in enumerate(model.layer_keys.items()):
        expected = None if isinstance(sums, str) else sums[position][layer]
        wrong = model.step_problem(key, index, expected)
        if wrong or (expected is None and model.committed is None):
            return JudgedStep(index, columns, [], f"layer {name!r}: {wrong or 'nothing proves it'}", unknown)
        checksums.append(int(model.step_sum(key, index)) if expected is None else expected)
    return JudgedStep(index, columns, checksums, None, [*unknown, *([CHECKSUM] if isinstance(sums, str) else [])])
