"""Analyses whose numbers alone are looked at: without their figures and report, which take half of the time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import xarray as xr


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing; ``test_pipeline`` and ``tests/report`` draw everything."""

    def no_figures(_results: xr.DataTree, folder: Path) -> list[Path]:
        folder.mkdir()
        return []

    def no_report(_results: xr.DataTree, summary: Mapping[str, Any], path: Path) -> Path:
        path.write_text(json.dumps(summary["headline"]))
        return path

    monkeypatch.setattr("repaudit.analysis.folder.save_figures", no_figures)
    monkeypatch.setattr("repaudit.analysis.folder.write_report", no_report)
