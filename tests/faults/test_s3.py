"""A store on S3: heirs of the dead, races, puts that fail, and readers that remember old listings."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import s3fs

import repaudit as ra
from repaudit.errors import LeaseError, RepauditError, StoreWarning
from repaudit.store.read import catalog
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.remote import RemoteStorage
from repaudit.store.write import retrying as failures
from tests.faults.conftest import LAYERS, step_arrays

CHILD = """
import json, os, sys
import repaudit as ra
from repaudit.store.storage import lease
from repaudit.store.read.stored_probe_set import StoredProbeSet
from tests.faults.conftest import LAYERS, SAMPLES, step_arrays
import numpy as np

url, options, steps, host = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
lease._host = lambda: host
lease.Lease.__init__.__kwdefaults__["term"] = 3.0
inputs = {"input_ids": np.arange(SAMPLES * 2).reshape(SAMPLES, 2)}
probe_set = StoredProbeSet("a" * 64, [f"s{i}" for i in range(SAMPLES)], inputs, labels=["x"] * SAMPLES)
writer = ra.TrajectoryWriter(url, model_name="seed0", probe_set=probe_set, layers=LAYERS, storage_options=options)
for step in range(steps):
    writer.append(step, step_arrays(step))
writer.flush()
os._exit(5)
"""


@pytest.fixture
def url(tmp_path):
    return f"s3://bucket/{tmp_path.name}/store.zarr"


@pytest.fixture
def keywords(probe_set):
    return {"model_name": "seed0", "probe_set": probe_set, "layers": LAYERS}


def assert_whole(url, options, steps) -> None:
    tree = ra.open_store(url, options)
    assert catalog.steps(tree, "seed0") == list(steps)
    for name in LAYERS if steps else ():
        wanted = np.stack([step_arrays(step)[name] for step in steps])
        np.testing.assert_array_equal(catalog.activations(tree, "seed0", name).values, wanted)
    assert not [problem for problem in ra.verify(url, data=True, storage_options=options) if problem.kind != "leftover"]


def test_a_writer_gone_without_a_word_on_another_host_is_replaced_after_its_term(s3, url, keywords):
    command = [sys.executable, "-W", "error", "-c", CHILD, url, json.dumps(s3), "3", "elsewhere"]
    died = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert died.returncode == 5, died.stderr
    with pytest.raises(LeaseError, match="elsewhere"):
        ra.TrajectoryWriter(url, **keywords, storage_options=s3)
    time.sleep(3.5)  # the child's term is three seconds
    with ra.TrajectoryWriter(url, **keywords, storage_options=s3) as writer:
        assert writer.steps == [0, 1, 2]
        writer.append(3, step_arrays(3))
    assert_whole(url, s3, range(4))
    assert ra.verify(url, data=True, storage_options=s3) == []


def test_of_writers_that_race_for_a_model_one_gets_it(s3, url, keywords):
    for _ in range(3):
        barrier = threading.Barrier(4)

        def claim(barrier=barrier):
            barrier.wait()
            try:
                return ra.TrajectoryWriter(url, **keywords, if_exists="replace", storage_options=s3)
            except LeaseError:
                return None

        with ThreadPoolExecutor(4) as pool:
            writers = [future.result() for future in [pool.submit(claim) for _ in range(4)]]
        won = [writer for writer in writers if writer is not None]
        assert len(won) == 1
        for step in range(2):
            won[0].append(step, step_arrays(step))
        won[0].close()
        assert_whole(url, s3, range(2))


def test_a_prefix_that_fills_while_it_is_listed_is_no_object(s3, url, keywords, monkeypatch):
    """Where nothing is listed, s3fs asks once more what the prefix is: a folder, if another writer was there first."""
    storage = open_storage(url, s3)
    listed = type(storage.filesystem)._lsdir

    async def empty_then_filled(self, path, **options):
        found = await listed(self, path, **options)
        if not found and path.endswith("models/seed0"):
            await self._pipe_file(f"{path}/.lease", b"{}")
        return found

    monkeypatch.setattr(type(storage.filesystem), "_lsdir", empty_then_filled)
    assert [key for key in storage.keys("models/seed0") if not key.endswith(".lease")] == []
    monkeypatch.undo()
    assert [key.strip("/") for key in storage.keys("models/seed0")] == ["models/seed0/.lease"]


def test_an_object_made_while_its_folder_is_listed_is_read(s3, url, keywords, monkeypatch):
    """s3fs reads by the listings that it remembers, also by one that was answered before the object was there."""
    storage = open_storage(url, s3)
    listed = type(storage.filesystem)._iterdir

    async def then_filled(self, *args, **options):
        async for entry in listed(self, *args, **options):
            yield entry
        bucket, key, _ = self.split_path(storage.path("models/seed0/.lease"))
        await self._call_s3("put_object", Bucket=bucket, Key=key, Body=b"{}")

    storage.put("models/seed0/zarr.json", [b"{}"])
    for list_them in (lambda: storage.children("models/seed0"), lambda: list(storage.keys("models/seed0"))):
        monkeypatch.setattr(type(storage.filesystem), "_iterdir", then_filled)
        list_them()
        monkeypatch.undo()
        assert storage.get("models/seed0/.lease") == b"{}"
        storage.delete("models/seed0/.lease")


class NoExclusiveCreate(RemoteStorage):
    """A store that knows no conditional put: of two creates at one moment, both think that they succeeded."""

    meeting: threading.Barrier | None = None

    def create(self, key: str, data: bytes) -> bool:
        free = self.size(key) is None
        if self.meeting is not None and key.endswith("seed0/.lease"):
            self.meeting.wait(10)
        if free:
            self.put(key, [data])
        return free


def test_without_exclusive_create_one_of_two_racing_writers_stays(s3, url, keywords):
    meeting = threading.Barrier(2)
    real = open_storage(url, s3)
    ra.TrajectoryWriter(url, **{**keywords, "model_name": "other"}, storage_options=s3).close()

    def run(number: int) -> Exception | None:
        storage = NoExclusiveCreate(real.filesystem, real.root, real.url)
        storage.meeting = meeting
        try:
            with ra.TrajectoryWriter(storage, **keywords) as writer:
                for step in range(5):
                    writer.append(step, step_arrays(step))
                    writer.flush()
        except RepauditError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        ends = [future.result() for future in [pool.submit(run, number) for number in range(2)]]
    assert [end for end in ends if isinstance(end, LeaseError)], ends
    assert sum(end is None for end in ends) == 1, ends
    assert_whole(url, s3, range(5))


@pytest.mark.parametrize("number", [1, 4, 9, 23])
@pytest.mark.thin(2)
def test_a_put_that_fails_costs_no_committed_step(number, s3, url, keywords, monkeypatch):
    monkeypatch.setattr(failures, "LONGEST_WAIT", 0.0)
    puts = iter(range(1, 10_000))
    whole = s3fs.S3FileSystem._pipe_file

    async def failing(self, path, data, **options):
        if next(puts) % number == 0 and "/models/seed0/" in path:
            raise OSError("503 slow down")
        await whole(self, path, data, **options)

    writer = ra.TrajectoryWriter(url, **keywords, on_store_error="warn", storage_options=s3)
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_pipe_file", failing)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", StoreWarning)
            for step in range(5):
                writer.append(step, step_arrays(step))
            writer.flush()
    writer.close()
    assert next(puts) > number, "nothing failed: the test tests nothing"
    gaps = [gap["step"] for gap in writer.gaps]
    assert len(told) == len(gaps)
    assert sorted([*writer.committed, *gaps]) == list(range(5))
    assert_whole(url, s3, writer.committed)


def test_a_lease_whose_put_was_answered_late_is_ours(s3, url, keywords, monkeypatch):
    """A client that tries a put again, because the answer was lost, is told that the object is there: its own."""
    create = RemoteStorage.create

    def answered_late(self, key, data):
        return create(self, key, data) and create(self, key, data)

    monkeypatch.setattr(RemoteStorage, "create", answered_late)
    with ra.TrajectoryWriter(url, **keywords, storage_options=s3) as writer:
        writer.append(0, step_arrays(0))
    assert_whole(url, s3, range(1))


def test_a_reader_that_was_there_before_sees_what_another_process_adds(s3, url, keywords):
    with ra.TrajectoryWriter(url, **keywords, storage_options=s3) as writer:
        writer.append(0, step_arrays(0))
    assert_whole(url, s3, range(1))
    reader = open_storage(url, s3)
    assert list(reader.keys())
    ra.open_store(url, s3).load()
    command = [sys.executable, "-W", "error", "-c", CHILD.replace("os._exit(5)", "writer.close()")]
    command[-1] = command[-1].replace("range(steps)", "range(1, steps)")
    done = subprocess.run(
        [*command, url, json.dumps(s3), "3", "elsewhere"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    other = command[-1].replace('"seed0"', '"seed1"').replace("range(1, steps)", "range(steps)")
    done = subprocess.run(
        [sys.executable, "-c", other, url, json.dumps(s3), "2", "elsewhere"], capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_whole(url, s3, range(3))
    assert catalog.models(ra.open_store(url, s3)) == ["seed0", "seed1"]
    assert reader.children("models/seed0/layer.0") == ["c.0.0.0", "c.1.0.0", "c.2.0.0", "zarr.json"]
    assert len([key for key in reader.keys("models/seed1/layer.0") if "/c." in key]) == 2
