"""What an undisturbed block leaves behind: nothing."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from repaudit import ActivationExtractor, ProbeSet
from repaudit.capture.isolation import undisturbed


class Restless(nn.Module):
    """Changes everything a forward can change."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))
        self.count, self.losses, self.seen = 0, [], {"n": 0}
        self.last = None

    def forward(self, x):
        x = self.norm(self.linear(x)) + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        self.calls += 1
        self.cache = torch.ones(len(x))
        self.count += 1
        self.losses.append(x.sum())
        self.seen["n"] += 1
        self.last = x
        self.late = 1
        self.linear.register_forward_hook(lambda *_: None)
        return x


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "cache": model.cache,
        "plain": (model.count, list(model.losses), dict(model.seen), model.last, hasattr(model, "late")),
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
    }


def assert_same(before, after):
    for name, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][name]), name
    assert before["cache"] is after["cache"]
    for part in ("modes", "plain", "hooks", "random"):
        assert before[part] == after[part], part


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_leaves_no_trace(fails):
    model = Restless()
    model.norm.eval()  # frozen
    before = state_of(model)
    with pytest.raises(KeyError) if fails else undisturbed(model), undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.rand(4, 3)).requires_grad
        if fails:
            raise KeyError
    assert_same(before, state_of(model))
    assert model.training
    assert not model.norm.training


def test_extraction_leaves_no_trace_when_the_model_raises():
    model = Restless()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        ActivationExtractor(["linear"]).extract(model, ProbeSet.from_tensors({"x": torch.zeros(2, 4)}))
    assert_same(before, state_of(model))


def test_modes_are_set_without_calling_train():
    class Watched(nn.Linear):
        calls = 0

        def train(self, mode=True):
            type(self).calls += 1
            return super().train(mode)

    model = nn.Sequential(Watched(2, 2))
    with undisturbed(model):
        assert not model[0].training
    assert model[0].training
    assert Watched.calls == 0


def test_a_surrounding_autocast_keeps_its_gradients():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    probe_set = ProbeSet.from_tensors({"input": torch.randn(3, 4)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activations = ActivationExtractor(["[0]"]).extract(model, probe_set)
        model(torch.randn(2, 4)).float().sum().backward()
    assert activations["0"].dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_are_untouched():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    ActivationExtractor(["[*]"]).extract(model, ProbeSet.from_tensors({"input": torch.eye(2)}))
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(before, model.parameters(), strict=True))
