"""What an undisturbed block leaves behind: nothing."""

import collections
import random

import numpy as np
import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit import ActivationExtractor, ProbeSet
from repaudit.capture.isolate.isolation import undisturbed
from repaudit.errors import StateError


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


class Keeps(nn.Module):
    """Holds state of every kind outside its parameters, and changes one kind in its forward."""

    def __init__(self, change):
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change
        self.hidden, self._cache = (torch.zeros(1), 0), {}
        self.tensor, self.array = torch.zeros(2), np.zeros(2)
        self.generator = torch.Generator().manual_seed(1)
        self.rng, self.python = np.random.default_rng(0), random.Random(0)
        self.nested, self.recent = {"a": [[torch.zeros(1)]]}, collections.deque(maxlen=2)
        self.counter, self._ordered = collections.Counter(), collections.OrderedDict(a=1, b=2)
        self.register_buffer("buffer", torch.zeros(2))
        self.register_buffer("grows", torch.zeros(0))
        self.register_buffer("absent", None)

    def forward(self, x):
        self.change(self)
        return self.linear(x)

    def state(self):
        kept = (self.hidden, self._cache, self.tensor, self.array, self.nested, self.recent, self.counter)
        rest = (self._ordered, self.buffer, self.grows.shape, self.absent, hasattr(self, "new"), list(self._modules))
        states = (self.generator.get_state().tolist(), self.rng.bit_generator.state, self.python.getstate())
        return str((kept, rest, states))


def in_inference_mode(change):
    def changed(model):
        with torch.inference_mode():
            change(model)

    return changed


CHANGES = {
    "tuple": lambda m: setattr(m, "hidden", (m.hidden[0] + 1, 2)),
    "tensor in a tuple": lambda m: m.hidden[0].add_(1),
    "private dict": lambda m: m._cache.update(n=1),
    "order": lambda m: m._ordered.move_to_end("a"),
    "tensor": lambda m: m.tensor.add_(1),
    "array": lambda m: m.array.__iadd__(1),
    "torch generator": lambda m: torch.rand(1, generator=m.generator),
    "NumPy generator": lambda m: m.rng.random(),
    "Python generator": lambda m: m.python.random(),
    "nested list": lambda m: m.nested["a"][0].append(1),
    "nested tensor": lambda m: m.nested["a"][0][0].add_(1),
    "deque": lambda m: m.recent.append(1),
    "counter": lambda m: m.counter.update(["a"]),
    "buffer through .data": lambda m: m.buffer.data.add_(1),
    "buffer resized": lambda m: m.grows.resize_(4).fill_(1),
    "buffer made": lambda m: setattr(m, "absent", torch.ones(2)),
    "container made": lambda m: setattr(m, "new", [1]),
    "module made": lambda m: m.add_module("more", nn.Linear(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_state_of_every_kind_comes_back(change):
    model = nn.Sequential(Keeps(CHANGES[change]), nn.Dropout())
    before, buffer = model[0].state(), model[0].buffer
    ActivationExtractor(["[0]"]).extract(model, ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert model[0].state() == before
    assert model[0].buffer is buffer
    assert all(module.training for module in model.modules())


def test_buffers_made_in_inference_mode_come_back():
    model = Keeps(CHANGES["buffer through .data"])
    with torch.inference_mode():
        model.buffer = torch.zeros(2)
    model.change = in_inference_mode(model.change)
    ActivationExtractor(["linear"]).extract(model, ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert model.buffer.tolist() == [0, 0]


def test_a_forward_that_changes_parameters_is_refused():
    model = Keeps(lambda m: m.linear.weight.data.mul_(1.01))
    with pytest.raises(StateError, match=r"changes the parameters linear\.weight"):
        ActivationExtractor(["linear"]).extract(model, ProbeSet.from_tensors({"x": torch.eye(3)}))


def test_what_cannot_come_back_is_told_and_the_rest_comes_back():
    class Stubborn(random.Random):
        def setstate(self, state):
            raise OSError("no")

    model = nn.Sequential(Keeps(lambda m: m.tensor.add_(1)), nn.Dropout())
    model[0].python = Stubborn(0)
    with pytest.raises(StateError, match=r"0\.python \(OSError: no\)"), undisturbed(model):
        model(torch.eye(3))
    assert all(module.training for module in model.modules())
    assert model[0].tensor.tolist() == [0, 0]


def test_padded_encoder_layers_are_called_with_their_padding():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 4] = True
    probe_set = ProbeSet.from_tensors({"src": torch.randn(3, 5, 8), "src_key_padding_mask": padding})
    found = ActivationExtractor(["layers[*]", "layers[0].linear1"]).extract(encoder, probe_set)
    assert found["layers.0.linear1"].shape == (3, 16)
    with torch.no_grad():
        first = encoder.eval().layers[0](probe_set.inputs["src"], src_key_padding_mask=padding)
    torch.testing.assert_close(found["layers.0"], first[:, :4].mean(1))  # true where a token does not count
    assert torch.backends.mha.get_fastpath_enabled()


class Counts(nn.Module):
    """Multiplies by a buffer, which every forward in evaluation mode changes in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        if not self.training:
            self.scale.add_(1)
        return self.linear(x * self.scale)


def test_a_graph_that_is_alive_across_an_audit_can_still_be_run_back():
    model = Counts()
    x = torch.eye(3, requires_grad=True)
    loss = model(x).sum()
    ActivationExtractor(["linear"]).extract(model, ProbeSet.from_tensors({"x": torch.eye(3)}))
    loss.backward()
    assert model.scale.tolist() == [1, 1, 1]
    assert x.grad is not None


def test_values_come_back_where_torch_gives_no_version_back(monkeypatch):
    monkeypatch.setattr("repaudit.capture.isolate.snapshot._PRESERVING", None)
    model = Counts()
    ActivationExtractor(["linear"]).extract(model, ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert model.scale.tolist() == [1, 1, 1]
    model(torch.eye(3)).sum().backward()  # a graph made after the audit


def test_the_default_dtype_comes_back_from_a_forward_that_was_stopped():
    class Widens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            y = self.linear(x)
            torch.set_default_dtype(before)
            return y

    ActivationExtractor(["linear"]).extract(Widens(), ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_parts_in_torchscript_are_walked():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scripted = torch.jit.trace(nn.Sequential(nn.Linear(3, 3)), torch.eye(3))
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.scripted(x))

    found = ActivationExtractor(["head"]).extract(Mixed(), ProbeSet.from_tensors({"x": torch.eye(3)}))
    assert found["head"].shape == (3, 2)


class InPlace(nn.Module):
    """A forward that normalizes what it is given where it lies, and turns its mask around."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.top = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, features: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features.sub_(features.mean(-1, keepdim=True)).mul_(2)
        attention_mask.zero_()
        return self.top(self.embed(features))


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_forward_that_changes_its_inputs_changes_nothing_of_the_probe_set(tmp_path, batch_size):
    inputs = {"features": torch.randn(8, 4, 3), "attention_mask": torch.ones(8, 4, dtype=torch.int64)}
    inputs["attention_mask"][:, 3] = 0
    probe_set, model = ra.ProbeSet.from_tensors({name: value.clone() for name, value in inputs.items()}), InPlace()
    with ra.Recorder(tmp_path / "s.zarr", "m", probe_set, "embed", durable=False, batch_size=batch_size) as recorder:
        for step in range(3):
            recorder.audit(model, step)
    for name, value in inputs.items():
        assert torch.equal(probe_set.inputs[name], value)
    seen = ra.open_store(tmp_path / "s.zarr")["models/m/embed"].values
    centred = 2 * (inputs["features"] - inputs["features"].mean(-1, keepdim=True))
    expected = model.embed(centred)[:, :3].mean(1).detach().numpy()
    for step in range(3):
        np.testing.assert_allclose(seen[step], expected, atol=1e-6)
