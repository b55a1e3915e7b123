"""Lightning Fabric: layers as of the bare model, in the precision it trains in; names as its checkpoints have them."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import repaudit as ra
from repaudit.capture.extract.wrappers import entry_point, network, unwrap
from repaudit.capture.pretrained.record_pretrained import record_pretrained

CONFIG = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
IDS = torch.randint(1, 32, (8, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": IDS})
NAMES = ["transformer.h.0", "transformer.h.1"]
LAYERS = ["transformer.h[*]"]


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(CONFIG)


def means(forward, model):
    """The means of the blocks' outputs, by hooks of their own."""
    seen, was = [], model.training
    hooks = [b.register_forward_hook(lambda _m, _i, output: seen.append(output)) for b in model.eval().transformer.h]
    with torch.no_grad():
        forward(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    model.train(was)
    return [(value[0] if isinstance(value, tuple) else value).float().mean(1) for value in seen]


def set_up(fabric, model, how):
    if how == "compiled before":
        return fabric.setup_module(torch.compile(model, backend="eager"))
    wrapped = fabric.setup_module(model)
    return torch.compile(wrapped, backend="eager") if how == "compiled after" else wrapped


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("how", ["eager", "compiled before", "compiled after"])
@pytest.mark.thin(2)
def test_layers_are_those_of_the_bare_model_in_the_precision_of_the_training(precision, how):
    fabric, model = Fabric(accelerator="cpu", devices=1, precision=precision), gpt2()
    wrapped = set_up(fabric, model, how)
    expected = means(unwrapped_call(wrapped), model)
    for path in ("transformer.h[*]", "_forward_module.transformer.h[*]"):
        extractor = ra.ActivationExtractor(path)
        found = extractor.extract(wrapped, PROBE)
        assert list(found) == NAMES
        for value, other in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-6)
    assert extractor.source_dtypes[NAMES[1]] == ("bfloat16" if precision == "bf16-true" else "float32")
    inside = ra.ActivationExtractor("transformer.h[0].mlp.c_fc")
    inside.extract(wrapped, PROBE)
    assert inside.source_dtypes["transformer.h.0.mlp.c_fc"] == ("float32" if precision == "32-true" else "bfloat16")
    assert network(wrapped) is model


def unwrapped_call(wrapped):
    """Fabric's own forward, eagerly: what the training computes."""
    return getattr(wrapped, "_orig_mod", wrapped)


def train(fabric, model, audits=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = fabric.setup(model, optimizer)
    for step in range(3):
        if audits is not None:
            audits.audit(model, step)
        batch = IDS[torch.randperm(8)[:4]]
        loss = model(input_ids=batch, labels=batch).loss
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if audits is not None:
        audits.audit(model, 3)
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_training_is_the_same_and_the_record_has_no_wrapper_in_it(tmp_path, precision):
    states = []
    for audited in (False, True):
        fabric, model = Fabric(accelerator="cpu", devices=1, precision=precision), gpt2()
        torch.manual_seed(1)
        if audited:
            with ra.Recorder(tmp_path / "s.zarr", "m", PROBE, LAYERS) as audits:
                train(fabric, model, audits)
        else:
            train(fabric, model)
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    found = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset.load()
    assert list(found.data_vars)[:2] == NAMES
    assert found.step.values.tolist() == [0, 1, 2, 3]


def test_an_audit_inside_autocast_leaves_its_cache_alone():
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = fabric.setup_module(gpt2())
    with torch.autocast("cpu", torch.bfloat16):
        ra.ActivationExtractor(LAYERS).extract(wrapped, PROBE)
        fabric.backward(wrapped(input_ids=IDS, labels=IDS).loss)
    assert all(value.grad is not None for name, value in wrapped.named_parameters() if "wte" in name or ".h." in name)


def test_wrappers_inside_fabrics_are_taken_off_too():
    model = gpt2()
    wrapped = Fabric(accelerator="cpu", devices=1).setup_module(nn.DataParallel(model))
    assert unwrap(wrapped) is model
    assert entry_point(wrapped) is model
    assert list(ra.ActivationExtractor(LAYERS).extract(wrapped, PROBE)) == NAMES


STATES = {
    "flat": lambda model: model.state_dict(),
    "named": lambda model: {"model": model.state_dict(), "step": 3},
    "of Lightning": lambda model: {"state_dict": model.state_dict(), "global_step": 3},
    "below network": lambda model: {"state_dict": {f"network.{k}": v for k, v in model.state_dict().items()}},
}


@pytest.mark.parametrize("kind", STATES)
def test_a_saved_state_has_the_layers_of_the_training(tmp_path, kind):
    fabric = Fabric(accelerator="cpu", devices=1)
    with ra.Recorder(tmp_path / "s.zarr", "m", PROBE, LAYERS) as audits:
        model = train(fabric, gpt2(), audits)
    fabric.save(tmp_path / "step=3.ckpt", STATES[kind](network(model)))
    same_layers(tmp_path, tmp_path / "step=3.ckpt", config=CONFIG)


def test_so_has_what_fabric_saves_of_its_own_wrapper(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)
    with ra.Recorder(tmp_path / "s.zarr", "m", PROBE, LAYERS) as audits:
        model = train(fabric, gpt2(), audits)
    fabric.save(tmp_path / "step=3.ckpt", {"model": model, "step": 3})
    same_layers(tmp_path, tmp_path / "step=3.ckpt", config=CONFIG)


def test_so_has_a_checkpoint_of_the_transformers_trainer(tmp_path):
    callback = ra.AuditTrainerCallback(
        tmp_path / "s.zarr", "m", PROBE, LAYERS, ra.AuditTrigger(every_n_steps=1, at_start=True)
    )
    quiet = {"report_to": [], "save_steps": 3, "disable_tqdm": True, "use_cpu": True}
    args = TrainingArguments(str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, **quiet)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    Trainer(gpt2(), args, train_dataset=rows, callbacks=[callback]).train()
    same_layers(tmp_path, tmp_path / "out")


def same_layers(tmp_path, place, **options):
    """Compare what the training recorded last with what is recorded of its checkpoint."""
    record_pretrained([place], PROBE, LAYERS, tmp_path / "c.zarr", names=["m"], **options)
    found, saved = (ra.open_store(tmp_path / name)["models/m"].dataset.load() for name in ("s.zarr", "c.zarr"))
    assert list(found.data_vars)[:2] == list(saved.data_vars)[:2] == NAMES
    assert saved.step.values.tolist() == [3]
    for name in NAMES:
        torch.testing.assert_close(
            torch.tensor(found[name].values[-1]), torch.tensor(saved[name].values[0]), rtol=0, atol=1e-6
        )
