"""Numbers for the trainer's loggers: each layer's geometry, and the spread against other models, without waiting."""

from __future__ import annotations

import csv
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.execution import side_by_side
from repaudit.capture.record.cost import Cost
from repaudit.cli import app
from repaudit.errors import AuditWarning, StoreNotFoundError
from repaudit.measure.distances import operator_distances
from repaudit.store.write.writer_thread import WriterThread

N = 32
GAUGE = ra.DiffusionGauge(perplexity=5)
PROBE = ra.ProbeSet.from_tensors({"x": torch.randn(N, 4, generator=torch.Generator().manual_seed(0))})


class Module(pl.LightningModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, seed: int, name: str, logger: Any = False, steps: int = 6, **options: Any) -> Any:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64, 2))
    callback = ra.RepresentationAuditCallback(
        store=folder / "runs.zarr", model_name=name, probe_set=PROBE, layer_specs=["0", "2"], durable=False,
        trigger=ra.AuditTrigger(every_n_steps=2, at_start=True), **options,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=[callback], logger=logger, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    module = Module(seed)
    trainer.fit(module, torch.utils.data.DataLoader(data, 8))
    return module, callback


def logged(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*GPU available but not used")
def test_lightnings_logger_gets_the_geometry_of_every_audit(tmp_path: Path) -> None:
    fit(tmp_path, 0, "seed0", CSVLogger(tmp_path), metrics=ra.GeometryMetrics(GAUGE))
    rows = [row for row in logged(tmp_path) if row.get("audit/0/effective_neighbors")]
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 6]
    activations = ra.open_store(tmp_path / "runs.zarr").repaudit.activations("seed0", "2").values
    operators = [GAUGE(one) for one in activations]
    exact = operator_distances(operators, "calibrated")
    for index, row in enumerate(rows):
        assert float(row["audit/2/effective_neighbors"]) == pytest.approx(
            operators[index].diagnostics["effective_neighbors"], rel=1e-4
        )
        if index:
            assert float(row["audit/2/from_start"]) == pytest.approx(exact[0, index], rel=1e-3)
            assert float(row["audit/2/from_last"]) == pytest.approx(exact[index - 1, index], rel=1e-3)
        assert float(row["audit/bytes"]) == N * (8 + 2) * 4
        assert 0 < float(row["audit/seconds"]) < 60


def test_the_spread_against_the_other_models_is_that_of_the_store(tmp_path: Path) -> None:
    fit(tmp_path, 0, "seed0")
    fit(tmp_path, 1, "seed1")
    track = ra.Track(tmp_path / "runs.zarr", gauge=GAUGE)
    fit(tmp_path, 2, "seed2", CSVLogger(tmp_path), track=track)
    tree = ra.open_store(tmp_path / "runs.zarr")
    wanted = {
        step: ra.spread({name: GAUGE(tree.repaudit.activations(name, "0").sel(step=step).values)
                         for name in ("seed0", "seed1", "seed2")}).value
        for step in (0, 2, 4, 6)
    }  # fmt: skip
    found = {
        int(float(row["spread/at_step"])): float(row["spread/0"]) for row in logged(tmp_path) if row.get("spread/0")
    }
    assert track.left_out == 4 - len(found)
    assert 6 in found
    for step, value in found.items():
        assert value == pytest.approx(wanted[step], rel=1e-4)
    assert track.latest["0"][0] == 6
    assert track.latest["0"][1].n_models == 3


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    fit(tmp_path, 1, "other")
    plain, _ = fit(tmp_path, 0, "plain")
    watched, _ = fit(
        tmp_path, 0, "watched", metrics=ra.GeometryMetrics(GAUGE), track=ra.Track(tmp_path / "runs.zarr", gauge=GAUGE)
    )
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_slow_comparison_never_delays_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, 0, "seed0")
    track, gate = ra.Track(tmp_path / "runs.zarr", gauge=GAUGE), threading.Event()
    compare = track._compare
    monkeypatch.setattr(track, "_compare", lambda audit: (gate.wait(60), compare(audit)))
    values = {"0": torch.randn(N, 8)}
    began = time.monotonic()
    for step in (0, 2, 4, 6):
        track.audited("live", step, values)
    assert time.monotonic() - began < 30
    assert track.left_out >= 1
    assert track.news() == []
    gate.set()
    track.close()
    assert [step for step, _ in track.news()][-1] == 6


class Vanishing(ra.Track):
    """Its store is deleted once the training has begun."""

    def prepare(self, writing: Any) -> None:
        super().prepare(writing)
        shutil.rmtree(self.store)


def test_what_fails_warns_in_the_training_and_no_more(tmp_path: Path) -> None:
    fit(tmp_path / "others", 1, "seed1")
    track = Vanishing(tmp_path / "others/runs.zarr", gauge=GAUGE)
    with pytest.warns(ra.AuditWarning, match="no spread at step"):
        fit(tmp_path, 0, "seed0", track=track)
    assert ra.open_store(tmp_path / "runs.zarr").repaudit.steps("seed0") == [0, 2, 4, 6]


def test_a_store_that_is_not_there_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StoreNotFoundError, match=r"nowhere\.zarr"):
        fit(tmp_path, 0, "seed0", track=ra.Track(tmp_path / "nowhere.zarr"))
    assert not (tmp_path / "runs.zarr").exists()
    fit(tmp_path, 0, "seed0", track=ra.Track(tmp_path / "link/runs.zarr", gauge=GAUGE))  # the one to be written
    again = ra.Track(f"file://{tmp_path}/b/runs.zarr", gauge=GAUGE)
    fit(tmp_path / "b", 0, "seed0", track=again)


def test_a_training_that_resumes_is_measured_from_its_first_audit(tmp_path: Path) -> None:
    """Of its record; what another recorder measures with the same object is of another model."""
    models, store = [Module(seed) for seed in (0, 1)], tmp_path / "runs.zarr"
    metrics = ra.GeometryMetrics(GAUGE)

    def audit(model: Module, recorder: ra.Recorder, step: int) -> dict[str, float]:
        recorder.audit(model, step)
        with torch.no_grad():
            model.network[0].weight += 0.3
        return dict(recorder.latest)

    with (
        ra.Recorder(store, "a", PROBE, "0", metrics=metrics, durable=False) as first,
        ra.Recorder(store, "b", PROBE, "0", metrics=metrics, durable=False) as second,
    ):
        pairs = [(audit(models[0], first, step), audit(models[1], second, step)) for step in (0, 1)]
    assert "audit/0/from_start" not in pairs[0][0] | pairs[0][1]
    with ra.Recorder(store, "a", PROBE, "0", metrics=metrics, durable=False) as again:
        found = audit(models[0], again, 2)
    values = ra.open_store(store).repaudit.activations("a", "0")
    operators = [GAUGE(values.sel(step=step)) for step in (0, 1, 2)]
    expected = operator_distances(operators, "calibrated")[2]
    assert [found[f"audit/0/from_{name}"] for name in ("start", "last")] == pytest.approx(expected[:2], abs=1e-6)
    (store / "models/a/0/c.0.0.0").unlink()
    told = pytest.warns(AuditWarning, match="recorded audits cannot be read, and the next one counts as the first")
    with told, ra.Recorder(store, "a", PROBE, "0", metrics=metrics, durable=False) as again:
        found = audit(models[0], again, 3)
    assert "audit/0/from_start" not in found
    assert again.steps == [0, 1, 2, 3]


def test_a_layer_without_an_operator_has_no_numbers() -> None:
    measure = ra.GeometryMetrics(GAUGE)
    found = measure({"tokens": torch.randn(N, 3, 8), "top": torch.randn(N, 8), "bad": torch.full((N, 8), np.nan)})
    assert list(found) == ["audit/top/effective_neighbors"]


def test_a_track_goes_through_pickle_and_others_are_refused(tmp_path: Path) -> None:
    track = ra.Track(tmp_path / "runs.zarr", gauge=GAUGE)
    again = pickle.loads(pickle.dumps(track))
    assert again.news() == []
    with pytest.raises(TypeError, match=r"track: expected a repaudit\.Track"):
        ra.Recorder("runs.zarr", "seed0", PROBE, "0", track="runs.zarr")  # type: ignore[arg-type]


def test_the_end_of_a_training_tells_what_was_recorded(tmp_path: Path) -> None:
    _, callback = fit(tmp_path, 0, "seed0")
    cost = callback.recorder.cost
    assert (cost.audits, cost.layers, cost.nbytes) == (4, 2, 4 * N * 10 * 4)
    assert 0 < cost.share < 1
    assert cost.storing > 0
    said = cost.describe("my runs.zarr", "seed0")
    assert "4 audits of model 'seed0'" in said
    assert said.endswith("Next: repaudit analyze 'my runs.zarr'")


@pytest.mark.parametrize(("samples", "scale"), [(12, "--scales 3"), (31, "--scales 7"), (32, "")])
def test_few_samples_are_told_a_scale_that_can_answer(tmp_path: Path, samples: int, scale: str) -> None:
    probe, place = ra.ProbeSet.from_tensors({"input": torch.randn(samples, 6)}), tmp_path / "r.zarr"
    for seed in range(2):
        with ra.Recorder(place, f"seed{seed}", probe, "[0]", durable=False) as recorder:
            for step in range(2):
                recorder.audit(torch.nn.Sequential(torch.nn.Linear(6, 5)), step)
        said = recorder.cost.describe(place, "seed0")
    assert said.endswith(f"Next: repaudit analyze {place}")
    assert (f"are few for the default scales: analyze them with {scale}. " in said) == bool(scale)
    given = ["analyze", str(place), *scale.split(), "--no-figures", "--frames", "0"]
    found = CliRunner().invoke(app, given)
    assert (found.exit_code, "too few" in found.output) == (0, False), found.output


@pytest.mark.parametrize(("samples", "said"), [(1, "1 sample cannot"), (2, "2 samples cannot"), (3, "")])
def test_so_few_samples_that_nothing_can_answer_are_told_as_such(tmp_path: Path, samples: int, said: str) -> None:
    probe = ra.ProbeSet.from_tensors({"input": torch.randn(samples, 6)})
    with ra.Recorder(tmp_path / "r.zarr", "seed0", probe, "[0]", durable=False) as recorder:
        recorder.audit(torch.nn.Sequential(torch.nn.Linear(6, 5)), 0)
    told = recorder.cost.describe(tmp_path, "seed0")
    assert ("cannot be analyzed: record 32 or more" in told) == bool(said)
    assert said in told


def test_the_end_of_a_loop_of_ones_own_tells_it_too(tmp_path: Path) -> None:
    """Once, on stderr where the program has set up no logging, and as information where it has."""
    script = f"""
import logging, sys, torch, repaudit as ra
probe_set = ra.ProbeSet.from_tensors({{"input": torch.eye(4)}})
def record(name):
    with ra.Recorder({str(tmp_path / "runs.zarr")!r}, name, probe_set, "[0]") as recorder:
        recorder.audit(torch.nn.Sequential(torch.nn.Linear(4, 2)), 0)
    recorder.close()
record("seed0")
logging.basicConfig(format="%(levelname)s %(message)s")
record("seed1")
logging.getLogger().setLevel("INFO")
record("seed2")
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout == ""
    lines = [line for line in said.stderr.splitlines() if "audit of model" in line]
    assert [line.partition(" in ")[0] for line in lines] == [
        "repaudit: 1 audit of model 'seed0'", "INFO repaudit: 1 audit of model 'seed2'",
    ]  # fmt: skip
    assert all(line.endswith(f"Next: repaudit analyze {tmp_path / 'runs.zarr'}") for line in lines)


def test_threads_of_blas_are_as_before_whoever_ends_first() -> None:
    """They belong to the process: two that limit them at once must not put back each other's limit."""
    from threadpoolctl import threadpool_info, threadpool_limits

    def now() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        assert now() == {2}
        first, second = (side_by_side(1, own=1) for _ in range(2))
        first.__enter__()
        second.__enter__()
        assert now() == {1}
        first.__exit__(None, None, None)
        assert now() == {1}
        second.__exit__(None, None, None)
        assert now() == {2}


def test_a_track_that_waits_takes_no_threads_from_the_training(tmp_path: Path) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    probe = ra.ProbeSet.from_tensors({"input": torch.randn(40, 6)})
    with threadpool_limits(2, "blas"):
        for seed in range(2):
            track = ra.Track(tmp_path / "r.zarr")
            with ra.Recorder(tmp_path / "r.zarr", f"seed{seed}", probe, "[0]", durable=False, track=track) as recorder:
                recorder.audit(torch.nn.Sequential(torch.nn.Linear(6, 5)), 0)
                until = time.monotonic() + 60
                while seed and not track.latest and time.monotonic() < until:
                    time.sleep(0.01)
                time.sleep(0.1)
                assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {2}
        assert track.latest


def test_a_process_without_threads_left_tells_it_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter: what waits is given up, and nobody waits for it."""
    from repaudit.live import track as module

    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "side_by_side", none_left)
    track = ra.Track(tmp_path / "r.zarr")
    for step in range(3 * module.WAITING):
        track.audited("seed0", step, {})
    track.close()
    with pytest.warns(AuditWarning, match="no further spreads: can't start new thread"):
        assert track.news() == []


def test_waiting_for_a_slow_store_is_told_as_the_cost_of_audits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WriterThread._store

    def slow(self: WriterThread, item: Any) -> None:
        time.sleep(0.1)
        store(self, item)

    monkeypatch.setattr(WriterThread, "_store", slow)
    recorder = ra.Recorder(tmp_path / "r.zarr", "seed0", PROBE, "[0]", durable=False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5))
    for step in range(6):
        recorder.audit(model, step)
    recorder.close()
    assert recorder.cost.seconds > 0.5  # all six waited for, in audits or at the end


def test_the_training_waits_for_all_of_an_audit_and_for_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is around the forward counts too, and what is within each other once."""
    opened = ra.Recorder._open_writer
    monkeypatch.setattr(ra.Recorder, "_open_writer", lambda *given: (time.sleep(0.2), opened(*given)))
    recorder = ra.Recorder(tmp_path / "r.zarr", "seed0", PROBE, "[0]", durable=False)
    recorder.listeners.append(lambda _step, _activations: time.sleep(0.1))
    began = time.perf_counter()
    for step in range(3):
        recorder.audit(torch.nn.Sequential(torch.nn.Linear(4, 5)), step)
    cost, elapsed = recorder.cost, time.perf_counter() - began
    assert cost.opening >= 0.2
    assert cost.seconds >= 0.3
    assert cost.opening + cost.seconds <= elapsed
    assert f" and {1e3 * cost.opening:.0f} ms to open the record, " in cost.describe("s", "a")
    recorder.close()


def test_bytes_are_those_of_the_audits_that_are_stored() -> None:
    given = Cost([0, 1, 2], sizes={0: 2**20, 1: 2**20, 2: 2**20})
    assert "3 audits of model 'm' in s, 0 layers, 3.00 MiB before" in given.describe("s", "m")
    given.stored = [1]
    assert "1 audit of model 'm' in s (2 more could not be stored), 0 layers, 1.00 MiB" in given.describe("s", "m")


def test_what_storing_takes_of_the_cpu_is_told_where_it_counts() -> None:
    said = [Cost([0, 1], storing=cpu, began=time.perf_counter() - 10).describe("s", "m") for cpu in (0.02, 2.0)]
    assert ["of CPU each to store them" in one for one in said] == [False, True]
    assert ", and 1000 ms of CPU each" in said[1]
