"""Training modules without a forward, whose training_step calls a part of them: that part is audited."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import repaudit as ra
from repaudit.capture.extract.wrappers import entry_point, network
from repaudit.capture.pretrained.record_pretrained import record_pretrained
from repaudit.errors import CaptureError

CONFIG = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
IDS = torch.randint(1, 32, (8, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": IDS})
NAMES = ["transformer.h.0", "transformer.h.1"]


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(CONFIG)
        self.criterion = nn.CrossEntropyLoss()  # a part without parameters

    def training_step(self, batch, batch_idx):
        logits = self.model(batch).logits[:, :-1]
        return self.criterion(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithHead(Lit):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(16, 4)


class Several(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 3)


class InModule(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(CONFIG)


def expected(model):
    """The means of the blocks' outputs, by hooks of their own."""
    seen = []
    blocks = model.eval().transformer.h
    hooks = [block.register_forward_hook(lambda _m, _i, output: seen.append(output)) for block in blocks]
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    return [(value[0] if isinstance(value, tuple) else value).mean(1) for value in seen]


@pytest.mark.parametrize("build", [Lit, InModule])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_its_model_is_audited_and_paths_may_name_the_attribute(build, prefix):
    module = build()
    found = ra.ActivationExtractor(f"{prefix}transformer.h[*]").extract(module, PROBE)
    assert list(found) == NAMES
    for value, other in zip(found.values(), expected(module.model), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6)


def fitted(tmp_path, *callbacks):
    pl.seed_everything(0, verbose=False)
    module = Lit()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks), default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(IDS, batch_size=4))
    return module, trainer


def test_a_fit_records_it_and_its_checkpoint_has_the_same_layers(tmp_path):
    trigger = ra.AuditTrigger(every_n_steps=1, at_start=True)
    callback = ra.RepresentationAuditCallback(tmp_path / "s.zarr", "m", PROBE, ["transformer.h[*]"], trigger)
    plain, _ = fitted(tmp_path)
    module, trainer = fitted(tmp_path, callback)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    trainer.save_checkpoint(tmp_path / "step=2.ckpt", weights_only=True)
    found = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset.load()
    assert list(found.data_vars)[:2] == NAMES
    assert found.step.values.tolist() == [0, 1, 2]
    record_pretrained(
        [tmp_path / "step=2.ckpt"], PROBE, ["transformer.h[*]"], tmp_path / "c.zarr", config=CONFIG, names=["m"]
    )
    saved = ra.open_store(tmp_path / "c.zarr")["models/m"].dataset.load()
    for name, value in zip(NAMES, expected(module.model), strict=True):
        torch.testing.assert_close(torch.tensor(found[name].values[-1]), value, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(saved[name].values[0]), value, rtol=0, atol=1e-6)


def test_several_parts_are_named_with_what_to_do():
    x = torch.randn(4, 3)
    module, probe_set = Several(), ra.ProbeSet.from_tensors({"x": x})
    message = r"Several has no forward of its own, and several .*\(encoder, decoder\): pass .*forward=module.encoder"
    with pytest.raises(CaptureError, match=message):
        ra.ActivationExtractor("encoder").extract(module, probe_set)
    found = ra.ActivationExtractor("encoder").extract(module, probe_set, forward=module.encoder)
    torch.testing.assert_close(found["encoder"], module.encoder(x).detach())


def test_of_several_parts_the_one_passed_is_called_as_a_model_is():
    """With left padding, whose positions only a model of transformers' own treatment counts right."""
    module, padded = WithHead(), torch.cat([torch.zeros(8, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(11) >= 3).long().expand(8, 11).contiguous()
    texts = ra.ProbeSet.from_tensors({"input_ids": padded, "attention_mask": mask})
    with pytest.raises(CaptureError, match=r"\(model, projection\): pass .*forward=module.model"):
        ra.ActivationExtractor("model.transformer.h[*]").extract(module, texts)
    found = ra.ActivationExtractor("model.transformer.h[*]").extract(module, texts, forward=module.model)
    assert list(found) == [f"model.{name}" for name in NAMES]
    for value, other in zip(found.values(), expected(module.model), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-5)


def test_a_module_without_parts_is_told_too():
    with pytest.raises(CaptureError, match="has no forward of its own: pass what is called"):
        ra.ActivationExtractor("[0]").extract(nn.ModuleList([nn.ReLU()]), PROBE)


def test_a_module_with_a_forward_of_its_own_is_itself_the_network():
    class Forwards(Lit):
        def forward(self, batch):
            return self.model(batch)

    class LightningModule(Lit):
        def forward(self, batch):
            return self.model(batch)

    for module in (Forwards(), LightningModule(), nn.Sequential(nn.Linear(2, 2))):
        assert network(module) is module
        assert entry_point(module) is module
    assert network(Lit()) is not entry_point(nn.Linear(2, 2))
    assert list(ra.ActivationExtractor("model.transformer.h[*]").extract(Forwards(), PROBE)) == [
        f"model.{name}" for name in NAMES
    ]
