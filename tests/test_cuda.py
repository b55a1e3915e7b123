"""On a CUDA device: the training undisturbed, the records true, and every operator, measure and loss as on the CPU."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import repaudit as ra
from repaudit.operators.grouped_sketch import grouped_sketch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IDS = torch.randint(1, 32, (24, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": IDS})
LAYERS = ["transformer.h[*]", "transformer.ln_f"]
ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(1, 32, (32, 8), generator=torch.Generator().manual_seed(5))
]
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


def gpt2(**options: Any) -> tf.GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**(sizes | options)))


def cloud(seed: int = 0, count: int = 200, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator) @ torch.randn(4, width, generator=generator)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a training that is run twice give the same bits twice."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = torch.get_float32_matmul_precision()  # which transformers lowers where it compiles
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


def hidden_states(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    with torch.no_grad():
        states = model(input_ids=IDS.cuda(), output_hidden_states=True).hidden_states
    return [state.float().mean(1).to(dtype).cpu() for state in states]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_what_is_recorded_is_what_the_model_computes(dtype):
    model = gpt2().to("cuda", dtype).eval()
    found = ra.ActivationExtractor(LAYERS).extract(model, PROBE, batch_size=len(IDS))
    states = hidden_states(model, dtype)
    assert [value.device.type for value in found.values()] == ["cpu"] * 3
    tolerance = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(found["transformer.h.0"].to(dtype), states[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found["transformer.ln_f"].to(dtype), states[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 24])
def test_every_sample_has_arrived_when_the_activations_are_returned(batch_size):
    """Copies to pinned memory do not wait: on a stream of the caller's own, and behind much queued work."""
    model, busy = gpt2().cuda(), torch.randn(4000, 4000, device="cuda")
    expected = ra.ActivationExtractor(LAYERS).extract(copy.deepcopy(model).cpu(), PROBE)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy / 4000
        found = ra.ActivationExtractor(LAYERS).extract(model, PROBE, batch_size=batch_size)
        taken = {name: value.clone() for name, value in found.items()}
    for name, value in expected.items():
        torch.testing.assert_close(taken[name], value, rtol=1e-4, atol=1e-4)


def trained(folder: Path, *callbacks: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Train with dropout from the device's own generator, from cold, as the seed says."""
    model = gpt2()
    tf.set_seed(1)
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_strategy": "no",
        "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    arguments = tf.TrainingArguments(output_dir=str(folder), **(defaults | options))
    tf.Trainer(model=model, args=arguments, train_dataset=ROWS, callbacks=list(callbacks)).train()
    assert next(model.parameters()).is_cuda
    return {name: value.cpu() for name, value in model.state_dict().items()} | {"next": torch.rand(3, device="cuda")}


EVERY = ra.AuditTrigger(every_n_steps=1, at_start=True)


@pytest.mark.parametrize(
    ("options", "record"),
    [
        *(({name: True} if name else {}, "activations") for name in ("", "bf16", "fp16", "torch_compile")),
        ({}, "operators"),
        ({}, "sketches"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("exact")
@pytest.mark.filterwarnings("ignore")  # of compilation, which other tests judge
def test_a_trainer_on_the_device_is_bit_identical(tmp_path, options, record):
    made = {} if record == "activations" else {"record": record, "gauge": ra.DiffusionGauge(perplexity=5)}
    store = tmp_path / "s.zarr"
    plain = trained(tmp_path / "a", **options)
    audited = trained(tmp_path / "b", ra.AuditTrainerCallback(store, "seed0", PROBE, LAYERS, EVERY, **made), **options)
    assert all(torch.equal(value, audited[name]) for name, value in plain.items())
    assert ra.open_store(store)["models/seed0"].dataset.step.values.tolist() == list(range(17))
    assert ra.verify(store, data=True) == []


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.usefixtures("exact")
def test_a_lightning_module_on_the_device_is_bit_identical(tmp_path, precision):
    def fitted(*callbacks: pl.Callback) -> dict[str, torch.Tensor]:
        pl.seed_everything(7, verbose=False)
        module = ra.HFTrainerModule(gpt2().config, learning_rate=1e-2)
        pl.Trainer(
            max_epochs=2, accelerator="cuda", devices=1, precision=precision, callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(ROWS, batch_size=4, shuffle=True))  # fmt: skip
        return {name: value.cpu() for name, value in module.state_dict().items()}

    store = tmp_path / "s.zarr"
    plain = fitted()
    audited = fitted(ra.RepresentationAuditCallback(store, "seed0", PROBE, LAYERS, EVERY))
    assert all(torch.equal(value, audited[name]) for name, value in plain.items())
    assert ra.open_store(store)["models/seed0"].dataset.step.values.tolist() == list(range(17))


def test_audits_leave_no_memory_on_the_device(tmp_path):
    model = gpt2().cuda()
    with ra.Recorder(tmp_path / "s.zarr", "m", PROBE, LAYERS, on_store_error="raise") as recorder:
        recorder.audit(model, 0)
        held = torch.cuda.memory_allocated()
        for step in range(1, 30):
            recorder.audit(model, step)
        assert torch.cuda.memory_allocated() == held


def test_a_model_that_is_partly_offloaded_is_recorded_as_it_is():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    bare = gpt2()
    expected = ra.ActivationExtractor(LAYERS).extract(bare, PROBE)
    places = {"transformer.wte": 0, "transformer.wpe": 0, "transformer.drop": 0, "transformer.h.0": 0,
              "transformer.h.1": "cpu", "transformer.ln_f": 0, "lm_head": 0}  # fmt: skip
    model = accelerate.dispatch_model(copy.deepcopy(bare), places)
    found = ra.ActivationExtractor(LAYERS).extract(model, PROBE, batch_size=5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    assert all(value.device.type == "meta" for value in model.transformer.h[1].parameters())


def test_gradients_flow_through_captured_activations_on_the_device():
    model = gpt2().cuda()
    with ra.ActivationExtractor("transformer.h[1]").capture(model, detach=False) as extractor:
        model(input_ids=IDS.cuda())
    (value,) = extractor.activations.values()
    assert value.is_cuda
    value.square().sum().backward()
    assert float(model.transformer.wte.weight.grad.norm()) > 0


GAUGES: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"perplexity": 50},
    "cosine": {"metric": "cosine"},
    "neighbors": {"knn": 15, "neighbors": 30},
    "landmarks": {"knn": 15, "landmarks": 40},
}


@pytest.mark.parametrize("name", GAUGES)
def test_what_is_read_off_an_operator_is_what_the_cpu_reads(name):
    gauge = ra.DiffusionGauge(**GAUGES[name])
    here, there = gauge(cloud()), gauge(cloud().cuda())
    np.testing.assert_allclose(there.to_numpy(), here.to_numpy(), rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(there.stationary.cpu(), here.stationary, rtol=1e-4, atol=1e-7, check_dtype=False)
    for key, value in here.diagnostics.items():
        assert there.diagnostics[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    first, second = here.eigenpairs(5)[0], there.eigenpairs(5)[0]
    np.testing.assert_allclose(second.cpu().numpy(), np.asarray(first), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "dense", "neighbors"])
def test_measures_of_operators_are_those_of_the_cpu(name):
    gauge = ra.DiffusionGauge(**GAUGES[name])
    clouds = [cloud(), cloud() + 0.3 * cloud(1), cloud(2)]
    here, there = [gauge(one) for one in clouds], [gauge(one.cuda()) for one in clouds]
    first, second = ra.spread(here), ra.spread(there)
    for key in ("value", "low", "high"):
        assert getattr(second, key) == pytest.approx(getattr(first, key), rel=1e-3, abs=1e-4), key
    expected, found = ra.operator_distances(here), ra.operator_distances(there)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        grouped_sketch(there[0]).numbers(), grouped_sketch(here[0]).numbers(), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("method", ["cka", "cka_rbf", "procrustes", "mutual_knn"])
def test_similarities_are_those_of_the_cpu(method):
    clouds = cloud(), cloud() + 0.3 * cloud(1)
    here = ra.similarity(*clouds, measure=method)
    there = ra.similarity(*(one.cuda() for one in clouds), measure=method)
    assert float(there.value) == pytest.approx(float(here.value), rel=1e-4)


@pytest.mark.parametrize("rows", ["full", "minibatch"])
def test_the_match_of_operators_is_that_of_the_cpu(rows):
    gauge = ra.DiffusionGauge(perplexity=8 if rows == "full" else 50)
    target = ra.AlignmentTarget.from_operator(gauge(cloud()), gauge=gauge)
    losses, slopes = [], []
    for device in ("cpu", "cuda"):
        match = ra.OperatorMatch(target, rows=rows).to(device)
        student = cloud(1).to(device).requires_grad_()
        everything = torch.arange(len(student))
        match(student, everything)
        batch = everything[5:69]
        found = match(student[batch], batch)
        found.backward()
        losses.append(float(found.detach()))
        slopes.append(student.grad.cpu())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-2, atol=1e-6)


@pytest.mark.usefixtures("exact")
def test_a_student_is_taught_on_the_device():
    gauge = ra.DiffusionGauge(perplexity=6)
    target = ra.AlignmentTarget.from_operator(gauge(cloud(0, len(IDS))), gauge=gauge)
    model = gpt2().cuda()
    match = ra.OperatorMatch(target).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    everything, losses = torch.arange(len(IDS)), []
    for _ in range(40):
        with ra.ActivationExtractor("transformer.ln_f").capture(model, detach=False) as extractor:
            model(input_ids=IDS.cuda())
        (features,) = extractor.activations.values()
        loss = match(features, everything)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_first_linear_algebra_of_an_analysis_may_come_from_many_threads():
    """Torch raises "lazy wrapper should be called at most once" where nothing has loaded it before."""
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import torch, xarray as xr\n"
        "from repaudit.analysis.layer_operators import _on\n"
        "values = xr.DataArray(torch.eye(8).numpy())\n"
        "with ThreadPoolExecutor(16) as pool:\n"
        "    found = pool.map(lambda _: torch.linalg.eigvalsh(_on(values, 'cuda')).sum().item(), range(64))\n"
        "    print(set(found))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout == "{8.0}\n", run.stderr
