"""Sketches in place of activations: what the store gets, what it takes, and how a record of them goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.operators.grouped_sketch import GroupedSketch, grouped_sketch
from repaudit.store.read import catalog

SAMPLES = 60


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


@pytest.fixture
def rows() -> ra.ProbeSet:
    return ra.ProbeSet.from_tensors({"input": torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))})


def record(url: Path, rows: ra.ProbeSet, model: nn.Module, steps: range, **options: Any) -> ra.Recorder:
    options = {"record": "sketches", "gauge": ra.DiffusionGauge(perplexity=8), **options}
    with ra.Recorder(url, "m", rows, ["0", "1"], **options) as recorder:
        for step in steps:
            with torch.no_grad():
                model[0].weight *= 1.01
            recorder.audit(model, step)
    return recorder


def test_the_store_holds_the_sketches_of_the_operators_and_nothing_else(tmp_path, rows, model):
    gauge = ra.DiffusionGauge(perplexity=8)
    recorder = record(tmp_path / "s.zarr", rows, model, range(3))
    assert recorder.trajectory == []
    assert ra.verify(tmp_path / "s.zarr", data=True) == []
    tree = ra.open_store(tmp_path / "s.zarr")
    assert catalog.layers(tree, "m") == ["0@sketch", "1@sketch"]
    stored = tree["models/m"]["1@sketch"]
    assert stored.dims == ("step", "number")
    assert (stored.attrs["kind"], stored.attrs["sketch_of"], stored.attrs["gauge"]["perplexity"]) == ("sketch", "1", 8)
    last = ra.ActivationExtractor(["1"]).extract(model, rows)["1"]
    np.testing.assert_array_equal(stored[-1].values, grouped_sketch(gauge(last)).numbers())
    made = GroupedSketch.of_numbers(stored[-1].values, stored.attrs["sketch"])
    assert made.diagnostics["effective_neighbors"] == pytest.approx(gauge(last).diagnostics["effective_neighbors"])


def test_notebooks_take_sketches_for_operators(tmp_path, rows, model):
    url, operators = tmp_path / "s.zarr", {}
    for name in ("m", "n"):
        with ra.Recorder(url, name, rows, ["1"], record="sketches", gauge=ra.DiffusionGauge(perplexity=8)) as recorder:
            recorder.audit(model, 0)
        operators[name] = ra.DiffusionGauge(perplexity=8)(ra.ActivationExtractor(["1"]).extract(model, rows)["1"])
        with torch.no_grad():
            model[0].weight += torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    tree = ra.open_store(url)
    found, exact = ra.spread(tree.repaudit.sketches("1", step=0)), ra.spread(operators)
    assert abs(found.value - exact.value) < 3 * found.sketch_error
    assert tree.repaudit.activations("m", "1@sketch").dims == ("step", "number")
    with pytest.raises(ra.errors.NotInStoreError, match="1@sketch"):
        tree.repaudit.operators("1", step=0)


@pytest.mark.parametrize("codec", ["auto", "raw", "lossy"])
def test_an_audit_takes_some_20_kb_a_layer_and_is_never_rounded(tmp_path, rows, model, codec):
    record(tmp_path / "s.zarr", rows, model, range(2), codec=codec)
    array = ra.open_store(tmp_path / "s.zarr")["models/m"]["0@sketch"]
    assert array.attrs["codec"] == "compact"
    sizes = [file.stat().st_size for file in (tmp_path / "s.zarr/models/m/0@sketch").glob("c.*")]
    assert len(sizes) == 2
    assert max(sizes) < 26_000


def test_a_record_of_sketches_goes_on_is_truncated_and_copied(tmp_path, rows, model):
    url = tmp_path / "s.zarr"
    record(url, rows, model, range(3))
    record(url, rows, model, range(3, 5))
    assert catalog.steps(ra.open_store(url), "m") == [0, 1, 2, 3, 4]
    with ra.Recorder(url, "m", rows, ["0", "1"], record="sketches", gauge=ra.DiffusionGauge(perplexity=8)) as recorder:
        recorder.open(model, truncate_after=1)
    assert catalog.steps(ra.open_store(url), "m") == [0, 1]
    assert ra.copy_store(url, tmp_path / "copy.zarr", codec="lossy") == {"m": [0, 1]}
    one, other = (ra.open_store(path)["models/m"]["0@sketch"] for path in (url, tmp_path / "copy.zarr"))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.attrs["sketch"] == other.attrs["sketch"]


def test_a_damaged_sketch_is_found_and_costs_no_other_step(tmp_path, rows, model):
    url = tmp_path / "s.zarr"
    record(url, rows, model, range(3))
    (url / "models/m/0@sketch/c.2.0").write_bytes(b"no sketch")
    (problem,) = ra.verify(url, data=True)
    assert problem.kind == "damaged_chunk"
    ra.repair(url)
    assert ra.verify(url, data=True) == []
    assert catalog.steps(ra.open_store(url), "m") == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gauge": None}, "give gauge="),
        ({"gauge": torch.cdist}, "needs a DiffusionGauge"),
        ({"record": "sketch"}, "sketches"),
    ],
)
def test_what_no_analysis_could_use_is_refused(tmp_path, rows, model, options, message):
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "s.zarr", rows, model, range(1), **options)


KILLED = """
import os, signal, sys
import torch
import repaudit as ra
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
rows = ra.ProbeSet.from_tensors({"input": torch.randn(60, 8, generator=torch.Generator().manual_seed(0))})
gauge = ra.DiffusionGauge(perplexity=8)
recorder = ra.Recorder(sys.argv[1], "m", rows, ["0", "1"], record="sketches", gauge=gauge)
for step in range(50):
    recorder.audit(model, step)
    if step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_of_sketches_goes_on_after_a_kill(tmp_path, rows, model):
    url = tmp_path / "s.zarr"
    child = subprocess.run([sys.executable, "-c", KILLED, url], check=False, timeout=120)
    assert child.returncode == -9
    known = catalog.steps(ra.open_store(url), "m")
    assert known == list(range(len(known)))
    record(url, rows, model, range(len(known), 24))
    assert catalog.steps(ra.open_store(url), "m") == list(range(24))
    assert ra.verify(url, data=True) == []
