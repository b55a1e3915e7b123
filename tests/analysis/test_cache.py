"""What is kept between runs: only what is new is computed, and what is damaged is computed again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.analysis.cache import Cache, digest
from repaudit.errors import AnalysisError
from repaudit.measure.distances import calibrated_distances

BARE = {"frames": 2, "units": 3, "similarity": ("mutual_knn",)}
pytestmark = pytest.mark.usefixtures("undrawn")


def operators_in(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "cache" / "operators").rglob("*.npy")}


def groups_of(results):
    return {name: results[name].to_dataset() for name in results.children}


def assert_equal(first, second, rtol):
    assert set(first.children) == set(second.children)
    for name, group in groups_of(first).items():
        for variable, array in group.data_vars.items():
            if array.dtype.kind == "f":
                other = second[name][variable].values
                scale = float(np.nanmax(np.abs(other), initial=0)) or 1.0
                np.testing.assert_allclose(
                    array.values, other, rtol=rtol, atol=rtol * scale, err_msg=f"{name}/{variable}"
                )
            else:
                np.testing.assert_array_equal(array.values, second[name][variable].values)


def test_a_grown_store_asks_for_its_new_steps_only(planted_store, tmp_path):
    steps, out = (0, 1, 4, 16), tmp_path / "out"
    url = planted_store(steps=steps)
    ra.analyze(url, out, steps=steps[:2], **BARE)
    before = operators_in(out)
    assert len(before) == 3 * 2 * 2
    grown = ra.analyze(url, out, **BARE)
    after = operators_in(out)
    assert len(after) == 3 * 2 * 4
    assert {name: after[name] for name in before} == before, "an operator was computed twice"
    # distances of new to known operators round otherwise than all at once: 1e-7 of them, 1e-5 of a layout
    assert_equal(grown, ra.analyze(url, tmp_path / "fresh", cache=False, **BARE), rtol=1e-4)
    assert not (tmp_path / "fresh" / "cache").exists()


def test_every_scale_of_a_grown_store_keeps_its_known_distances(planted_store, tmp_path, monkeypatch):
    steps, asked = (0, 1, 2, 4), []

    def counted(stack, first, **how):
        asked.append((first, len(stack)))
        return calibrated_distances(stack, first, **how)

    monkeypatch.setattr("repaudit.analysis.embeddings.calibrated_distances", counted)
    url, out = planted_store(steps=steps, layers=("only",)), tmp_path / "out"
    bare = {"frames": 0, "units": 0, "similarity": ()}
    ra.analyze(url, out, steps=steps[:3], scales=(5, 10), **bare)
    asked.clear()
    ra.analyze(url, out, scales=(5, 10), **bare)
    assert asked == [(3, 12)] * 2, "one new step of three models, at two scales"


def test_operators_are_merged_once_for_all_parts_and_runs(planted_store, tmp_path, monkeypatch):
    merged, merge = [], ra.DiffusionMerging.merge

    def counted(self, operators):
        merged.append(sorted(operators))
        return merge(self, operators)

    monkeypatch.setattr(ra.DiffusionMerging, "merge", counted)
    url, out = planted_store(steps=(0, 1, 2), layers=("only",)), tmp_path / "out"
    first = ra.analyze(url, out, scales=(3, 10), merge="ot_barycenter", **BARE)
    assert merged == [["seed0", "seed1", "seed2"]] * 4, "two steps in frames, the last of them also kept and embedded"
    merged.clear()
    again = ra.analyze(url, out, scales=(3, 10), merge="ot_barycenter", keep_merged="all", **BARE)
    assert len(merged) == 2, "the step that is in no frame"
    kept = [ra.DiffusionOperator.from_results(results, "only", scale=3.0).to_numpy() for results in (first, again)]
    np.testing.assert_array_equal(*kept)


def test_an_unchanged_store_gives_the_same_results_without_work(planted_store, tmp_path):
    url, out = planted_store(layers=("only",)), tmp_path / "out"
    first = ra.analyze(url, out, **BARE)
    kept = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*") if path.is_file()}
    second = ra.analyze(url, out, **BARE)
    assert {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*") if path.is_file()} == kept
    for name, group in groups_of(first).items():
        xr.testing.assert_identical(group, second[name].to_dataset())


@pytest.fixture(scope="module")
def analysed(plant, tmp_path_factory):
    """A small store, the folder of its analysis, and the results; to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("analysed")
    url = plant(folder, models=2, layers=("only",), steps=(0, 1, 2))
    return url, folder / "out", ra.analyze(url, folder / "out", **BARE)


@pytest.mark.parametrize("damage", ["flip", "cut", "facts", "header", "result", "method"])
@pytest.mark.thin(2)
def test_damaged_entries_are_computed_again(analysed, tmp_path, damage):
    url, kept_folder, first = analysed
    out = shutil.copytree(kept_folder, tmp_path / "out")
    if damage in ("result", "method"):
        for path in (out / "cache" / "results").rglob("*.npz"):
            content = bytearray(path.read_bytes())
            content[content.rfind(b"PK\x01\x02") + 10] = 99  # a compression method that there is not
            path.write_bytes(content[:100] if damage == "result" else content)
    else:
        for kept in ("results", "distances"):
            shutil.rmtree(out / "cache" / kept)  # so that the operators are what the results come from
        path = next(iter(sorted((out / "cache" / "operators").rglob("*.npy"))))
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[-1000] ^= 64
        if damage == "header":
            content[10:14] = b"\x00'\"("
        path.write_bytes(content[:-5000] if damage == "cut" else content)
        if damage == "facts":
            path.with_suffix(".json").write_text("{}")
    second = ra.analyze(url, out, **BARE)
    assert_equal(first, second, rtol=1e-9)


FACTS, GAUGE = {"effective_neighbors": 22.5, "gap": 0.125}, {"knn": 15, "kernel": "alpha"}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_flip_in_any_entry_is_ever_used(tmp_path, count):
    rng = np.random.default_rng()
    cache, content = Cache(tmp_path), ["spread", 0]
    dense = rng.random((6, 6))
    kept = [
        cache.put_operator(digest(sparse), csr_array(dense) if sparse else dense, FACTS, GAUGE) for sparse in (0, 1)
    ]
    arrays = cache.recall(content, lambda: {"low": dense, "names": np.array(["a", "b"])})
    distances = cache.distances(content, kept, lambda _files, first: np.full((first, 2), 0.5))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 6
    asked: list[str] = []
    for _ in range(count):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        for one in kept:
            assert (cache.operator(one.digest) is None) == (path.stem == one.digest), path
        asked.clear()
        again = cache.recall(content, lambda: asked.append("results") or dict(arrays))
        rows = cache.distances(content, kept, lambda _f, n: asked.append("distances") or np.full((n, 2), 0.5))
        assert asked == [kind for kind in ("results", "distances") if kind in path.parts], path
        assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
        assert np.array_equal(rows, distances)
        path.write_bytes(whole)


@pytest.mark.parametrize("at", range(3))
def test_a_flipped_digit_of_a_fact_does_not_reach_the_results(analysed, tmp_path, at):
    url, kept_folder, first = analysed
    out = shutil.copytree(kept_folder, tmp_path / "out")
    path = sorted((out / "cache" / "operators").rglob("*.json"))[at]
    content = path.read_bytes()
    digit = content.index(b".", content.index(b"effective_neighbors")) - 1
    path.write_bytes(content[:digit] + (b"9" if content[digit] != ord("9") else b"2") + content[digit + 1 :])
    assert_equal(first, ra.analyze(url, out, **BARE), rtol=1e-9)


@pytest.mark.parametrize("sparse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pipes_in_a_cache_count_as_missing(tmp_path, sparse):
    dense, cache = np.eye(6), Cache(tmp_path)
    kept = cache.put_operator(digest(sparse), csr_array(dense) if sparse else dense, FACTS, GAUGE)
    cache.recall(["spread"], lambda: {"low": dense})
    cache.distances(["spread"], [kept], lambda _files, first: np.zeros((first, 1)))
    script = """
import os, sys, numpy as np
from pathlib import Path
from repaudit.analysis.cache import Cache
for path in map(Path, sys.argv[3:]):
    cache, asked, whole = Cache(Path(sys.argv[1])), [], path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    one = cache.operator(sys.argv[2])
    cache.recall(["spread"], lambda: asked.append("results") or {"low": np.eye(6)})
    print(one is None, asked, flush=True)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
"""
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    command = [sys.executable, "-c", script, tmp_path, kept.digest, *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # a pipe would block for ever
    told = [f"{path.stem == kept.digest} {['results'] if 'results' in path.parts else []}" for path in files]
    assert run.stdout.splitlines() == told
    assert len(files) > 2


@pytest.mark.parametrize("sparse", [False, True])
def test_what_stands_in_the_way_of_an_entry_is_told(tmp_path, sparse):
    """A folder in the place of a file, and a file in that of a folder: nothing of others is removed."""
    matrix = csr_array(np.eye(6)) if sparse else np.eye(6)

    def fill():
        kept = [Cache(tmp_path / "cache").put_operator("digest", matrix, FACTS, GAUGE)]
        Cache(tmp_path / "cache").recall(["spread"], lambda: {"low": np.eye(6)})
        Cache(tmp_path / "cache").distances(["spread"], kept, lambda _files, first: np.zeros((first, 1)))

    fill()
    places = sorted((tmp_path / "cache").rglob("*"), reverse=True)
    assert len(places) == 3 + 3 + 4
    for place in [*places, tmp_path / "cache"]:
        if place.is_dir():
            shutil.rmtree(place)
            place.write_text("mine")
            mine, said = place, f"expected a folder of the cache at {place}, found something else: move it away"
        else:
            place.unlink()
            mine = place / "mine"
            mine.mkdir(parents=True)
            said = f"expected a file of the cache at {place}, found a folder: move it away"
        with pytest.raises(AnalysisError, match=re.escape(said)):
            fill()
        assert mine.exists()
        (shutil.rmtree if place.is_dir() else os.unlink)(place)
        fill()


def test_another_gauge_or_seed_is_another_result(planted_store, tmp_path):
    url, out = planted_store(models=2, layers=("only",), steps=(0, 16)), tmp_path / "out"
    first = ra.analyze(url, out, **BARE)
    other = ra.analyze(url, out, gauge={"knn": 5}, **BARE)
    assert len(operators_in(out)) == 2 * 2 * 2
    assert abs(float((first["spread"]["spread"].values - other["spread"]["spread"].values).sum())) > 1e-3
    assert [results["spread"]["scale"].item() for results in (first, other)] == [15, 5]
    fresh = ra.analyze(url, tmp_path / "fresh", gauge=ra.DiffusionGauge(knn=5), **BARE)
    assert_equal(other, fresh, rtol=1e-9)


def test_another_record_under_the_same_names_is_another_result(planted_store, tmp_path, probe_set):
    url, out = planted_store(models=2, layers=("only",), steps=(0, 16)), tmp_path / "out"
    first = ra.analyze(url, out, **BARE)
    values, layers = (
        np.random.default_rng(77).normal(size=(2, 48, 12)).astype("float32"),
        {"only": ((48, 12), "float32")},
    )
    with ra.TrajectoryWriter(
        url, model_name="seed1", probe_set=probe_set, layers=layers, durable=False, if_exists="replace"
    ) as writer:
        writer.append(0, {"only": values[0]})
        writer.append(16, {"only": values[1]})
    second = ra.analyze(url, out, **BARE)
    assert first["spread"]["spread"].sel(step=16) < 0.05
    assert second["spread"]["spread"].sel(step=16) > 0.8
    assert_equal(second, ra.analyze(url, tmp_path / "fresh", cache=False, **BARE), rtol=1e-4)


def test_a_step_damaged_since_is_left_out_of_every_scale(planted_store, tmp_path):
    url, out = planted_store(models=2, steps=(0, 1), layers=("whole", "hurt")), tmp_path / "out"
    ra.analyze(url, out, scales=(5,), **BARE)
    for model in ("seed0", "seed1"):
        (layer,) = [path for path in (url / "models" / model).iterdir() if "hurt" in path.name]
        for chunk in layer.glob("c.*"):
            chunk.write_bytes(b"\0" * chunk.stat().st_size)
    results = ra.analyze(url, out, scales=(5, 10), **BARE)
    assert list(results["spread"]["layer"].values) == ["whole"]
    assert sum("layer hurt" in line for line in results.repaudit.summary["left_out"]) >= 4


def test_an_interrupted_run_goes_on_where_it_was(planted_store, tmp_path):
    url, out = planted_store(), tmp_path / "out"
    bare = {"frames": 0, "units": 0, "similarity": ()}

    def interrupt(what, done, _total):
        if what == "operators" and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ra.analyze(url, out, progress=interrupt, **bare)
    before = operators_in(out)
    assert 10 <= len(before) < 36
    results = ra.analyze(url, out, **bare)
    after = operators_in(out)
    assert {name: after[name] for name in before} == before
    assert np.isfinite(results["spread"]["spread"]).all()
