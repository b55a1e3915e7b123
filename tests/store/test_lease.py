"""One writer a model: living ones are respected, dead ones replaced, forced ones told."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from repaudit.errors import LeaseError
from repaudit.store.storage.lease import Holder, Lease
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
        from repaudit.store.storage.lease import _process_start

        plant(storage, pid=process.pid, process_start=_process_start(process.pid), heartbeat=0.0)
        with pytest.raises(LeaseError):
            Lease(storage, KEY, "model 'm'")
        process.kill()
    assert_taken(storage)


def test_a_lease_from_another_host_holds_for_its_term(storage):
    plant(storage, host="elsewhere", heartbeat=time.time() - 59)
    with pytest.raises(LeaseError, match="elsewhere"):
        Lease(storage, KEY, "model 'm'")
    plant(storage, host="elsewhere", heartbeat=time.time() - 61)
    assert_taken(storage)


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


def test_of_many_heirs_of_a_stale_lease_one_gets_it(storage):
    for _ in range(10):
        plant(storage, host="elsewhere", heartbeat=0.0)
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
