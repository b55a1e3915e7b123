"""The writer commits what it was given, in order, and refuses what would make the record wrong."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr

import repaudit as ra
from repaudit.errors import (
    CorruptStoreError,
    FingerprintError,
    LayoutError,
    LeaseError,
    ModelExistsError,
    NotAStoreError,
    ProbeSetError,
    StepOrderError,
    WriterClosedError,
)
from repaudit.store.format.layout import STEP_COLUMNS
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step
from repaudit.store.read.stored_probe_set import StoredProbeSet


def plain(url, group=None, **keywords):
    """Open a store as any xarray user would, without repaudit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated", RuntimeWarning)
        if group:
            return xr.open_zarr(url, group=group, **keywords)
        return xr.open_datatree(url, engine="zarr", **keywords)


def open_writer(url, probe_set, layers, **keywords):
    return ra.TrajectoryWriter(url, **({"model_name": "seed0", "probe_set": probe_set, "layers": layers} | keywords))


@pytest.mark.parametrize("place", ["local", "memory"])
def test_recorded_steps_read_back_bit_exactly(place, url, probe_set, layers, step_arrays):
    url = url if place == "local" else "memory://exact.zarr"
    with open_writer(url, probe_set, layers) as writer:
        for step in (0, 3, 9):
            writer.append(step, step_arrays(step), epoch=0.5, loss=2.0, trigger="every_n_steps", wall_time=12.5)
    tree = ra.open_store(url)
    assert catalog.models(tree) == ["seed0"]
    assert catalog.layers(tree, "seed0") == list(layers)
    assert catalog.steps(tree, "seed0") == [0, 3, 9]
    for name in layers:
        array = catalog.activations(tree, "seed0", name)
        assert array.dims == ("step", "sample", "feature")
        for step in (0, 3, 9):
            np.testing.assert_array_equal(array.sel(step=step).values, step_arrays(step)[name])
    dataset = catalog.model_dataset(tree, "seed0")
    assert dataset.epoch.values.tolist() == [0.5] * 3
    assert dataset.trigger.values.tolist() == ["every_n_steps"] * 3
    assert dataset.wall_time.values[0] == np.datetime64("1970-01-01T00:00:12.5")
    assert tree["sample"].values.tolist() == list(probe_set.ids)
    assert tree["label"].values.tolist() == list(probe_set.labels)
    np.testing.assert_array_equal(catalog.inputs(tree, "seed0")["input_ids"].values, probe_set.inputs["input_ids"])


def test_plain_xarray_sees_only_layers_as_variables(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(1, step_arrays(1))
    node = plain(url)["models/seed0"]
    assert sorted(node.data_vars) == sorted(layers)
    assert node["model.layers.1"].dtype == np.float32
    dataset = plain(url, group="models/seed0")
    np.testing.assert_array_equal(dataset["model.layers.1"][0].values, step_arrays(1)["model.layers.1"])


def test_a_queued_buffer_may_be_reused_by_the_caller(url, probe_set, layers, step_arrays):
    buffers = step_arrays(0)
    with open_writer(url, probe_set, layers) as writer:
        for step in range(5):
            for name, values in step_arrays(step).items():
                buffers[name][:] = values
            writer.append(step, buffers)
    tree = ra.open_store(url)
    for name in layers:
        for step in range(5):
            np.testing.assert_array_equal(
                catalog.activations(tree, "seed0", name).sel(step=step).values, step_arrays(step)[name]
            )


def test_resume_goes_on_where_the_record_ends(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(1, step_arrays(1))
    with open_writer(url, probe_set, layers) as writer:
        assert writer.committed == [1]
        with pytest.raises(StepOrderError, match=r"step 1 .* last one is 1"):
            writer.append(1, step_arrays(1))
        writer.append(2, step_arrays(2))
    assert catalog.steps(ra.open_store(url), "seed0") == [1, 2]


def test_truncation_drops_later_steps_and_their_chunks(url, probe_set, layers, step_arrays, tmp_path):
    with open_writer(url, probe_set, layers) as writer:
        for step in range(5):
            writer.append(step, step_arrays(step))
    with open_writer(url, probe_set, layers, truncate_after=2) as writer:
        assert writer.steps == [0, 1, 2]
        assert not list((tmp_path / "store.zarr/models/seed0/model.layers.0").glob("c.3*"))
        writer.append(3, step_arrays(33))
        writer.truncate(1)
        writer.append(2, step_arrays(22))
    tree = ra.open_store(url)
    assert catalog.steps(tree, "seed0") == [0, 1, 2]
    array = catalog.activations(tree, "seed0", "model.layers.0")
    np.testing.assert_array_equal(array.sel(step=2).values, step_arrays(22)["model.layers.0"])


@pytest.mark.parametrize("wrong", ["2", 1.5, True, None])
def test_a_truncation_goes_back_to_a_step(url, probe_set, layers, step_arrays, wrong):
    with open_writer(url, probe_set, layers) as writer:
        for step in range(3):
            writer.append(step, step_arrays(step))
        with pytest.raises(TypeError, match=f"step={wrong!r}: expected an integer"):
            writer.truncate(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=f"truncate_after={wrong!r}: expected an integer"):
            open_writer(url, probe_set, layers, truncate_after=wrong)
    with pytest.raises(ValueError, match="truncate_after=-1: expected a step, 0 or later"):  # as of no checkpoint
        open_writer(url, probe_set, layers, truncate_after=-1)
    assert catalog.steps(ra.open_store(url), "seed0") == [0, 1, 2]


def test_a_tree_opened_before_a_truncation_gives_no_later_step_for_an_earlier_one(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        for step in range(4):
            writer.append(step, step_arrays(step))
        writer.flush()
        tree = ra.open_store(url)
        writer.truncate(1)
        with pytest.raises(CorruptStoreError, match="step 3"):
            read_step(tree, "seed0", "model.layers.0", 3)
        for step in (10, 20):
            writer.append(step, step_arrays(step))
        writer.flush()
        for step in (2, 3):
            with pytest.raises(CorruptStoreError, match=f"step {step}"):
                read_step(tree, "seed0", "model.layers.0", step)
        np.testing.assert_array_equal(read_step(tree, "seed0", "model.layers.0", 1), step_arrays(1)["model.layers.0"])


def test_a_commit_is_forced_to_the_device_after_its_chunks_and_their_directories(
    url, probe_set, layers, step_arrays, monkeypatch
):
    events: list[tuple[str, int, str]] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino, ""))
        sync(descriptor)

    def watched_replace(self, target):
        events.append(("rename", self.stat().st_ino, str(target)))
        return replace(self, target)

    with open_writer(url, probe_set, layers) as writer:
        monkeypatch.setattr(os, "fsync", watched_sync)
        monkeypatch.setattr(Path, "replace", watched_replace)
        writer.append(0, step_arrays(0))
        writer.flush()
        happened = list(events)
    model = Path(url) / "models/seed0"
    commits = [at for at, (_, _, target) in enumerate(happened) if target == str(model / "zarr.json")]
    chunks = [at for at, (what, _, target) in enumerate(happened) if what == "rename" and "/c." in target]
    assert len(commits) == 1
    assert len(chunks) == len(layers) + len(STEP_COLUMNS) + 1
    for at in [*chunks, *commits]:
        _, file, target = happened[at]
        assert ("sync", file, "") in happened[:at], f"{target} appeared before it was on the device"
        until = commits[0] if at in chunks else len(happened)
        assert ("sync", Path(target).parent.stat().st_ino, "") in happened[at:until], f"the directory of {target}"


def test_bfloat16_is_stored_exactly_as_float32(url, probe_set):
    values = np.random.default_rng(0).normal(size=(6, 64)).astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
    layers = {"numpy": ((6, 64), "bfloat16"), "torch": ((6, 64), "bfloat16")}
    with open_writer(url, probe_set, layers) as writer:
        writer.append(0, {"numpy": values, "torch": tensor})
    for name in layers:
        array = catalog.activations(ra.open_store(url), "seed0", name)
        assert array.attrs["source_dtype"] == "bfloat16"
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array[0].values, values.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.popitem(), "missing"),
        (lambda arrays: arrays.update(other=np.zeros(3)), "unknown"),
        (lambda arrays: arrays.update({"model.layers.0": np.zeros((6, 4), "f4")}), "expected shape"),
        (lambda arrays: arrays.update({"model.layers.0": np.zeros((6, 3))}), "expected float32, found float64"),
        (lambda arrays: arrays.update({"model.layers.0": np.zeros((6, 3), "i4")}), "found int32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(url, probe_set, layers, step_arrays, change, message):
    arrays = step_arrays(0)
    change(arrays)
    with open_writer(url, probe_set, layers) as writer:
        with pytest.raises(LayoutError, match=message):
            writer.append(0, arrays)
        assert writer.steps == []


def test_another_probe_set_is_refused_with_both_fingerprints(url, probe_set, layers):
    open_writer(url, probe_set, layers).close()
    other = StoredProbeSet("e" * 64, probe_set.ids, probe_set.inputs)
    with pytest.raises(FingerprintError, match=f"{'f' * 64}.*{'e' * 64}"):
        open_writer(url, other, layers, model_name="seed1")


def test_a_second_writer_of_a_model_is_refused_until_the_first_closes(url, probe_set, layers):
    first = open_writer(url, probe_set, layers)
    with pytest.raises(LeaseError, match="another writer"):
        open_writer(url, probe_set, layers)
    open_writer(url, probe_set, layers, model_name="seed1").close()
    first.close()
    open_writer(url, probe_set, layers).close()


def test_if_exists(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(5, step_arrays(5))
    with pytest.raises(ModelExistsError, match="seed0"):
        open_writer(url, probe_set, layers, if_exists="error")
    with open_writer(url, probe_set, {"other": ((6, 2), "float64")}, if_exists="replace") as writer:
        assert writer.steps == []
        writer.append(1, {"other": np.ones((6, 2))})
    tree = ra.open_store(url)
    assert catalog.layers(tree, "seed0") == ["other"]
    assert catalog.steps(tree, "seed0") == [1]


def test_other_layers_are_refused_on_resume(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(5, step_arrays(5))
    with pytest.raises(LayoutError, match="keeps its layers"):
        open_writer(url, probe_set, {"other": ((6, 2), "float64")})
    with pytest.raises(LayoutError, match="shape"):
        open_writer(url, probe_set, dict.fromkeys(layers, ((6, 4), "float32")))


def test_a_closed_writer_takes_no_steps(url, probe_set, layers, step_arrays):
    writer = open_writer(url, probe_set, layers)
    writer.close()
    writer.close()
    with pytest.raises(WriterClosedError):
        writer.append(0, step_arrays(0))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "float64", "bfloat16"])
def test_inputs_of_any_kind_and_size_are_kept(url, dtype, monkeypatch):
    monkeypatch.setattr("repaudit.store.write.inputs.CHUNK_BYTES", 100)
    pixels = (np.arange(7 * 3 * 5).reshape(7, 3, 5) % 2).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    probe_set = StoredProbeSet("a" * 64, [str(i) for i in range(7)], {"pixel_values": pixels})
    open_writer(url, probe_set, {"x": ((7, 2), "float32")}).close()
    stored = catalog.inputs(ra.open_store(url))["pixel_values"]
    assert stored.dims == ("sample", "pixel_values_1", "pixel_values_2")
    np.testing.assert_array_equal(stored.values, pixels.astype("float32") if dtype == "bfloat16" else pixels)
    assert ra.verify(url, data=True) == []


def test_inputs_that_zarr_cannot_hold_are_refused(url):
    probe_set = StoredProbeSet("a" * 64, ["s"], {"words": np.array(["a"])})
    with pytest.raises(ProbeSetError, match="words has dtype <U1"):
        open_writer(url, probe_set, {"x": ((1, 2), "float32")})


def test_coordinates_are_taken_when_a_step_is_appended(url, probe_set, layers, step_arrays):
    loss, epoch = torch.tensor(1.0, requires_grad=True), np.array(2.0)
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers) as writer:
        changed, put_many = threading.Event(), writer._record.storage.put_many
        writer._record.storage.put_many = lambda objects: (changed.wait(10), put_many(objects))
        writer.append(0, step_arrays(0), loss=loss, epoch=epoch)
        with torch.no_grad():
            loss += 5
        epoch += 5
        changed.set()
    dataset = catalog.model_dataset(ra.open_store(url), "m")
    assert (float(dataset.loss[0]), float(dataset.epoch[0])) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("keywords", "kind"),
    [
        ({"loss": "much"}, ValueError),
        ({"epoch": [1, 2]}, TypeError),
        ({"wall_time": float("nan")}, ValueError),
        ({"step": 10.7}, TypeError),
        ({"step": True}, TypeError),
    ],
)
def test_wrong_coordinates_are_refused_at_once(url, probe_set, layers, step_arrays, keywords, kind):
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers) as writer:
        with pytest.raises(kind):
            writer.append(**{"step": 0, "arrays": step_arrays(0)} | keywords)
        assert writer.steps == []
        writer.append(0, step_arrays(0))
    assert writer.committed == [0]


def test_an_interrupted_close_is_finished_by_the_next(url, probe_set, layers, step_arrays, monkeypatch):
    writer = ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers)
    writer.append(0, step_arrays(0))
    with monkeypatch.context() as interrupted:

        def interrupt(timeout=None):
            raise KeyboardInterrupt

        interrupted.setattr(writer._committer.thread, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    writer.close()
    assert not writer._committer.thread.is_alive()
    assert writer.committed == [0]


def test_an_interrupted_append_may_be_repeated(url, probe_set, layers, step_arrays, monkeypatch):
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers) as writer:
        with monkeypatch.context() as interrupted:

            def interrupt(*_item, **_options):
                raise KeyboardInterrupt

            interrupted.setattr(writer._committer.queue, "put", interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.append(0, step_arrays(0))
        writer.append(0, step_arrays(0))
    assert writer.committed == [0]


FORK = """
import os, signal, sys
import numpy as np
import repaudit as ra
from repaudit.errors import WriterClosedError
from repaudit.store.read.stored_probe_set import StoredProbeSet
probe_set = StoredProbeSet("a" * 64, ["a", "b"], {"x": np.zeros((2, 2))})
arrays = {"l": np.ones((2, 3), "float32")}
writer = ra.TrajectoryWriter(sys.argv[1], model_name="m", probe_set=probe_set, layers={"l": ((2, 3), "float32")})
writer.append(0, arrays)
child = os.fork()
if child == 0:
    signal.alarm(20)
    refused = 0
    more = (lambda: writer.truncate(0), lambda: writer.note_gap(3, 'x'))
    for act in (lambda: writer.append(1, arrays), writer.flush, *more):
        try:
            act()
        except WriterClosedError as error:
            refused += "forked" in str(error)
    writer.close()
    os._exit(refused)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
writer.append(1, arrays)
writer.close()
print(status, writer.committed)
"""


def test_a_forked_child_is_refused_the_parents_writer_and_cannot_close_it(url):
    run = subprocess.run([sys.executable, "-c", FORK, url], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == "4 [0, 1]\n", run.stderr
    assert ra.verify(url, data=True) == []


FORK_DURING_FLUSH = """
import os, signal, sys, threading, time
import numpy as np
import repaudit as ra
from repaudit import interrupts
from repaudit.store.read.stored_probe_set import StoredProbeSet
probe_set = StoredProbeSet("a" * 64, ["a", "b"], {"x": np.zeros((2, 2))})
arrays = {"l": np.ones((2, 3), "float32")}
if sys.argv[2] == "handled":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
writer = ra.TrajectoryWriter(sys.argv[1], model_name="m", probe_set=probe_set, layers={"l": ((2, 3), "float32")})
commit, ended, codes = writer._record.append, threading.Event(), []
writer._record.append = lambda *step: ended.wait(40) and commit(*step)

def fork():
    for _ in range(int(sys.argv[3])):
        while not interrupts._SIGNALS.replaced:
            pass
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    ended.set()

thread = threading.Thread(target=fork)
writer.append(0, arrays)
thread.start()
writer.flush()
thread.join()
writer.close()
print(sorted(set(codes)), writer.committed)
"""


@pytest.mark.parametrize(("kind", "code"), [("default", -15), ("handled", 7)])
def test_a_child_forked_by_another_thread_during_a_flush_obeys_sigterm(url, kind, code):
    arguments = [sys.executable, "-c", FORK_DURING_FLUSH, url, kind, "10"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=90)
    assert run.stdout == f"[{code}] [0]\n", run.stderr
    assert ra.verify(url, data=True) == []


def test_several_threads_append_without_loss_or_disorder(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        counter, lock = iter(range(10_000)), threading.Lock()

        def append():
            for _ in range(10):
                with lock:
                    step = next(counter)
                with contextlib.suppress(StepOrderError):  # another thread was quicker with a later step
                    writer.append(step, step_arrays(step))

        threads = [threading.Thread(target=append) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.flush()
        assert writer.committed == writer.steps == sorted(set(writer.steps))
    tree = ra.open_store(url)
    array = catalog.activations(tree, "seed0", "model.layers.0")
    for step in writer.committed:
        np.testing.assert_array_equal(array.sel(step=step).values, step_arrays(step)["model.layers.0"])


def test_truncation_across_coordinate_chunks_leaves_nothing_behind(url, probe_set, monkeypatch):
    modules = ("write.commit", "write.columns", "format.layout", "format.encoding", "format.step_columns")
    for module in (*modules, "check.model_inspection", "check.verify"):
        monkeypatch.setattr(f"repaudit.store.{module}.COORDINATE_CHUNK", 4)
    layers = {"x": ((6, 1), "float32")}
    with open_writer(url, probe_set, layers) as writer:
        for step in range(11):
            writer.append(step, {"x": np.full((6, 1), step, "f4")})
        writer.truncate(1)
        writer.flush()
    assert ra.verify(url, data=True) == []
    assert catalog.steps(ra.open_store(url), "seed0") == [0, 1]


def test_damaged_step_numbers_do_not_keep_a_run_from_going_on(url, probe_set, layers, step_arrays, tmp_path):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(5, step_arrays(5))
    (tmp_path / "store.zarr/models/seed0/step/c.0").write_text("{")
    with open_writer(url, probe_set, layers) as writer:
        assert writer.steps == [5]
        writer.append(6, step_arrays(6))
    assert catalog.steps(ra.open_store(url), "seed0") == [5, 6]


@pytest.mark.parametrize("damage", ["zarr.json"])
def test_a_damaged_model_can_be_replaced(url, probe_set, layers, step_arrays, tmp_path, damage):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(5, step_arrays(5))
    (tmp_path / "store.zarr/models/seed0" / damage).write_text("{")
    with pytest.raises(CorruptStoreError, match="repair"):
        open_writer(url, probe_set, layers)
    with open_writer(url, probe_set, layers, if_exists="replace") as writer:
        writer.append(1, step_arrays(1))
    assert ra.verify(url, data=True) == []


def test_a_lost_document_does_not_cost_the_arrays_when_the_run_resumes(url, probe_set, layers, step_arrays, tmp_path):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(5, step_arrays(5))
    (tmp_path / "store.zarr/models/seed0/zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match=r"document of model 'seed0' is lost.*repair"):
        open_writer(url, probe_set, layers)
    ra.repair(url)
    with open_writer(url, probe_set, layers) as writer:
        assert writer.committed == [5]


def test_a_writer_forgotten_in_this_process_is_named_as_such(url, probe_set, layers):
    writer = open_writer(url, probe_set, layers)
    with pytest.raises(LeaseError, match=r"opened in this process.*notebook"):
        open_writer(url, probe_set, layers)
    writer.close()


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float32"), torch.float32, "f4", ">f4"])
def test_dtypes_are_taken_as_people_write_them(url, probe_set, dtype):
    with open_writer(url, probe_set, {"x": ((6, 2), dtype)}) as writer:
        writer.append(0, {"x": np.ones((6, 2), "f4")})
    assert ra.open_store(url)["models/seed0"]["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layer_attrs": {"x": {"scale_factor": 2.0}}}, "scale_factor"),
        ({"layer_attrs": {"x": {"_FillValue": 0}}}, "_FillValue"),
        ({"layer_attrs": {"x": {"units": "days since 2000-01-01"}}}, "days since"),
        ({"layer_attrs": {"x": {"long_name": 5}}}, "long_name"),
        ({"layer_attrs": {"x": {"rate": float("nan")}}}, "JSON can hold"),
        ({"model_attrs": {"rate": np.float32(1)}}, "JSON can hold"),
        ({"model_name": ""}, "name of a model"),
        ({"model_name": None}, "name of a model"),
        ({"model_name": "\ud800"}, "name of a model"),
        ({"layers": {"": ((6, 2), "float32")}}, "name of a layer"),
        ({"layers": {"x": ((6, 2**30), "float32")}}, "one chunk"),
        ({"layers": {"x": ((6, 2), object())}}, "dtype"),
    ],
)
def test_what_readers_would_refuse_or_misread_is_refused_at_the_start(url, probe_set, keywords, message):
    with pytest.raises(LayoutError, match=message):
        open_writer(url, probe_set, **{"layers": {"x": ((6, 2), "float32")}} | keywords)


def test_a_step_of_many_gigabytes_is_believed_where_its_chunks_are_small():
    from repaudit.store.format.layer_layout import lay_out_layers
    from repaudit.store.format.schema import unbelievable

    (layer,) = lay_out_layers({"x": ((2**16, 2**17), "float32")}, 2**16)
    assert unbelievable(layer.document(3)) is None
    tiny = layer.document(3)
    tiny["codecs"][0]["configuration"]["chunk_shape"] = [1, 1, 1]
    assert "chunks" in str(unbelievable(tiny))


def test_a_tilde_is_the_home_folder(tmp_path, probe_set, layers, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    open_writer("~/s.zarr", probe_set, layers).close()
    assert (tmp_path / "s.zarr/zarr.json").exists()
    assert catalog.models(ra.open_store("~/s.zarr")) == ["seed0"]


def test_a_file_at_the_place_of_the_store_is_a_clear_error(tmp_path, probe_set, layers):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotAStoreError, match="is a file"):
        open_writer(tmp_path / "file", probe_set, layers)


def record_and_leave(url, probe_set, layers, arrays):
    ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers).append(0, arrays)


def test_a_multiprocessing_child_that_does_not_close_keeps_its_steps(url, probe_set, layers, step_arrays):
    child = multiprocessing.get_context("forkserver").Process(
        target=record_and_leave, args=(url, probe_set, layers, step_arrays(0))
    )
    child.start()
    child.join()
    assert catalog.steps(ra.open_store(url), "m") == [0]
    assert ra.verify(url, data=True) == []


def test_a_gap_that_the_recorder_notes_is_committed_like_a_failed_write(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        writer.append(1, step_arrays(1))
        writer.note_gap(2, "RuntimeError: no activations")
        writer.note_gap(2, "again")
        writer.append(3, step_arrays(3))
        writer.flush()
        (gap,) = catalog.gaps(ra.open_store(url), "seed0")
        assert (gap["step"], gap["reason"]) == (2, "RuntimeError: no activations")
        writer.note_gap(5, "late")
    tree = ra.open_store(url)
    assert catalog.steps(tree, "seed0") == [1, 3]
    assert [gap["step"] for gap in catalog.gaps(tree, "seed0")] == [2, 5]
    assert ra.verify(url, data=True) == []


def test_a_noted_gap_is_no_gap_once_its_step_is_recorded_or_cut_off(url, probe_set, layers, step_arrays):
    with open_writer(url, probe_set, layers) as writer:
        for step in (1, 9):
            writer.note_gap(step, "failed")
        writer.append(1, step_arrays(1))
        writer.truncate(4)
        assert writer.gaps == []
        for step in (1, -1):
            with pytest.raises(StepOrderError, match=rf"step {step} .*(in the record|negative)"):
                writer.note_gap(step, "no")
    with pytest.raises(WriterClosedError):
        writer.note_gap(2, "late")
    assert catalog.gaps(ra.open_store(url), "seed0") == []
