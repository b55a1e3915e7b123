"""A model that rescales itself in evaluation mode: its weights are put back, or the error says that they are not."""

import pytest
import torch
from torch import nn
from transformers import RwkvConfig, RwkvForCausalLM

import repaudit as ra
from repaudit.capture.isolate import isolation
from repaudit.errors import CaptureError, StateError

IDS = torch.randint(1, 32, (4, 6), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": IDS})
LOST = "the model in hand is no longer the trained one: load it again"


def rwkv():
    torch.manual_seed(0)
    return RwkvForCausalLM(
        RwkvConfig(vocab_size=32, context_length=16, hidden_size=16, num_hidden_layers=4, rescale_every=2)
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_same(model, kept):
    return all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_weights_that_a_model_rescales_are_put_back(tmp_path):
    model = rwkv().train()
    kept, expected = state(model), rwkv().train()(IDS).logits
    with pytest.raises(StateError, match=r"blocks\.2\.attention\.output\.weight.*they are put back$"):
        ra.ActivationExtractor("rwkv.blocks[*]").extract(model, PROBE)
    assert is_same(model, kept)
    assert model.training
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    with ra.Recorder(tmp_path / "s.zarr", "m", PROBE, ["rwkv.blocks[*]"]) as audits, pytest.raises(StateError):
        audits.audit(model, 0)
    assert is_same(model, kept)


def test_of_a_large_model_it_is_said_that_they_are_not(monkeypatch):
    monkeypatch.setattr(isolation, "LARGEST_COPIED", 16)
    model = rwkv().train()
    kept = state(model)
    with pytest.raises(StateError, match=LOST):
        ra.ActivationExtractor("rwkv.blocks[*]").extract(model, PROBE)
    assert not is_same(model, kept)


class Changes(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.change = nn.Linear(3, 2), change

    def forward(self, x):
        if self.change and not self.training:
            with torch.no_grad():
                self.change(self.body.weight)
        return self.body(x)


CHANGES = {
    "in place": lambda weight: weight.mul_(0.5),
    "behind the version": lambda weight: weight.data.add_(1.0),
    "other storage": lambda weight: setattr(weight, "data", weight.data * 2),
}
X = ra.ProbeSet.from_tensors({"x": torch.randn(4, 3)})


@pytest.mark.parametrize("kind", CHANGES)
def test_however_they_are_changed(kind):
    model = Changes(CHANGES[kind])
    kept = state(model)
    with pytest.raises(StateError, match=r"body\.weight.*they are put back"):
        ra.ActivationExtractor("body").extract(model, X)
    assert is_same(model, kept)


@pytest.mark.parametrize("kind", CHANGES)
def test_they_are_put_back_where_the_forward_fails_too(kind):
    def fails(weight):
        CHANGES[kind](weight)
        raise CaptureError("the layer is not there")

    model = Changes(fails)
    kept = state(model)
    with pytest.raises(StateError, match="they are put back"):
        ra.ActivationExtractor("body").extract(model, X)
    assert is_same(model, kept)


def test_a_model_that_begins_to_change_later_is_told_to_be_lost():
    model, extractor = Changes(None), ra.ActivationExtractor("body")
    extractor.extract(model, X)
    model.change = CHANGES["in place"]
    with pytest.raises(StateError, match=LOST):
        extractor.extract(model, X)
