"""Dask workers give what threads give, also when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

import repaudit as ra
from repaudit.analysis import execution
from repaudit.errors import AnalysisError

BARE = {"frames": 0, "units": 0, "similarity": ()}
pytestmark = pytest.mark.usefixtures("undrawn")
distributed = pytest.importorskip("distributed", reason="the extra `distributed` is not installed")


def assert_same_spread(first, second):
    for name in ("spread", "low", "high", "hellinger"):
        np.testing.assert_allclose(first["spread"][name], second["spread"][name], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(first["diagnostics"]["entropy"], second["diagnostics"]["entropy"], rtol=1e-6)


def test_a_scheduler_gives_what_threads_give(planted_store, tmp_path):
    url = planted_store(layers=("only",))
    local = ra.analyze(url, tmp_path / "local", **BARE)
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster:
        remote = ra.analyze(url, tmp_path / "remote", scheduler=cluster.scheduler_address, **BARE)
    assert_same_spread(local, remote)


def test_a_killed_worker_costs_time_and_nothing_else(planted_store, tmp_path):
    url = planted_store(layers=("only",))
    local = ra.analyze(url, tmp_path / "local", **BARE)
    killed = []

    def kill(what, done, _total):
        if what == "operators" and done >= 5 and not killed:
            workers = [
                child
                for child in psutil.Process().children(recursive=True)
                if "spawn_main" in " ".join(child.cmdline()) and not child.children()
            ]
            killed.append(workers[-1].pid)
            os.kill(workers[-1].pid, signal.SIGKILL)

    remote = ra.analyze(url, tmp_path / "remote", workers=2, progress=kill, **BARE)
    assert killed
    assert_same_spread(local, remote)


def test_an_analysis_whose_workers_are_all_gone_ends(planted_store, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "LOOKED_AFTER", 0.2)
    monkeypatch.setattr(execution, "PATIENCE", 1.0)
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")

    def leave(what, done, _total):
        if what == "operators" and done == 2:
            cluster.scale(0)

    with (
        cluster,
        pytest.raises(AnalysisError, match=r"workers at tcp://.*, found none for 1 s; what is computed is kept"),
    ):
        ra.analyze(
            planted_store(models=2), tmp_path / "out", scheduler=cluster.scheduler_address, progress=leave, **BARE
        )


def test_a_scheduler_that_does_not_answer_is_named(planted_store, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "CONNECTING", "1s")
    with pytest.raises(AnalysisError, match=r"tcp://127.0.0.1:9"):
        ra.analyze(planted_store(models=1), tmp_path / "out", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(AnalysisError, match="give one of them"):
        ra.analyze(planted_store(models=1, name="b.zarr"), tmp_path / "out", scheduler="tcp://127.0.0.1:9", workers=1)


def test_few_results_wait_whatever_the_number_of_items():
    started, finished, most = [], [], 0
    with execution.ThreadPoolExecutor(2) as executor:
        place = execution.Workplace(executor, 2)
        for item, result in place.run(lambda item: started.append(item) or item * item, iter(range(100))):
            finished.append(item)
            most = max(most, len(started) - len(finished))
            assert result == item * item
    assert sorted(finished) == list(range(100))
    assert most <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives(planted_store, tmp_path):
    url = planted_store()
    first, second = (ra.analyze(url, tmp_path / device, device=device, **BARE) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(first["spread"]["spread"], second["spread"]["spread"], rtol=1e-4, atol=1e-6)


def test_a_device_that_is_not_there_is_refused(planted_store, tmp_path):
    with pytest.raises(AnalysisError, match="device"):
        ra.analyze(planted_store(models=1), tmp_path / "out", device="nonsense")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not give processes some cores only")
def test_no_more_work_at_once_than_cores_that_the_process_may_use():
    program = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from types import SimpleNamespace as Some\n"
        "from repaudit.analysis.convergence import at_once\n"
        "samples = Some(sizes={'sample': 10})\n"
        "print(at_once(Some(samples=samples, settings=Some(budget=10**9), selection=Some(layers=['a']))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"


@pytest.mark.parametrize("guard", [pytest.param(True, marks=pytest.mark.slow), False], ids=["guarded", "unguarded"])
def test_a_script_without_its_guard_is_told_so(planted_store, tmp_path, guard):
    url = str(planted_store(layers=("only",)))
    own, calls = str(tmp_path / "own.zarr"), [
        "probe_set = ra.ProbeSet.from_tensors({'input': torch.eye(4)})",
        f"with ra.Recorder({str(tmp_path / 'own.zarr')!r}, 'm', probe_set, '[0]', if_exists='replace', "
        "model_attrs={'process': os.getpid()}) as r: r.audit(torch.nn.Sequential(torch.nn.Linear(4, 2)), 0)",
        f"print(os.getpid()); ra.analyze({url!r}, workers=1, frames=0, units=0, similarity=(), figures='none')",
    ]  # fmt: skip
    script = tmp_path / "script.py"
    guarded = ['if __name__ == "__main__":', *(f"    {call}" for call in calls)] if guard else calls
    script.write_text("\n".join(["import os, torch, repaudit as ra", *guarded, ""]))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode == 0) == guard, run.stderr
    if not guard:
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("repaudit.errors.AnalysisError: workers: they did not start")
        assert last.endswith('has its calls under if __name__ == "__main__":')
        assert len(run.stderr.splitlines()) < 40
        assert f"recording to {own} is left out in process" in run.stderr
    tree = ra.open_store(own)
    assert json.loads(tree["models/m"].attrs["repaudit"])["process"] == int(run.stdout.split()[0]), (
        "a worker has replaced it"
    )
