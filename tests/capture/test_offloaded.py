"""Models whose weights accelerate keeps elsewhere between forwards: the same activations, and the offload goes on."""

import copy

import accelerate
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import repaudit as ra
from repaudit.capture.isolate.isolation import devices_of, undisturbed

CPU = torch.device("cpu")
IDS = torch.randint(1, 32, (6, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": IDS})
PLACES = {
    "transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "disk",
    "transformer.ln_f": "disk", "lm_head": "cpu",
}  # fmt: skip
LAYERS = ["transformer.wte", "transformer.h[*]", "transformer.h[1].mlp", "transformer.ln_f"]


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def from_device_map(model, folder):
    model.save_pretrained(folder / "saved")
    return GPT2LMHeadModel.from_pretrained(folder / "saved", device_map=PLACES, offload_folder=folder / "offloaded")


FORMS = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, execution_device=CPU),
    "cpu_offload with buffers": lambda model, folder: accelerate.cpu_offload(model, CPU, offload_buffers=True),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder, execution_device=CPU),
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model, PLACES, main_device="cpu", offload_dir=folder
    ),
    "device_map": from_device_map,
}


@pytest.fixture(params=FORMS)
def offloaded(request, tmp_path):
    return FORMS[request.param](copy.deepcopy(gpt2()), tmp_path)


def places(model):
    return {name: value.device.type for name, value in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.filterwarnings("ignore:.*were offloaded")
def test_activations_are_those_of_the_model_as_it_was_and_the_offload_goes_on(offloaded):
    bare, before = gpt2(), places(offloaded)
    assert "meta" in before.values()
    expected = ra.ActivationExtractor(LAYERS).extract(bare, PROBE)
    found = ra.ActivationExtractor(LAYERS).extract(offloaded, PROBE, batch_size=4)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert places(offloaded) == before
    torch.testing.assert_close(offloaded(IDS).logits, bare(IDS).logits, rtol=0, atol=1e-6)


class Scaled(nn.Module):
    """Holds a parameter beside a layer, after which it computes on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.inner = nn.Parameter(torch.randn(3)), nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x * self.scale) * self.scale


def test_a_layer_inside_a_module_that_holds_weights_does_not_leave_them_loaded():
    x, bare = torch.randn(4, 3), Scaled()
    model = accelerate.cpu_offload(copy.deepcopy(bare), execution_device=CPU)
    before = places(model)
    found = ra.ActivationExtractor("inner").extract(model, ra.ProbeSet.from_tensors({"x": x}))["inner"]
    torch.testing.assert_close(found, bare.inner(x * bare.scale).detach())
    assert set(before.values()) == {"meta"}
    assert places(model) == before


def test_an_offloaded_model_is_recorded(tmp_path):
    model = accelerate.cpu_offload(gpt2(), execution_device=CPU)
    with ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["transformer.h[*]"], on_store_error="raise") as recorder:
        assert [recorder.audit(model, step) for step in (0, 1)] == [True, True]
    values = ra.open_store(tmp_path / "s.zarr")["models/seed0"].dataset
    expected = ra.ActivationExtractor(["transformer.h[0]"]).extract(gpt2(), PROBE)["transformer.h.0"]
    torch.testing.assert_close(torch.tensor(values["transformer.h.0"].values[1]), expected, rtol=0, atol=1e-6)


def test_autocast_goes_on_without_its_cache_around_an_offloaded_model():
    model = accelerate.cpu_offload(gpt2(), execution_device=CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found = ra.ActivationExtractor(["transformer.h[0].mlp.c_fc"]).extract(model, PROBE)
        expected = ra.ActivationExtractor(["transformer.h[0].mlp.c_fc"]).extract(gpt2(), PROBE)
        assert torch.is_autocast_cache_enabled()
    (name,) = expected
    assert torch.equal(found[name], expected[name])


def test_devices_are_those_that_the_weights_are_moved_to():
    hooked = nn.Sequential(nn.Linear(2, 2, device="meta"))
    hooked[0]._hf_hook = accelerate.hooks.AlignDevicesHook("cuda:1", offload=True)
    assert devices_of(hooked) == {torch.device("cuda:1")}
    hooked[0]._hf_hook = accelerate.hooks.SequentialHook(hooked[0]._hf_hook)
    assert devices_of(hooked) == {torch.device("cuda:1")}


def test_a_model_on_the_meta_device_is_left_alone_too():
    with undisturbed(nn.Linear(2, 2, device="meta")) as nothing:
        assert nothing is None
