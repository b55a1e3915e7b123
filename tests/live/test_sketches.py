"""Following trainings that keep sketches alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.errors import AnalysisError, AuditWarning, NotInStoreError
from repaudit.live.spreads import LiveSpreads
from repaudit.live.track import Track

SAMPLES = 60
GAUGE = ra.DiffusionGauge(perplexity=8)
PROBE = ra.ProbeSet.from_tensors({"input": torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))})


def run(url: Path, seed: int, record: str = "sketches", gauge: ra.DiffusionGauge = GAUGE, **options: object) -> None:
    """Record a network that moves from its own weights to those that all share."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    shared = torch.randn(16, 8, generator=torch.Generator().manual_seed(99))
    options = {"record": record, "gauge": gauge, "durable": False, **options}
    with ra.Recorder(url, f"seed{seed}", PROBE, ["0", "1"], **options) as recorder:  # type: ignore[arg-type]
        for step in (0, 10, 20):
            recorder.audit(model, step)
            with torch.no_grad():
                model[0].weight.lerp_(shared, 0.5)


def test_the_live_spread_of_sketches_is_that_of_activations_within_the_stated_error(tmp_path: Path) -> None:
    for kept in ("sketches", "activations"):
        for seed in range(3):
            run(tmp_path / f"{kept}.zarr", seed, kept)
    found = LiveSpreads().update(ra.open_store(tmp_path / "sketches.zarr"))  # with their gauge, not the default
    exact = LiveSpreads(gauge=GAUGE).update(ra.open_store(tmp_path / "activations.zarr"))
    assert [curve.layer for curve in found] == ["0", "1"]
    for one, other in zip(found, exact, strict=True):
        assert one.steps == other.steps == (0, 10, 20)
        assert one.value == pytest.approx(other.value, rel=0.15)
        assert all(low < value < high for low, value, high in zip(one.low, other.value, one.high, strict=True))


def test_watch_shows_them_under_the_names_of_their_layers(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path / "s.zarr", seed, "sketches" if seed else "activations")
    command = [str(Path(sys.executable).with_name("repaudit")), "watch", str(tmp_path / "s.zarr"), "--once", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert '"layer": "0"' in shown
    assert "@sketch" not in shown


@pytest.mark.parametrize(
    ("record", "asked", "said"),
    [
        ("sketches", "activations", "no layer '1': it has 0@sketch, 1@sketch; sketches() reads '1@sketch'"),
        ("sketches", "operators", "sketches() reads '1@sketch'"),
        ("operators", "activations", "operators() reads '1@operator'"),
        ("operators", "sketches", "operators() reads '1@operator'"),
        ("activations", "sketches", "activations() reads '1'"),
    ],
)
def test_who_asks_for_what_was_not_recorded_is_told_what_was(
    tmp_path: Path, record: str, asked: str, said: str
) -> None:
    run(tmp_path / "s.zarr", 0, record)
    tree = ra.open_store(tmp_path / "s.zarr")
    for layer in ("1",) if asked == "activations" else ("1", "1@operator", "1@sketch"):
        given = ("seed0", layer) if asked == "activations" else (layer, 10)
        with pytest.raises(NotInStoreError, match=re.escape(said)):
            getattr(tree.repaudit, asked)(*given)
    if record != "activations":
        assert len(ra.DiffusionGauge().map(tree).attrs["left_out"]) == 2


def test_sketches_of_two_gauges_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path / "s.zarr", 0)
    run(tmp_path / "s.zarr", 1, gauge=ra.DiffusionGauge(perplexity=5))
    with pytest.raises(AnalysisError, match="sketches of one gauge"):
        LiveSpreads().update(ra.open_store(tmp_path / "s.zarr"))


def test_a_training_is_tracked_against_sketches(tmp_path: Path) -> None:
    url = tmp_path / "s.zarr"
    run(url, 0)
    track = Track(url, gauge=GAUGE)
    run(url, 1, track=track)
    assert sorted(track.latest) == ["0", "1"]
    assert 0 < track.latest["0"][1].value < 1
    other = Track(url, gauge=ra.DiffusionGauge(perplexity=5))
    with pytest.warns(AuditWarning, match="made with"):
        run(url, 2, track=other)
    assert other.latest == {}
