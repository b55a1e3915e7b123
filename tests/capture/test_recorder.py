"""The recorder in one's own loop: opening, failing, and what is noted of it."""

import gc
import os
import pickle
import shutil
import signal
import warnings

import lightning.pytorch as pl
import numpy as np
import psutil
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.capture.record.session import AuditSession
from repaudit.errors import AuditWarning, RepauditError
from repaudit.store.copying import copy_store

PROBE = ra.ProbeSet.from_tensors({"x": torch.eye(3)})


def recorder(store, specs=("[0]",), **options):
    return ra.Recorder(store, "seed0", PROBE, list(specs), durable=False, **options)


def test_a_failed_opening_is_tried_again(tmp_path):
    place, model = tmp_path / "s.zarr", nn.Sequential(nn.Linear(3, 2))
    place.write_text("in the way")
    with recorder(place) as audits:
        for _ in range(2):
            with pytest.raises((RepauditError, OSError)):
                audits.audit(model, 1)
        place.unlink()
        assert audits.audit(model, 1)
    assert audits.steps == [1]


def test_paths_that_do_not_resolve_are_told_at_every_audit(tmp_path):
    audits = recorder(tmp_path / "s.zarr", ["nope"])
    for _ in range(2):
        with pytest.raises(RepauditError, match="nope"):
            audits.audit(nn.Sequential(nn.Linear(3, 2)), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_store_eror": "raise"}, TypeError, "'on_store_eror': did you mean 'on_store_error'"),
        ({"gauge": "gaussian"}, TypeError, "gauge: expected a DiffusionGauge"),
        ({"every_n_steps": 5}, TypeError, r"'every_n_steps': pass trigger=repaudit.AuditTrigger\(every_n_steps=...\)"),
        ({"model_name": ""}, ValueError, "model_name"),
        ({"if_exists": "overwrite"}, ValueError, "if_exists: expected one of 'resume', 'error', 'replace'"),
        ({"codec": "zstd"}, ValueError, "codec: expected one of 'auto'"),
        ({"keepbits": 8}, ValueError, "keepbits=8 only goes with codec='lossy'"),
        ({"durable": None}, TypeError, "durable: expected True or False, found None"),
        ({"force": "yes"}, TypeError, "force: expected True or False, found 'yes'"),
        ({"model_attrs": 3}, TypeError, "model_attrs: expected a mapping"),
        ({"batch_size": 2.5}, ValueError, "batch_size"),
        ({"batch_size": "8"}, ValueError, "batch_size"),
        ({"batch_size": None}, ValueError, "batch_size"),
        ({"batch_size": True}, ValueError, "batch_size"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        (
            {"trigger": ra.AuditTrigger(every_n_epochs=1, every_n_steps=2)},
            ValueError,
            "every_n_epochs would never fire",
        ),
        ({"trigger": ra.AuditTrigger(on_checkpoint=True)}, ValueError, "on_checkpoint would never fire"),
        ({"trigger": ra.AuditTrigger(on_validation_end=True)}, ValueError, "on_validation_end would never fire"),
        ({"trigger": 10}, TypeError, r"trigger: expected a repaudit.AuditTrigger\(every_n_steps=...\), found 10"),
        ({"store": None}, TypeError, "store: expected a path or URL, found NoneType"),
        ({"store": "m", "model_name": "my runs.zarr"}, ValueError, "looks like a store, .*: the store comes first"),
        ({"store": "m", "model_name": "s3://b/runs"}, ValueError, "looks like a store, .*: the store comes first"),
        ({"model_name": 3}, TypeError, "model_name: expected a model's name, found int"),
        ({"probe_set": ["a text"]}, TypeError, "probe_set: expected a ProbeSet .*, found list"),
        ({"probe_set": {"x": torch.eye(3)}}, TypeError, "probe_set: expected a ProbeSet .*, found dict"),
        ({"layer_specs": None}, TypeError, "layer_specs: expected layer specs or paths, found None"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        ra.Recorder(**{"store": tmp_path, "model_name": "m", "probe_set": PROBE, "layer_specs": ["[0]"], **options})


@pytest.mark.parametrize("make", [ra.RepresentationAuditCallback, ra.AuditTrainerCallback])
def test_a_number_is_no_trigger(tmp_path, make):
    with pytest.raises(TypeError, match=r"trigger: expected .* found 10"):
        make(store=tmp_path, model_name="m", probe_set=PROBE, layer_specs=["[0]"], trigger=10)


def test_a_callback_of_the_other_trainer_names_its_own(tmp_path):
    ours = {"store": tmp_path / "s.zarr", "model_name": "m", "probe_set": PROBE, "layer_specs": ["[0]"]}
    with pytest.raises(TypeError, match=r"found transformers' Trainer: .* use ra\.AuditTrainerCallback"):
        ra.RepresentationAuditCallback(**ours).on_init_end(None, None, None)
    with pytest.raises(TypeError, match=r"found a Lightning trainer: .* use ra\.RepresentationAuditCallback"):
        pl.Trainer(
            callbacks=[ra.AuditTrainerCallback(**ours)], max_steps=1, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(ra.HFTrainerModule(nn.Linear(3, 2)), [{"x": torch.eye(3)}])  # fmt: skip


def test_a_step_before_a_model_is_told_in_one_line(tmp_path):
    with pytest.raises(TypeError, match=r"expected a torch module, found int: the model comes first, audit\(model"):
        recorder(tmp_path / "s.zarr").audit(3, nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize("how", ["foreach", "fused", "neither"])
def test_a_model_that_was_trained_at_a_recorded_step_is_told(tmp_path, how):
    """A second audit of the same weights is the first; that of others would be lost in silence."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).requires_grad_(False))
    optimizer = torch.optim.AdamW(model[0].parameters(), **({} if how == "neither" else {how: True}))
    with recorder(tmp_path / "s.zarr") as audits:
        assert audits.audit(model, 0)
        assert not audits.audit(model, 0)
        model(torch.eye(3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert not audits.audit(model.eval(), 0), "gradients and modes alone change nothing"
        optimizer.step()
        with pytest.warns(AuditWarning, match="step 0 is recorded already, and its parameters have changed since"):
            assert not audits.audit(model, 0)
        assert audits.audit(model, 1)
        assert not audits.audit(model.requires_grad_(False), 1)
    assert not pickle.loads(pickle.dumps(audits)).is_open


def test_weights_that_are_not_finite_are_the_same(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.constant_(model[0].bias, torch.nan)
    with recorder(tmp_path / "s.zarr") as audits:
        assert audits.audit(model, 0)
        assert not audits.audit(model, 0)


def test_metrics_that_fail_cost_no_audit(tmp_path):
    def fails(_activations):
        raise KeyError("mine")

    with recorder(tmp_path / "s.zarr", metrics=fails, on_store_error="raise") as audits:
        model = nn.Sequential(nn.Linear(3, 2))
        for step in (0, 1):
            with pytest.warns(AuditWarning, match=rf"metrics: none at step {step}, .*KeyError: 'mine'"):
                assert audits.audit(model, step)
    assert audits.failures == []
    assert ra.open_store(tmp_path / "s.zarr").repaudit.steps("seed0") == [0, 1]


def test_metrics_get_copies(tmp_path):
    model, seen = nn.Sequential(nn.Linear(3, 2)), []

    def centred(activations):
        seen.append({name: values.clone() for name, values in activations.items()})
        return {name: float(values.sub_(values.mean(0)).norm()) for name, values in activations.items()}

    with recorder(tmp_path / "s.zarr", metrics=centred) as audits:
        audits.audit(model, 0)
    recorded = ra.open_store(tmp_path / "s.zarr").repaudit.activations("seed0", "0").sel(step=0).values
    np.testing.assert_array_equal(recorded, seen[0]["0"].numpy())
    assert abs(recorded.mean()) > 1e-3


@pytest.mark.parametrize("wrong", [{"x": "abc"}, {1: 2.0}, {"x": None}, {"x": torch.zeros(2)}, {"x": "1.0"}])
def test_metrics_that_are_no_numbers_cost_no_audit(tmp_path, wrong):
    with recorder(tmp_path / "s.zarr", metrics=lambda _activations: wrong) as audits:
        audits.log = lambda numbers: {name.upper(): f"{value:.2f}" for name, value in numbers.items()}
        with pytest.warns(AuditWarning, match="metrics: none at step 0, which is recorded without"):
            assert audits.audit(nn.Sequential(nn.Linear(3, 2)), 0)


class StopError(Exception):
    """What the program's own handler of a signal raises."""


def test_what_a_handler_raises_within_metrics_is_for_the_program(tmp_path):
    def handler(_number, _frame):
        raise StopError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        audits = recorder(tmp_path / "s.zarr", metrics=lambda _activations: os.kill(os.getpid(), signal.SIGTERM) or {})
        with pytest.raises(StopError):
            audits.audit(nn.Sequential(nn.Linear(3, 2)), 0)
        audits.close()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ra.GeometryMetrics}, "metrics: expected a function of the activations, found the class Geometry"),
        ({"gauge": ra.DiffusionGauge}, "gauge: expected .* found the class DiffusionGauge: call it"),
        ({"track": ra.Track}, "track: expected .* found the class Track: call it"),
    ],
)
def test_a_class_is_not_an_object_of_it(tmp_path, options, message):
    with pytest.raises(TypeError, match=message):
        recorder(tmp_path / "s.zarr", **options)


def test_another_training_under_a_recorded_name_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    with recorder(tmp_path / "s.zarr") as audits:
        assert [audits.audit(model, step) for step in (5, 10, 10)] == [True, True, False], (
            "a repeat of one's own is none"
        )
    assert not audits.audit(model, 10)  # and none of a record that is opened once more
    with torch.no_grad():
        model[0].weight += 1
    with pytest.warns(AuditWarning, match="its parameters have changed since"):
        audits.audit(model, 10)
    audits.close()
    with recorder(tmp_path / "s.zarr") as audits:
        for step in (0, 5):
            with pytest.raises(ra.errors.StepOrderError, match=f"step 10 in .*starts at step {step}: .*truncate_after"):
                audits.audit(model, step)
            audits.close()
        with pytest.warns(AuditWarning, match=r"goes on from there.*another model_name"):
            assert not audits.audit(model, 10)
        assert audits.audit(model, 15)
    with recorder(tmp_path / "s.zarr") as audits:
        audits.open(model, truncate_after=5)
        assert audits.audit(model, 7)
    assert audits.steps == [5, 7]
    sparse = ra.AuditTrigger(every_n_steps=10)
    with recorder(tmp_path / "s.zarr", trigger=sparse) as audits, pytest.raises(ra.errors.StepOrderError):
        audits.audit(model, 1)  # not due, but too early already
    with recorder(tmp_path / "s.zarr", if_exists="replace") as audits:
        assert audits.audit(model, 0)


def test_a_loss_of_several_numbers_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    with recorder(tmp_path / "s.zarr") as audits:
        with pytest.raises(ValueError, match=r"loss: expected one number, found a tensor \(2,\): pass its mean"):
            audits.audit(model, 0, loss=torch.ones(2))
        assert audits.audit(model, 0, loss=torch.ones(1, 1))
    assert ra.open_store(tmp_path / "s.zarr")["models/seed0"]["loss"].values.tolist() == [1.0]


def test_a_loop_has_the_numbers_of_its_audits(tmp_path):
    model, place = nn.Sequential(nn.Linear(3, 2)), tmp_path / "s.zarr"
    probe = ra.ProbeSet.from_tensors({"x": torch.randn(30, 3, generator=torch.Generator().manual_seed(0))})
    for name in ("a", "b"):
        track = ra.Track(place, gauge=ra.DiffusionGauge(perplexity=5))
        metrics = ra.GeometryMetrics(ra.DiffusionGauge(perplexity=5))
        with ra.Recorder(place, name, probe, ["[0]"], metrics=metrics, track=track, durable=False) as audits:
            audits.audit(model, 0)
            first = dict(audits.latest)
            with torch.no_grad():
                model[0].weight[0] += 1.0
            audits.audit(model, 1)
        assert {"audit/seconds", "audit/bytes", "audit/0/effective_neighbors"} <= first.keys()
        assert "audit/0/from_last" not in first
        assert audits.latest["audit/0/from_last"] > 0
    assert audits.latest["spread/0"] == track.latest["0"][1].value
    assert audits.latest["spread/at_step"] == 1


def test_a_callback_travels_to_another_process(tmp_path):
    callback = ra.RepresentationAuditCallback(tmp_path / "s.zarr", "seed0", PROBE, ["[0]"])
    model = nn.Sequential(nn.Linear(3, 2))
    callback.recorder.dry_run(model)
    there = pickle.loads(pickle.dumps(callback))
    assert there.recorder.dry_run(model) == callback.recorder.dry_run(model)


def test_a_forward_that_fails_tells_with_which_inputs(tmp_path):
    probe = ra.ProbeSet.from_tensors({"tokens": torch.ones(4, 3)})
    with pytest.raises(RuntimeError, match="indices") as failed:
        ra.Recorder(tmp_path / "s.zarr", "a", probe, ["[0]"]).audit(nn.Sequential(nn.Embedding(4, 2)), 0)
    (note,) = failed.value.__notes__
    assert "Sequential.forward was called with tokens torch.float32 (" in note


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fails = nn.Linear(3, 2), False

    def forward(self, x):
        if self.fails:
            raise MemoryError("no memory left")
        return self.first(x)


def test_a_failed_audit_is_told_once_counted_and_a_gap_of_the_record(tmp_path, caplog):
    model = Fails()
    with recorder(tmp_path / "s.zarr", ["first"]) as audits:
        for step in range(4):
            model.fails = step == 2
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                assert audits.audit(model, step) is not model.fails
            messages = [str(warning.message) for warning in told]
            assert len(messages) == model.fails
        assert audits.failures == [(2, "MemoryError: no memory left")]
    assert not caplog.records
    facts = ra.open_store(tmp_path / "s.zarr").repaudit.facts("seed0")
    assert [(gap["step"], gap["reason"]) for gap in facts["gaps"]] == [(2, "MemoryError: no memory left")]
    with recorder(tmp_path / "s.zarr", ["first"]) as audits:
        audits.audit(model, 4)
        assert audits.failures == []  # that gap is an earlier run's


def test_what_the_store_could_not_take_is_among_the_failures(tmp_path, monkeypatch):
    from repaudit.store.write.commit import ModelRecord

    append = ModelRecord.append

    def refuse(self, row, arrays):
        if row["step"] == 1:
            raise RepauditError("no room")
        return append(self, row, arrays)

    model = nn.Sequential(nn.Linear(3, 2))
    monkeypatch.setattr(ModelRecord, "append", refuse)
    with pytest.warns(UserWarning, match="no room"):
        audits = recorded(recorder(tmp_path / "s.zarr"), model)
    assert audits.failures == [(1, "RepauditError: no room")]


def recorded(audits, model):
    with audits:
        for step in range(3):
            audits.audit(model, step)
    return audits


def test_warnings_name_what_is_missing(tmp_path):
    model = Fails()
    with recorder(tmp_path / "s.zarr", ["first"]) as audits:
        audits.audit(model, 0)
        model.fails = True
        for step in (1, 2):
            with pytest.warns(AuditWarning, match=f"the audit at step {step} failed .*{step} audits missing so far"):
                audits.audit(model, step)


def test_steps_are_whole_numbers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    with recorder(tmp_path / "s.zarr") as audits:
        assert repr(audits) == f"Recorder({str(tmp_path / 's.zarr')!r}, 'seed0', steps=0)"
        assert audits.audit(model, 2.0)
        for step in (2.7, -1, "3", float("nan"), True):
            with pytest.raises(ValueError, match="step: expected a whole number from 0 on"):
                audits.audit(model, step)
        assert audits.audit(model, torch.tensor(3))
        assert "steps=2" in repr(audits)
    assert ra.open_store(tmp_path / "s.zarr")["models/seed0"].step.values.tolist() == [2, 3]


def test_a_store_that_was_deleted_is_told(tmp_path):
    model, audits = nn.Sequential(nn.Linear(3, 2)), recorder(tmp_path / "s.zarr")
    audits.audit(model, 0)
    audits.flush()
    shutil.rmtree(tmp_path / "s.zarr")
    audits.audit(model, 1)
    with pytest.warns(UserWarning, match="its lease is gone, as when the store was deleted"):
        audits.close()
    assert [step for step, _ in audits.failures] == [1]
    assert not (tmp_path / "s.zarr").exists()


def test_one_sample_is_a_probe_set(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    one = ra.ProbeSet.from_tensors({"x": torch.ones(1, 3)})
    with ra.Recorder(tmp_path / "s.zarr", "m", one, ["[*]"]) as audits:
        audits.audit(model, 0)
    found = ra.open_store(tmp_path / "s.zarr")["models/m"]
    with torch.no_grad():
        np.testing.assert_allclose(found["1"][0], model.eval()(torch.ones(1, 3)), rtol=1e-6)


def test_the_process_does_not_grow_over_audits(tmp_path):
    torch.manual_seed(0)
    model, process = nn.Sequential(nn.Linear(8, 512), nn.ReLU()), psutil.Process()
    probe_set = ra.ProbeSet.from_tensors({"x": torch.randn(64, 8)})  # 256 KiB an audit
    resident = {}
    with ra.Recorder(tmp_path / "s.zarr", "m", probe_set, ["[*]"], durable=False) as audits:
        for step in range(250):
            audits.audit(model, step)
            if step in (49, 249):
                audits.flush()
                gc.collect()
                resident[step] = process.memory_info().rss
    assert resident[249] - resident[49] < 8 << 20


@pytest.mark.parametrize("reduce", ["mean", "all"])
@pytest.mark.parametrize(
    ("weights", "autocast", "expected"),
    [
        (torch.bfloat16, None, "bfloat16"),
        (torch.float16, None, "float16"),
        (torch.float64, None, "float64"),
        (torch.float32, None, "float32"),
        (torch.float32, torch.bfloat16, "bfloat16"),
    ],
)
@pytest.mark.thin(2)
def test_the_store_tells_the_dtype_that_the_model_computed_in(tmp_path, weights, autocast, expected, reduce):
    model = nn.Sequential(nn.Linear(3, 2)).to(weights)
    tokens = ra.ProbeSet.from_tensors({"x": torch.randn(4, 5, 3), "attention_mask": torch.ones(4, 5)})
    layer = ra.LayerSpec("[0]", reduce=reduce)
    operators = {"gauge": ra.DiffusionGauge(knn=2), "record": "both"} if reduce == "mean" else {}
    with (
        torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
        ra.Recorder(tmp_path / "s.zarr", "m", tokens, [layer], **operators) as audits,
    ):
        audits.audit(model, 0)
    copy_store(tmp_path / "s.zarr", tmp_path / "copied.zarr")
    for store in ("s.zarr", "copied.zarr"):
        arrays = ra.open_store(tmp_path / store)["models/m"].data_vars
        (name,) = {name for name in arrays if name.startswith("0") and not name.endswith("@operator")}
        assert arrays[name].attrs["model_dtype"] == expected
        kept = "float32" if reduce == "mean" and expected != "float64" else expected
        assert arrays[name].attrs["source_dtype"] == kept
        if reduce == "mean":
            assert arrays[f"{name}@operator"].attrs["model_dtype"] == expected


@pytest.mark.parametrize("gauge", [ra.DiffusionGauge(perplexity=5), ra.DiffusionGauge(knn=5, neighbors=8)], ids=str)
def test_sparse_operators_take_the_room_of_their_entries(tmp_path, gauge):
    count = 400
    probe_set = ra.ProbeSet.from_tensors({"input": torch.randn(count, 8, generator=torch.Generator().manual_seed(0))})
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    with ra.Recorder(tmp_path / "s.zarr", "m", probe_set, ["1"], gauge=gauge, record="operators") as recorder:
        for step in range(4):
            recorder.audit(model, step)
    (_, operators), *_ = recorder.trajectory
    stored = ra.open_store(tmp_path / "s.zarr")["models/m"]["1@operator"]
    np.testing.assert_array_equal(stored[0].values, np.asarray(operators["1"]))
    entries = operators["1"].csr.nnz
    chunk = max(file.stat().st_size for file in (tmp_path / "s.zarr/models/m/1@operator").rglob("*") if file.is_file())
    assert chunk < 12 * entries < 4 * count**2 / 4
    assert stored.attrs["sparse"] is True


def test_a_trainer_that_begins_at_the_only_step_of_another_training_is_told(tmp_path):
    """One that was killed after its first audit leaves a record that nothing refuses."""
    with recorder(tmp_path / "s.zarr") as audits:
        audits.audit(nn.Sequential(nn.Linear(3, 2)), 0)
    session = AuditSession(recorder(tmp_path / "s.zarr"), ra.AuditTrigger(at_start=True))
    with pytest.warns(AuditWarning, match=r"up to step 0 before: this training goes on.*another model_name"):
        session.start(nn.Sequential(nn.Linear(3, 2)), 0)
    session.close()
