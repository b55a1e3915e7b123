"""How inputs reach a forward: by name, as one tensor, as one mapping, or by a function of the caller's."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import repaudit as ra
from repaudit.errors import CaptureError, LayerPathError, ProbeSetError

LENGTHS = torch.tensor([8, 5, 3, 8, 2, 6])
IDS = torch.randint(1, 32, (6, 8), generator=torch.Generator().manual_seed(3))
MASK = (torch.arange(8) < LENGTHS[:, None]).long()
TEXTS = ra.ProbeSet.from_tensors({"input_ids": IDS * MASK, "attention_mask": MASK})
LAYER = "trunk.encoder.layer[-1]"


def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


class Holder(nn.Module):
    """A trunk in a module whose forward takes what the subclasses say."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = bert(), nn.Linear(16, 2)

    def score(self, **inputs):
        return self.head(self.trunk(**inputs).last_hidden_state[:, 0])


class TakesBatch(Holder):
    def forward(self, batch):
        return self.score(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


class TakesFeatures(Holder):
    def forward(self, features: dict[str, torch.Tensor], **kwargs):
        features["scores"] = self.score(**features)
        return features


class SentenceEncoder(nn.Sequential):
    """As in sentence-transformers: modules that each add to the features, in place."""

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = bert()

        def forward(self, features, **kwargs):
            known = {name: features[name] for name in ("input_ids", "attention_mask")}
            features["token_embeddings"] = self.trunk(**known, **kwargs).last_hidden_state
            return features

    class Pooling(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            mask = features["attention_mask"].unsqueeze(-1)
            features["sentence_embedding"] = (features["token_embeddings"] * mask).sum(1) / mask.sum(1)
            return features

    def __init__(self):
        super().__init__(self.Transformer(), self.Pooling())

    def forward(self, input: "dict[str, torch.Tensor]", **kwargs) -> "dict[str, torch.Tensor]":  # noqa: A002
        for module in self:
            input = module(input)  # noqa: A001
        return input


class BatchWithDefault(Holder):
    def forward(self, batch=None):
        return self.score(**batch)


FORWARDS = {
    "a batch": (TakesBatch, LAYER),
    "features, and others by name": (TakesFeatures, LAYER),
    "a sentence encoder": (SentenceEncoder, "[0]." + LAYER),
    "a batch with a default": (BatchWithDefault, LAYER),
}


def expected(texts=TEXTS):
    """The masked mean of the last block, by a hook of its own."""
    model, seen = bert().eval(), []
    model.encoder.layer[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model(**texts.inputs)
    value = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    mask = texts.inputs["attention_mask"].unsqueeze(-1)
    return (value * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("kind", FORWARDS)
def test_a_forward_that_takes_one_mapping_gets_all_inputs(kind):
    build, layer = FORWARDS[kind]
    model = build()
    for batch_size in (6, 4):
        (found,) = ra.ActivationExtractor(layer).extract(model, TEXTS, batch_size).values()
        torch.testing.assert_close(found, expected(), rtol=0, atol=1e-6)
    assert sorted(TEXTS.inputs) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("kind", FORWARDS)
def test_so_does_a_compiled_or_wrapped_one(kind):
    build, layer = FORWARDS[kind]
    for wrap in (partial(torch.compile, backend="eager"), nn.DataParallel):
        (found,) = ra.ActivationExtractor(layer).extract(wrap(build()), TEXTS).values()
        torch.testing.assert_close(found, expected(), rtol=0, atol=1e-6)


def test_a_single_input_goes_as_the_tensor_it_is():
    class Takes(nn.Sequential):
        def forward(self, batch):
            assert isinstance(batch, torch.Tensor)
            return super().forward(batch)

    x = torch.randn(4, 3)
    model = Takes(nn.Linear(3, 2))
    found = ra.ActivationExtractor("[0]").extract(model, ra.ProbeSet.from_tensors({"pixels": x}))["0"]
    torch.testing.assert_close(found, model[0](x).detach())


def test_a_single_input_goes_as_a_mapping_where_the_forward_looks_it_up():
    class Takes(nn.Sequential):
        def forward(self, batch):
            return super().forward(batch["pixels"])

    x = torch.randn(4, 3)
    model = Takes(nn.Linear(3, 2))
    found = ra.ActivationExtractor("[0]").extract(model, ra.ProbeSet.from_tensors({"pixels": x}))["0"]
    torch.testing.assert_close(found, model[0](x).detach())


def test_a_single_input_goes_as_a_mapping_where_the_annotation_says_so():
    class Takes(nn.Sequential):
        def forward(self, batch: dict[str, torch.Tensor]):
            return super().forward(batch if isinstance(batch, torch.Tensor) else 2 * batch["pixels"])

    x = torch.randn(4, 3)
    model = Takes(nn.Linear(3, 2))
    found = ra.ActivationExtractor("[0]").extract(model, ra.ProbeSet.from_tensors({"pixels": x}))["0"]
    torch.testing.assert_close(found, model[0](2 * x).detach())


def test_what_a_forward_takes_out_of_its_mapping_still_masks():
    class Pops(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(32, 4), nn.Linear(4, 4)

        def forward(self, batch):
            mask = batch.pop("attention_mask")
            return (self.layer(self.embed(batch.pop("input_ids"))) * mask[..., None]).sum(1)

    model, mask = Pops(), MASK[..., None]
    found = ra.ActivationExtractor("layer").extract(model, TEXTS)["layer"]
    with torch.no_grad():
        torch.testing.assert_close(found, (model.layer(model.embed(IDS * MASK)) * mask).sum(1) / mask.sum(1))


def test_after_a_layers_own_error_no_other_form_is_tried():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Identity()

        def forward(self, batch):
            return self.whole((batch["x"] if isinstance(batch, dict) else batch).long())

    forms = []
    model = Takes()
    model.register_forward_pre_hook(lambda _module, args: forms.append(type(args[0])))
    with pytest.raises(CaptureError, match="expected floating-point values"):
        ra.ActivationExtractor("whole").extract(model, ra.ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert forms == [torch.Tensor]


def test_inputs_that_fit_neither_by_name_nor_as_a_mapping_are_told():
    class Takes(nn.Sequential):
        def forward(self, batch):
            return super().forward(batch["pixels"])

    two = ra.ProbeSet.from_tensors({"a": torch.eye(3), "b": torch.eye(3)})
    message = (
        r"\['a', 'b'\] are not parameters of Takes.forward, which takes batch; as one mapping .*KeyError: 'pixels'"
    )
    with pytest.raises(ProbeSetError, match=message):
        ra.ActivationExtractor("[0]").extract(Takes(nn.Linear(3, 2)), two)


def test_the_models_own_error_is_raised_where_no_form_works():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        ra.ActivationExtractor("[0]").extract(
            nn.Sequential(nn.Linear(3, 2)), ra.ProbeSet.from_tensors({"x": torch.eye(4)})
        )


def named(model):
    return lambda input_ids, attention_mask: model.score(input_ids=input_ids, attention_mask=attention_mask)


PASSED = {
    "by name": named,
    "any names": lambda model: model.score,
    "one mapping": lambda model: lambda batch: model.score(**batch),
    "a method": lambda model: model.trunk.forward,
    "a module": lambda model: model.trunk,
}


@pytest.mark.parametrize("kind", PASSED)
def test_a_forward_that_is_passed_is_called_instead(kind, tmp_path):
    model = Holder()  # has no forward at all
    (found,) = ra.ActivationExtractor(LAYER).extract(model, TEXTS, forward=PASSED[kind](model)).values()
    torch.testing.assert_close(found, expected(), rtol=0, atol=1e-6)
    with ra.Recorder(tmp_path / "s.zarr", "m", TEXTS, [LAYER], forward=PASSED[kind](model)) as audits:
        assert audits.audit(model, 0)
    stored = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset["trunk.encoder.layer.1"].values[0]
    torch.testing.assert_close(torch.tensor(stored), expected(), rtol=0, atol=1e-6)


def test_a_forward_that_is_no_function_is_refused(tmp_path):
    with pytest.raises(TypeError, match="forward: expected a function of a batch's inputs, found 'score'"):
        ra.Recorder(tmp_path / "s.zarr", "m", TEXTS, [LAYER], forward="score")


def test_inputs_that_a_passed_forward_does_not_know_are_listed():
    texts = ra.ProbeSet.from_tensors({"input_ids": IDS, "pixel_values": IDS})
    message = r"\['input_ids', 'pixel_values'\] are not parameters of the forward that was passed .*takes ids, other"
    with pytest.raises(ProbeSetError, match=message):
        ra.ActivationExtractor(LAYER).extract(Holder(), texts, forward=lambda ids, other: None)


class WithLoss(nn.Module):
    """As the transformers ``Trainer`` wants it, around a model that takes a mapping."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        scores = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def rows():
    return [{"input_ids": IDS[i], "attention_mask": MASK[i], "labels": torch.tensor(i % 2)} for i in range(6)]


def test_the_callback_of_the_transformers_trainer_takes_a_forward(tmp_path):
    model = WithLoss(TakesBatch())
    callback = ra.AuditTrainerCallback(
        tmp_path / "s.zarr", "m", TEXTS, ["model." + LAYER], ra.AuditTrigger(every_n_steps=1, at_start=True),
        forward=model.model, on_store_error="raise",
    )  # fmt: skip
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-2}
    args = TrainingArguments(str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=3, **quiet)
    Trainer(model, args, train_dataset=rows(), callbacks=[callback]).train()
    found = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset["model.trunk.encoder.layer.1"].load()
    assert found.step.values.tolist() == [0, 1, 2]
    torch.testing.assert_close(torch.tensor(found.values[0]), expected(), rtol=0, atol=1e-6)
    (last,) = ra.ActivationExtractor(LAYER).extract(model.model, TEXTS).values()
    torch.testing.assert_close(torch.tensor(found.values[2]), last, rtol=0, atol=1e-6)


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = TakesBatch()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("passes", [False, True])
def test_the_callback_of_lightning_takes_a_forward_or_finds_the_mapping(tmp_path, passes):
    module = Lit()
    more = {"forward": lambda **inputs: module.network(inputs)} if passes else {}
    callback = ra.RepresentationAuditCallback(
        tmp_path / "s.zarr", "m", TEXTS, [LAYER], ra.AuditTrigger(every_n_steps=1, at_start=True), **more
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    pl.Trainer(max_epochs=1, enable_checkpointing=False, callbacks=[callback], **quiet).fit(
        module, DataLoader(rows(), batch_size=3)
    )
    found = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset["trunk.encoder.layer.1"].load()
    assert found.step.values.tolist() == [0, 1, 2]
    torch.testing.assert_close(torch.tensor(found.values[0]), expected(), rtol=0, atol=1e-6)


def test_a_path_that_does_not_resolve_is_told_before_the_forward_is_tried():
    with pytest.raises(LayerPathError, match="nope"):
        ra.ActivationExtractor("nope").extract(TakesBatch(), TEXTS)
