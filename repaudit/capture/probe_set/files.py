"""Probe files: texts and labels from text lines, JSON lines and CSV."""

from __future__ import annotations

import csv
import json
from os import PathLike
from pathlib import Path
from typing import Any

from repaudit.errors import ProbeSetError


def read_probe_file(path: str | PathLike[str]) -> tuple[list[str], list[str] | None, list[str] | None]:
    r"""Read texts, labels and ids (None where the file has none) of a probe file.

    ``.txt``: one text per line, empty lines left out. ``.jsonl``: one object per line with ``text`` and, on every line
    or on none, ``label`` and ``id``. ``.csv``: the same names as columns, in a header.

    Raises
    ------
    ProbeSetError
        When the file is missing, of another kind, or empty, or when a line is invalid (it is named).

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "probe.jsonl")
    >>> _ = path.write_text('{"text": "good", "label": "+"}\n{"text": "bad", "label": "-"}')
    >>> read_probe_file(path)
    (['good', 'bad'], ['+', '-'], None)
    """
    path = Path(path)
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _table}
    if path.suffix.lower() not in readers:
        raise ProbeSetError(f"{path}: expected a probe file ending in {', '.join(readers)}, found {path.suffix!r}")
    try:
        rows = readers[path.suffix.lower()](path)
    except OSError as error:
        raise ProbeSetError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ProbeSetError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not rows:
        raise ProbeSetError(f"{path}: expected at least one text, found none")
    return [_text(path, line, row) for line, row in rows], _column(path, rows, "label"), _column(path, rows, "id")


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # other separators may occur inside a text
    return [(number, {"text": line}) for number, line in enumerate(lines, 1) if line.strip()]


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, row in _lines(path):
        try:
            value = json.loads(row["text"])
        except json.JSONDecodeError as error:
            raise ProbeSetError(f"{path}, line {number}: is not JSON ({error.msg})") from error
        if not isinstance(value, dict):
            raise ProbeSetError(f"{path}, line {number}: expected an object, found {type(value).__name__}")
        rows.append((number, value))
    return rows


def _table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if "text" not in (reader.fieldnames or []):
            raise ProbeSetError(f"{path}: expected a column 'text', found {reader.fieldnames}")
        return [(reader.line_num, row) for row in reader]


def _text(path: Path, line: int, row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ProbeSetError(f"{path}, line {line}: expected a non-empty 'text', found {text!r}")
    return text


def _column(path: Path, rows: list[tuple[int, dict[str, Any]]], name: str) -> list[str] | None:
    lacking = [line for line, row in rows if row.get(name) is None or row[name] != row[name]]  # NaN is no value
    if len(lacking) == len(rows):
        return None
    if lacking:
        raise ProbeSetError(f"{path}, line {lacking[0]}: has no {name!r}, but other lines have one")
    return [str(row[name]) for _, row in rows]
