"""Two scales in an analysis: resolved from the number of samples, computed together, told apart in words."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr

import repaudit as ra
from repaudit.analysis.pipeline import run
from repaudit.analysis.scales import resolve_scales
from repaudit.analysis.sentences import headline
from repaudit.analysis.settings import Settings
from repaudit.errors import AnalysisError, OperatorError
from repaudit.operators.kept import entries_of

SAMPLES = 130
BARE = {"frames": 0, "units": 0, "similarity": ()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three models whose neighbours stay their own while the arrangement of the groups becomes one."""
    url = tmp_path_factory.mktemp("scales") / "store.zarr"
    rng = np.random.default_rng(0)
    ids = [f"passage {k}" for k in range(SAMPLES)]
    probe_set = ra.ProbeSet.from_tensors({"input_ids": rng.integers(0, 9, (SAMPLES, 4))}, ids=ids)
    centres = np.repeat(rng.normal(size=(5, 6)) * 6, SAMPLES // 5, axis=0)
    for model in range(3):
        own = rng.normal(size=(2, SAMPLES, 6))
        mixed = centres[rng.permutation(SAMPLES)]
        layers = {"layer": ((SAMPLES, 6), "float32")}
        with ra.TrajectoryWriter(url, model_name=f"m{model}", probe_set=probe_set, layers=layers) as writer:
            for step, share in ((0, 0.0), (10, 0.4), (20, 1.0)):
                values = share * centres + (1 - share) * mixed + own[0]
                writer.append(step, {"layer": values.astype(np.float32)})
    return url


@pytest.fixture(scope="module")
def results(store, tmp_path_factory):
    return ra.analyze(store, tmp_path_factory.mktemp("results") / "out", **BARE)


def test_a_quarter_of_the_samples_is_the_second_scale_where_it_is_wider():
    assert [scale.value for scale in resolve_scales(None, ra.DiffusionGauge(), 256)] == [15, 64]
    assert [scale.value for scale in resolve_scales(None, ra.DiffusionGauge(), 60)] == [15]
    assert [scale.name for scale in resolve_scales((64, "N/8"), ra.DiffusionGauge(), 256)] == ["shape", "perplexity 32"]
    (own,) = resolve_scales(None, ra.DiffusionGauge(knn=7), 256)
    assert (own.value, own.name) == (7, "gaussian, knn 7")
    with pytest.raises(AnalysisError, match="knn"):
        resolve_scales((15,), ra.DiffusionGauge(knn=7), 256)


@pytest.mark.parametrize("wrong", [["many"], ["N/0"], [-3], ["15;20"]])
def test_scales_that_are_none_are_refused(store, tmp_path, wrong):
    with pytest.raises(AnalysisError, match="scales"):
        ra.analyze(store, tmp_path / "out", scales=wrong)


def test_every_scale_is_what_its_own_gauge_gives(store, results):
    tree = ra.open_store(store)
    assert results["spread"]["scale"].values.tolist() == [15, SAMPLES / 4]
    assert results["spread"]["scale_name"].values.tolist() == ["neighbourhoods", "shape"]
    for scale in results["spread"]["scale"].values:
        operators = tree.repaudit.operators("layer", 10, perplexity=float(scale))
        expected = ra.spread(operators)
        found = results["spread"].to_dataset().sel(layer="layer", scale=scale, step=10)
        assert float(found["spread"]) == pytest.approx(expected.value, rel=1e-5)
        assert float(found["spread_rows"]) == pytest.approx(expected.rows, rel=1e-5)
        for a, b in combinations(operators, 2):
            pair = results["pairs"]["distance"].sel(layer="layer", scale=scale, step=10, model=a, other=b)
            assert float(pair) == pytest.approx(expected.pairs[a, b].ratio ** 0.5, rel=1e-5)


def test_shape_converges_while_neighbourhoods_stay_apart(results):
    summary = results.repaudit.summary
    scales = summary["layers"]["layer"]["scales"]
    assert scales["shape"]["verdict"] == "converging"
    assert scales["shape"]["end"] < scales["neighbourhoods"]["end"] - 0.1
    assert [scale["name"] for scale in summary["scales"]] == ["neighbourhoods", "shape"]
    assert summary["layers"]["layer"]["verdict"] == scales["neighbourhoods"]["verdict"]


def test_the_headline_says_where_the_scales_differ():
    said = headline({"neighbourhoods": {"a": "unchanged"}, "shape": {"a": "converging"}}, 3, [0, 1])
    assert said.endswith("In a shape converges, neighbourhoods do not.")
    both = headline({"neighbourhoods": {"a": "converging"}, "shape": {"a": "converging"}}, 3, [0, 1])
    assert both == "3 models, 1 layer: 1 converges."


def test_the_bands_hold_the_values_and_are_no_narrower_than_one_interval(results):
    spread = results["spread"].to_dataset()
    assert (spread["band_low"] <= spread["spread"]).all()
    assert (spread["band_high"] - spread["spread"] >= (spread["high"] - spread["spread"]) * 0.99).all()


class Shown(Mapping[tuple[int, int, int], torch.Tensor]):
    """Matrices that are made when they are asked for, and how many are there at the same time."""

    def __init__(self, matrices: list[torch.Tensor]) -> None:
        self.matrices, self.there, self.most = matrices, 0, 0

    def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
        made = self.matrices[key[0]].clone()
        self.there += 1
        self.most = max(self.most, self.there)
        weakref.finalize(made, self.gone)
        return made

    def gone(self) -> None:
        self.there -= 1

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return iter([(index, 1, 2) for index in range(len(self.matrices))])

    def __len__(self) -> int:
        return len(self.matrices)


def test_of_the_matrices_whose_entries_are_kept_few_are_there_at_once() -> None:
    rng = np.random.default_rng(0)
    dense = [torch.from_numpy(rng.random((5, 5)) * (rng.random((5, 5)) < 0.5)).float() for _ in range(9)]
    shown = Shown([one.to_sparse() if index % 2 else one for index, one in enumerate(dense)])
    entries = entries_of(shown, {})
    assert shown.most <= 2
    found = np.zeros((9, 5, 5), np.float32)
    found[entries["layer_index"], entries["row"], entries["column"]] = entries["value"]
    np.testing.assert_array_equal(found, torch.stack(dense))
    assert (entries["scale_index"] == 1).all()
    assert (entries["step_index"] == 2).all()
    assert {str(array.dtype) for array in entries.data_vars.values()} == {"int32", "float32"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", ["last", "all"])
def test_the_memory_that_is_told_counts_what_is_kept_of_every_layer(planted_store, tmp_path, kept) -> None:
    told = []
    for count in (1, 3):
        layers = tuple(f"layer{index}" for index in range(count))
        url = planted_store(layers=layers, steps=(0, 1), name=f"{count}.zarr")
        chosen = Settings.of({"keep_merged": kept, **BARE})
        run(url, tmp_path / str(count), chosen, planned=lambda needed, study: told.append(needed))
    results = xr.open_datatree(tmp_path / "3/results.zarr", engine="zarr")["merged/operator"]
    held = sum(array.nbytes for name, array in results.data_vars.items() if array.dims == ("entry",))
    assert told[1] - told[0] >= 2 / 3 * held


@pytest.mark.usefixtures("undrawn")
def test_merged_operators_are_kept_and_read_back(store, results, tmp_path):
    tree = ra.open_store(store)
    expected = ra.DiffusionMerging().merge(tree.repaudit.operators("layer", 20))
    kept = ra.DiffusionOperator.from_results(results, "layer")
    np.testing.assert_allclose(kept.to_numpy(), expected.to_numpy(), atol=1e-7)
    assert kept.samples.tolist()[0] == "passage 0"
    ra.analyze(store, tmp_path / "out", keep_merged="all", **BARE)
    place = tmp_path / "out" / "results.zarr"
    early = ra.DiffusionOperator.from_results(place, "layer", scale="shape", step=10)
    again = ra.DiffusionMerging().merge(tree.repaudit.operators("layer", 10, perplexity=SAMPLES / 4))
    np.testing.assert_allclose(early.to_numpy(), again.to_numpy(), atol=1e-7)
    for wrong in ({"layer": "none"}, {"layer": "layer", "scale": 3}, {"layer": "layer", "step": 7}):
        with pytest.raises(OperatorError, match="expected a"):
            ra.DiffusionOperator.from_results(place, **wrong)
    with pytest.raises(OperatorError, match=r"results\.zarr"):
        ra.DiffusionOperator.from_results(tmp_path / "nothing.zarr", "layer")


def test_models_at_one_step_are_answered_by_their_pairs(store, tmp_path):
    results = ra.analyze(store, tmp_path / "out", steps=[20], **BARE)
    summary = results.repaudit.summary
    assert "one step" in summary["headline"]
    sentence = summary["layers"]["layer"]["sentence"]
    assert "3 of 3 pairs of models are nearer to each other than chance" in sentence
    assert sentence.endswith("(the spread is the mean of their squares). One step has no change to judge.")
    pvalues = results["pairs"]["pvalue_holm"].sel(scale=15, step=20, layer="layer").values
    assert np.nanmax(pvalues) < 1e-6
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["layers"]["layer"]["verdict"] == "undecided"
