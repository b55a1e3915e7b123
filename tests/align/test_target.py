"""Targets: from results and operators, restricted, relabelled, in coordinates; whose samples they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import repaudit as ra
from repaudit.errors import ActivationError, FingerprintError, OperatorError


def points(seed: int = 0, count: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


TEXTS = [f"text number {i}" for i in range(80)]


def encoded(texts: list[str], **options: object) -> ra.ProbeSet:
    inputs = {"x": torch.arange(2 * len(texts)).reshape(-1, 2)}
    return ra.ProbeSet(inputs, texts=texts, ids=options.pop("ids", [f"t{i}" for i in range(len(texts))]), **options)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("target")
    shared = points()
    for name in ("a", "b", "c"):
        own = shared + 0.4 * points(ord(name))
        layers = {"top": ((80, 5), "float32")}
        with ra.TrajectoryWriter(folder / "s.zarr", model_name=name, probe_set=encoded(TEXTS), layers=layers) as writer:
            writer.append(0, {"top": own})
            writer.append(7, {"top": own + 0.1})
    ra.analyze(folder / "s.zarr", folder / "out", frames=0, units=0, similarity=())
    return str(folder / "out/results.zarr")


def test_a_target_of_results_is_what_was_merged_and_how(results: str) -> None:
    target = ra.AlignmentTarget.from_results(results, "top")
    assert target.gauge == ra.DiffusionGauge()
    assert target.samples == tuple(f"t{i}" for i in range(80))
    kept = ra.DiffusionOperator.from_results(results, "top").to_numpy()
    np.testing.assert_allclose(target.matrix.toarray(), kept, atol=1e-6)
    np.testing.assert_allclose(target.matrix.sum(axis=1), 1, atol=1e-12)
    wide = ra.AlignmentTarget.from_results(results, "top", scale="shape", step=7)
    assert (wide.gauge.perplexity, wide.attrs["scale"], wide.attrs["step"]) == (20.0, 20.0, 7)
    with pytest.raises(OperatorError, match="expected a layer among top"):
        ra.AlignmentTarget.from_results(results, "bottom")


@pytest.mark.parametrize("read", [ra.AlignmentTarget.from_results, ra.DiffusionOperator.from_results])
@pytest.mark.parametrize("as_url", [False, True])
def test_results_that_changed_since_teach_nothing(results: str, tmp_path: Path, read: Any, as_url: bool) -> None:
    out = shutil.copytree(Path(results).parent, tmp_path / "out") / "results.zarr"
    place = f"file://{out}" if as_url else str(out)
    assert read(place, "top") is not None
    chunk = out / "merged/operator/value/c/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    shutil.copytree(out, tmp_path / "alone.zarr")
    (tmp_path / "link.zarr").symlink_to(out)
    for one in (place, tmp_path / "link.zarr"):
        with pytest.raises(OperatorError, match="changed since an analysis wrote it"):
            read(one, "top")
    chunk.unlink()  # read as zeros otherwise
    with pytest.raises(OperatorError, match="changed since an analysis wrote it"):
        read(place, "top")
    chunk.write_bytes(whole)
    (out.parent / "files.json").write_text('{"repaudit_files"')
    with pytest.raises(OperatorError, match=r"files\.json is not the list"):
        read(place, "top")


@pytest.mark.parametrize("read", [ra.AlignmentTarget.from_results, ra.DiffusionOperator.from_results])
def test_results_that_stand_alone_are_read_unless_damaged(results: str, tmp_path: Path, read: Any) -> None:
    alone = shutil.copytree(results, tmp_path / "mine.zarr")
    assert read(alone, "top") is not None
    chunk = alone / "merged/operator/value/c/0"
    os.truncate(chunk, 40)
    with pytest.raises(OperatorError, match="of an analysis with the group"):
        read(alone, "top")
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(OperatorError, match="is not a regular file"):
        read(alone, "top")


def test_samples_are_known_by_their_texts(results: str) -> None:
    target = ra.AlignmentTarget.from_results(results, "top")
    assert target.check(encoded(TEXTS)).tolist() == list(range(80))
    more = encoded(["new", *TEXTS], ids=["new", *target.samples])
    assert target.check(more).tolist() == [-1, *range(80)]
    with pytest.raises(FingerprintError, match=r"none with the id 't79' \(row 79\)"):
        target.check(encoded(TEXTS[:79]))
    changed = [*TEXTS]
    changed[31] = "other"
    with pytest.raises(FingerprintError, match="another one for the sample 't31'"):
        target.check(encoded(changed))
    with pytest.raises(FingerprintError, match="'t31'"):
        ra.JointObjective(ra.OperatorMatch(target), layer="[0]", probe_set=encoded(changed))


def test_samples_without_texts_are_known_by_their_inputs(tmp_path: Path) -> None:
    inputs = {"input": torch.tensor(points())}
    for name in ("a", "b"):
        with ra.Recorder(tmp_path / "s.zarr", name, ra.ProbeSet.from_tensors(inputs), ["[0]"]) as recorder:
            recorder.audit(torch.nn.Sequential(torch.nn.Linear(5, 4)), 0)
    results = ra.analyze(tmp_path / "s.zarr", figures="none")
    for place in (results, str(tmp_path / "s.analysis/results.zarr")):
        target = ra.AlignmentTarget.from_results(place, "0")
        assert target.raw == "inputs"
        assert target.check(ra.ProbeSet.from_tensors(inputs)).tolist() == list(range(80))
        others = {"input": inputs["input"].clone()}
        others["input"][31] += 1
        for part in (target, target.restrict(target.samples[20:])):
            with pytest.raises(FingerprintError, match=r"inputs that the teachers.*others for the sample '31'"):
                part.check(ra.ProbeSet.from_tensors(others))
            with pytest.raises(FingerprintError, match="'31'"):
                ra.JointObjective(ra.OperatorMatch(part), layer="[0]", probe_set=ra.ProbeSet.from_tensors(others))
    turned = ra.ProbeSet.from_tensors({"input": inputs["input"].flip(0)})
    with pytest.raises(FingerprintError, match="the same samples in another order"):
        target.check(turned)
    taught = ra.FeatureMatch.from_store(tmp_path / "s.zarr", "0")
    assert taught.check(ra.ProbeSet.from_tensors(inputs)).tolist() == list(range(80))
    with pytest.raises(FingerprintError, match="'31'"):
        taught.check(ra.ProbeSet.from_tensors(others))
    by_id = ra.AlignmentTarget.from_operator(target.operator, target.samples, target.gauge)
    assert by_id.check(ra.ProbeSet.from_tensors(others)).tolist() == list(range(80))


def test_information_is_the_divergence_from_uniform() -> None:
    operator = ra.DiffusionGauge(perplexity=6)(points())
    target = ra.AlignmentTarget.from_operator(operator)
    uniform = np.full(80, 1 / 80)
    expected = np.mean([entropy(row, uniform) for row in operator.to_numpy().astype(float)])
    assert target.information == pytest.approx(expected, rel=1e-5)


def test_the_gauge_is_that_of_the_operator_or_given() -> None:
    for gauge in (
        ra.DiffusionGauge(perplexity=6),
        ra.DiffusionGauge(knn=4, alpha=0.5),
        ra.DiffusionGauge(perplexity=6, neighbors=9),
    ):
        assert ra.AlignmentTarget.from_operator(gauge(points())).gauge == gauge
    matrix = ra.DiffusionGauge()(points()).to_numpy()
    with pytest.raises(OperatorError, match="expected the gauge"):
        ra.AlignmentTarget.from_operator(matrix)
    with pytest.raises(OperatorError, match="80 unique ids"):
        ra.AlignmentTarget.from_operator(matrix, samples=["a"] * 80, gauge=ra.DiffusionGauge())


def test_a_part_keeps_its_order_and_is_normalised() -> None:
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=12)(points()))
    part = target.restrict([30, 4, 50, *range(5, 25)])
    assert part.samples[:3] == ("30", "4", "50")
    whole = target.matrix.toarray()
    places = [int(name) for name in part.samples]
    expected = whole[np.ix_(places, places)]
    np.testing.assert_allclose(part.matrix.toarray(), expected / expected.sum(1, keepdims=True))
    assert part.gauge.perplexity == pytest.approx(12 * 23 / 80)
    with pytest.raises(OperatorError, match="found 'x'"):
        target.restrict(["x"])
    ring = np.roll(np.eye(80), 1, axis=1)
    apart = ra.AlignmentTarget.from_operator(ring, gauge=ra.DiffusionGauge())
    with pytest.raises(OperatorError, match="none of 2, the first of which is '0'"):
        apart.restrict([0, 30])


def test_relabelling_keeps_the_spectrum_and_may_stay_within_labels() -> None:
    target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=6)(points()))
    labels = [i % 3 for i in range(80)]
    free, within = target.permuted(0), target.permuted(0, within=labels)
    values = [np.sort(np.linalg.eigvals(one.matrix.toarray()).real) for one in (target, free, within)]
    np.testing.assert_allclose(values[1], values[0], atol=1e-9)
    same = np.equal.outer(labels, labels)
    mass = [float((one.matrix.toarray() * same).sum()) for one in (target, free, within)]
    assert mass[2] == pytest.approx(mass[0])
    assert free.permuted(1).digest != free.digest
    assert target.permuted(0).digest == free.digest
    with pytest.raises(ValueError, match="80 labels"):
        target.permuted(0, within=[1, 2])


def test_coordinates_are_those_of_diffusion_maps() -> None:
    operator = ra.DiffusionGauge(perplexity=6)(points())
    target = ra.AlignmentTarget.from_operator(operator)
    values, vectors = operator.eigenpairs(4)
    np.testing.assert_allclose(
        np.abs(target.coordinates(3, t=2)), np.abs((values[1:] ** 2 * vectors[:, 1:]).numpy()), atol=1e-4
    )
    assert target.coordinates(2, method="phate").shape == (80, 2)
    with pytest.raises(ValueError, match="1 to 79"):
        target.coordinates(80)


def test_a_merged_operator_has_coordinates_though_it_is_not_reversible() -> None:
    gauge = ra.DiffusionGauge(perplexity=6)
    merged = ra.DiffusionMerging("frobenius").merge({str(k): gauge(points(k)) for k in range(3)})
    assert not merged.reversible
    target = ra.AlignmentTarget.from_operator(merged, gauge=gauge)
    found = target.coordinates(5, t=1)
    weights = merged.stationary.numpy()
    flow = weights[:, None] * merged.to_numpy()
    chain = (flow + flow.T) / 2 / weights[:, None]
    for column in found.T:  # P x is a multiple of x
        image = chain @ column
        assert abs(image @ column) == pytest.approx(np.linalg.norm(image) * np.linalg.norm(column), rel=1e-4)


def test_distance_is_the_spread() -> None:
    gauge = ra.DiffusionGauge(perplexity=6)
    target = ra.AlignmentTarget.from_operator(gauge(points()))
    assert target.distance(points()) < 1e-8
    assert target.distance(points(1)) == pytest.approx(
        ra.spread({"a": gauge(points()), "b": gauge(points(1))}).value, rel=1e-5
    )


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
def test_a_sample_without_an_id_is_refused(missing: object) -> None:
    with pytest.raises(OperatorError, match=r"samples: expected an id per row, found .* in row 1"):
        ra.AlignmentTarget.from_operator(np.full((3, 3), 1 / 3), samples=["a", missing, "c"], gauge=ra.DiffusionGauge())


def test_a_target_says_how_many_samples_it_has(results: str) -> None:
    target = ra.AlignmentTarget.from_results(results, layer="top")
    step = target.attrs["step"]
    said = f"AlignmentTarget({len(target)} samples, layer 'top', scale 15.0, step {step}, merge 'frobenius')"
    assert repr(target) == said
    assert repr(target.restrict(target.samples[:9])).startswith("AlignmentTarget(9 samples, ")


def test_what_is_no_choice_is_refused() -> None:
    uniform, gauge = np.full((4, 4), 1 / 4), ra.DiffusionGauge()
    with pytest.raises(OperatorError, match="expected a hash for each of 4 samples or none"):
        ra.AlignmentTarget.from_operator(uniform, gauge=gauge, hashes=["a"])
    with pytest.raises(OperatorError, match="of text or inputs, found 0 of 'foo'"):
        ra.AlignmentTarget.from_operator(uniform, gauge=gauge, raw="foo")  # type: ignore[arg-type]
    target = ra.AlignmentTarget.from_operator(uniform, gauge=gauge)
    with pytest.raises(ValueError, match="method: expected 'diffusion' or 'phate', found 'foo'"):
        target.coordinates(2, method="foo")  # type: ignore[arg-type]
    with pytest.raises(OperatorError, match="expected two samples or more, found 0"):
        target.restrict([])
    with pytest.raises(ActivationError, match="samples: expected an id per row, found None in row 1"):
        ra.FeatureMatch({"a": np.eye(3, dtype=np.float32)}, samples=["a", None, "c"])
