"""Several processes, one store: a model each all get through; two on one model do not; locally and on S3."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import repaudit as ra
from repaudit.store.read import catalog

WRITER = """
import json, sys, time
import numpy as np
import repaudit as ra
from repaudit.errors import LeaseError
from repaudit.store.read.stored_probe_set import StoredProbeSet

url, model, seed, steps, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
probe_set = StoredProbeSet("c" * 64, ["a", "b", "c"], {"x": np.arange(6).reshape(3, 2)}, labels=["l"] * 3)
try:
    with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers={"l": ((3, 4), "float32")},
                             storage_options=options) as writer:
        for step in range(steps):
            writer.append(step, {"l": np.random.default_rng([seed, step]).normal(size=(3, 4)).astype("float32")})
        writer.flush()
        if len(sys.argv) > 6:
            print("holding", flush=True)
            sys.stdin.read()
except LeaseError as error:
    print("refused:", error, flush=True)
    sys.exit(7)
"""


def start(url, model, seed, steps, options, *more):
    command = [sys.executable, "-W", "error", "-W", "default::DeprecationWarning", "-c", WRITER]
    command += [str(url), model, str(seed), str(steps), json.dumps(options), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "shared.zarr"), {}
    return f"s3://bucket/{tmp_path.name}/shared.zarr", request.getfixturevalue("s3")


def open_tree(url, options):
    return ra.open_store(url, options or None)


def test_four_processes_with_a_model_each(place):
    url, options = place
    steps = 5
    processes = [start(url, f"seed{seed}", seed, steps, options) for seed in range(4)]
    results = [finish(process) for process in processes]
    assert [code for code, _ in results] == [0] * 4, results
    tree = open_tree(url, options)
    assert catalog.models(tree) == [f"seed{seed}" for seed in range(4)]
    for seed in range(4):
        values = catalog.activations(tree, f"seed{seed}", "l").values
        for step in range(steps):
            expected = np.random.default_rng([seed, step]).normal(size=(3, 4)).astype("float32")
            np.testing.assert_array_equal(values[step], expected)
    assert ra.verify(url, data=True, storage_options=options or None) == []


def test_the_second_process_on_a_model_is_refused_and_the_first_unharmed(place):
    url, options = place
    first = start(url, "seed0", 0, 3, options, "hold")
    assert first.stdout.readline() == "holding\n"
    code, out = finish(start(url, "seed0", 1, 3, options))
    assert code == 7, out
    assert "is being written by another writer" in out
    code, out = finish(first)
    assert code == 0, out
    code, out = finish(start(url, "seed0", 0, 2, options))
    assert code != 0
    assert "StepOrderError" in out
    assert catalog.steps(open_tree(url, options), "seed0") == [0, 1, 2]
    assert ra.verify(url, data=True, storage_options=options or None) == []


def test_a_writer_killed_on_the_way_is_replaced_at_once(place):
    url, options = place
    first = start(url, "seed0", 0, 3, options, "hold")
    assert first.stdout.readline() == "holding\n"
    first.kill()
    finish(first)
    started = time.monotonic()
    code, out = finish(start(url, "seed0", 0, 0, options))
    assert code == 0, out
    assert time.monotonic() - started < 60
    assert catalog.steps(open_tree(url, options), "seed0") == [0, 1, 2]


@pytest.mark.slow
def test_truncation_and_repair_work_on_s3(s3, tmp_path, probe_set):
    url = f"s3://bucket/{tmp_path.name}/store.zarr"
    layers = {"l": ((4, 2), "float32")}
    keywords = {"model_name": "m", "probe_set": probe_set, "layers": layers, "storage_options": s3}
    with ra.TrajectoryWriter(url, **keywords) as writer:
        for step in range(4):
            writer.append(step, {"l": np.full((4, 2), step, "float32")})
    with ra.TrajectoryWriter(url, truncate_after=2, **keywords) as writer:
        assert writer.steps == [0, 1, 2]
        writer.append(5, {"l": np.full((4, 2), 5, "float32")})
    import s3fs

    s3fs.S3FileSystem(**s3).rm_file(f"{url}/models/m/l/c.1.0.0")
    assert [problem.kind for problem in ra.verify(url, storage_options=s3)] == ["missing_chunk"]
    assert [repaired.lost for repaired in ra.repair(url, storage_options=s3)] == [[1]]
    tree = ra.open_store(url, s3)
    assert catalog.activations(tree, "m", "l").values[:, 0, 0].tolist() == [0.0, 2.0, 5.0]
    assert ra.verify(url, data=True, storage_options=s3) == []
