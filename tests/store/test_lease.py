"""One writer a model: living ones are respected, dead ones replaced, forced ones told."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from repaudit.errors import LeaseError, StoreError
from repaudit.store.storage.lease import Holder, Lease, _process_start, abandoned, mark
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.place import open_storage

KEY = "models/m/.lease"


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    place = tmp_path / "s.zarr" if request.param == "local" else f"memory://{tmp_path.name}.zarr"
    storage = open_storage(place, durable=False)
    storage.put("models/m/zarr.json", [b"{}"])
    return storage


def plant(storage, **changes) -> None:
    """Leave a lease as another process would have."""
    storage.put(KEY, [dataclasses.replace(Holder.current(60.0), **changes).dump()])


def assert_taken(storage) -> None:
    """Take the lease at once: it is ours, it holds, and it leaves nothing behind."""
    lease = Lease(storage, KEY, "model 'm'")
    assert json.loads(storage.get(KEY))["token"] == lease.holder.token
    lease.check()
    with pytest.raises(LeaseError, match="another writer"):
        Lease(storage, KEY, "model 'm'")
    lease.release()
    assert storage.get(KEY) is None


def test_a_living_lease_is_refused_and_free_after_release(storage):
    lease = Lease(storage, KEY, "model 'm'")
    with pytest.raises(LeaseError, match=f"model 'm' is being written by another writer .*{os.getpid()}"):
        Lease(storage, KEY, "model 'm'")
    lease.release()
    assert_taken(storage)


def test_the_lease_of_a_dead_process_on_this_host_is_taken_at_once(storage):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    plant(storage, pid=dead.pid, process_start="12345")
    assert_taken(storage)


def test_a_process_number_used_again_does_not_keep_a_lease_alive(storage):
    plant(storage, pid=os.getppid(), process_start="1")
    assert_taken(storage)


def test_the_lease_of_a_living_process_is_respected(storage):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        plant(storage, pid=process.pid, process_start=_process_start(process.pid), heartbeat=0.0)
        with pytest.raises(LeaseError):
            Lease(storage, KEY, "model 'm'")
        process.kill()
    assert_taken(storage)


def test_a_lease_from_another_host_holds_for_its_term(storage):
    plant(storage, host="elsewhere", heartbeat=time.time() - 59)
    with pytest.raises(LeaseError, match="elsewhere"):
        Lease(storage, KEY, "model 'm'")
    plant(storage, host="elsewhere", heartbeat=time.time() - 61, term=0.3)
    started = time.monotonic()
    assert_taken(storage)
    assert time.monotonic() - started > 0.3, "it was watched for its term"


def test_the_heartbeat_is_renewed(storage):
    lease = Lease(storage, KEY, "model 'm'", term=0.15)
    first = json.loads(storage.get(KEY))["heartbeat"]
    deadline = time.monotonic() + 10
    while json.loads(storage.get(KEY))["heartbeat"] == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(storage.get(KEY))["heartbeat"] > first
    lease.release()


def test_force_takes_a_living_lease_and_the_former_holder_learns_it(storage):
    first = Lease(storage, KEY, "model 'm'")
    second = Lease(storage, KEY, "model 'm'", force=True)
    with pytest.raises(LeaseError, match="taken over"):
        first.check()
    first.release()
    second.check()
    second.release()


def test_an_unreadable_lease_is_nobodys(storage):
    storage.put(KEY, [b"\x00 torn"])
    assert_taken(storage)


@pytest.mark.thin(2)
def test_of_many_heirs_of_a_stale_lease_one_gets_it(storage):
    for _ in range(10):
        plant(storage, host="elsewhere", heartbeat=0.0, term=0.2)
        barrier = threading.Barrier(8)

        def inherit(barrier=barrier):
            barrier.wait()
            try:
                return Lease(storage, KEY, "model 'm'")
            except LeaseError:
                return None

        with ThreadPoolExecutor(8) as pool:
            leases = [future.result() for future in [pool.submit(inherit) for _ in range(8)]]
        held = [lease for lease in leases if lease is not None]
        assert len(held) == 1
        held[0].check()
        held[0].release()


@pytest.mark.parametrize("ahead", [-120.0, 120.0])
@pytest.mark.thin(2)
def test_a_clock_that_is_wrong_does_not_cost_a_living_writer_its_lease(storage, ahead):
    holder = dataclasses.replace(Holder.current(0.6), host="elsewhere")
    ended = threading.Event()

    def beat():
        while not ended.wait(0.2):
            storage.put(KEY, [dataclasses.replace(holder, heartbeat=time.time() + ahead).dump()])

    storage.put(KEY, [dataclasses.replace(holder, heartbeat=time.time() + ahead).dump()])
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        for _ in range(8):
            with pytest.raises(LeaseError, match="elsewhere"):
                Lease(storage, KEY, "model 'm'")
            time.sleep(0.15)
    finally:
        ended.set()
        thread.join()
    Holder.parse(storage.get(KEY)).stale  # noqa: B018 - the first look starts the time
    time.sleep(0.7)
    assert_taken(storage)


def hide(monkeypatch, pid):
    """Hide a process from the process table, as hidepid=2 does with those of others."""
    read = Path.read_text

    def read_text(self, *args, **kwargs):
        if str(self) == f"/proc/{pid}/stat":
            raise FileNotFoundError(self)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)


def test_a_living_writer_that_the_process_table_hides_keeps_its_lease(storage, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        start = _process_start(process.pid)
        hide(monkeypatch, process.pid)
        plant(storage, pid=process.pid, process_start=start)
        with pytest.raises(LeaseError, match="another writer"):
            Lease(storage, KEY, "model 'm'")
        assert not abandoned(f".{mark().split('-')[0]}-{process.pid}-{start}-{int(time.time())}-x")
        plant(storage, pid=process.pid, process_start=start, term=0.3, heartbeat=time.time() - 1)
        assert_taken(storage)  # silent for its term
        process.kill()
    plant(storage, pid=process.pid, process_start=start)
    assert_taken(storage)  # gone, at once


WRONG = ["x", None, 3.5, -1, 10**400, [], {}, True, "../../../x", "\0", "\ud800", float("nan"), float("inf")]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Holder)])
def test_a_lease_with_wrong_types_is_refused_or_nobodys(storage, field):
    for value in WRONG:
        storage.put(KEY, [json.dumps(json.loads(Holder.current(60.0).dump()) | {field: value}).encode()])
        with contextlib.suppress(LeaseError):  # no other error is right
            Lease(storage, KEY, "model 'm'").release()
    for text in (b"[1]", b"3", b"null", b"[" * 100_000, b'{"token": 1}'):
        storage.put(KEY, [text])
        assert_taken(storage)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_told(tmp_path, monkeypatch, code):
    def link(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    storage = open_storage(tmp_path / "s.zarr", durable=False)
    storage.put("models/m/zarr.json", [b"{}"])
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="no hard links"):
        Lease(storage, KEY, "model 'm'")
    assert [key for key in storage.keys() if not key.endswith(".lock")] == ["models/m/zarr.json"]  # noqa: SIM118


def test_a_model_that_is_being_created_is_not_emptied_by_who_clears_unfinished_writes(tmp_path, monkeypatch):
    storage, rename = LocalStorage(tmp_path), Path.rename

    def stopped_halfway(path, **_):
        for file in path.iterdir():
            file.unlink()

    def late(path, target):
        monkeypatch.setattr(Path, "rename", rename)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", stopped_halfway)
            LocalStorage(tmp_path).discard_staged("probe")
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", late)
    assert storage.create("models/m/zarr.json", b"{}")
    assert storage.get("models/m/zarr.json") == b"{}"
