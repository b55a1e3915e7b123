"""Every promise names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_that_the_promises_name_are_there():
    text = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "Shown by" not in line]
    assert len(rows) > 15
    for row in rows:
        paths = re.findall(r"`(tests/[\w/.]+)`", row)
        assert paths, row
        assert [path for path in paths if not (ROOT / path).is_file()] == []
