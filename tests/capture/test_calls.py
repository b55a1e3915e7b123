"""Modules that one forward calls several times, and outputs of less usual types."""

import weakref
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from torch import nn

import repaudit as ra
from repaudit.errors import ActivationTypeError, CaptureError

IDS = torch.randint(3, 40, (5, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9)[None] < torch.tensor([9, 4, 6, 9, 1])[:, None]).long()
FULL = {"input_ids": IDS, "attention_mask": MASK}
SIZES = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}  # fmt: skip
GROUP = "encoder.albert_layer_groups.0"


def mean(tokens, mask):
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def albert():
    torch.manual_seed(0)
    return tf.AlbertModel(tf.AlbertConfig(**SIZES, embedding_size=8))


@pytest.fixture(scope="module")
def states(albert):
    with torch.no_grad():
        entries = albert.eval()(**FULL, output_hidden_states=True).hidden_states[1:]
    return [mean(entry, MASK) for entry in entries]


@pytest.mark.parametrize("call", [0, 1, 2, -1])
def test_one_call_of_a_shared_group_is_the_models_own_state(albert, states, call, extract):
    found = extract(ra.LayerSpec(GROUP, call=call), albert, **FULL)
    torch.testing.assert_close(found, {f"{GROUP}#{call}": states[call]})


def test_each_call_and_their_mean(albert, states, extract):
    each = extract(ra.LayerSpec(GROUP, call="each", name="group"), albert, **FULL)
    torch.testing.assert_close(each, {f"group#{number}": state for number, state in enumerate(states)})
    averaged = extract(ra.LayerSpec(GROUP, call="mean"), albert, **FULL)
    torch.testing.assert_close(averaged, {f"{GROUP}#mean": torch.stack(states).mean(0)})


def test_a_call_that_there_is_not_is_refused(albert, extract):
    with pytest.raises(CaptureError, match="fired 3 times in one forward, and call=5 was asked for"):
        extract(ra.LayerSpec(GROUP, call=5), albert, **FULL)
    for wrong in ("all", 1.0, True):
        with pytest.raises(ValueError, match="call: expected a number"):
            ra.LayerSpec(GROUP, call=wrong)


def test_calls_are_recorded_with_their_own_attributes(tmp_path, albert, states):
    probe_set = ra.ProbeSet.from_tensors(FULL)
    spec = ra.LayerSpec(GROUP, call="each")
    with ra.Recorder(tmp_path / "s.zarr", "albert", probe_set, [spec]) as recorder:
        assert recorder.audit(albert, 0)
    tree = ra.open_store(tmp_path / "s.zarr")
    for number, state in enumerate(states):
        stored = tree.repaudit.activations("albert", f"{GROUP}#{number}")
        torch.testing.assert_close(torch.from_numpy(stored.isel(step=0).values), state)
        assert stored.attrs["module_path"] == GROUP


class Sometimes(nn.Module):
    """Calls its layer as often as the first value says."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        for _ in range(int(x[0, 0]) + 1):
            x = self.layer(x)
        return x


def test_another_number_of_calls_than_in_the_first_forward_is_an_error():
    x = torch.tensor([[1.0, 0, 0], [2, 0, 0]])
    with pytest.raises(CaptureError, match=r"'layer' .* fired 3 times in one forward, and 2 times in the first"):
        ra.ActivationExtractor(ra.LayerSpec("layer", call="each")).extract(
            Sometimes(), ra.ProbeSet.from_tensors({"x": x}), batch_size=1
        )


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(48, 4), nn.GRU(4, 6, batch_first=True)

    def forward(self, input_ids, attention_mask):
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(input_ids), lengths, batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1][-1]


@pytest.mark.parametrize("batch_size", [5, 2])
def test_packed_sequences_are_unpacked_in_the_order_of_samples(batch_size, seen):
    torch.manual_seed(0)
    model = Packed()
    packed = seen(model, ["rnn"], **FULL)["rnn"]
    padded, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    assert lengths.tolist() == MASK.sum(1).tolist()
    found = ra.ActivationExtractor(["rnn", ra.LayerSpec("rnn", reduce="last_token")]).extract(
        model, ra.ProbeSet.from_tensors(FULL), batch_size=batch_size
    )
    torch.testing.assert_close(found["rnn"], mean(padded, MASK))
    torch.testing.assert_close(found["rnn:last_token"], padded[torch.arange(5), MASK.sum(1) - 1])


@dataclass
class Output:
    hidden: torch.Tensor
    loss: float = 0.0
    other: torch.Tensor | None = None


class Returns(nn.Module):
    def __init__(self, *, both):
        super().__init__()
        self.linear, self.both = nn.Linear(3, 4), both

    def forward(self, x):
        return Output(self.linear(x), other=x if self.both else None)


def test_a_dataclass_with_one_tensor_is_read_and_one_with_several_refused(extract):
    x = torch.randn(5, 3)
    one, two = nn.Sequential(Returns(both=False)), nn.Sequential(Returns(both=True))
    torch.testing.assert_close(extract("[0]", one, input=x)["0"], one[0].linear(x).detach())
    with pytest.raises(ActivationTypeError, match="hidden, other, which is ambiguous"):
        extract("[0]", two, input=x)


def test_calls_of_several_forwards_that_are_captured(seen):
    torch.manual_seed(0)
    model, x = Sometimes(), torch.cat([torch.ones(4, 1), torch.randn(4, 2)], 1)  # two calls
    extractor = ra.ActivationExtractor(ra.LayerSpec("layer", call="each"))
    for _ in range(2):
        with extractor.capture(model), torch.no_grad():
            expected = torch.cat([model(x), model(x[:2])])
        assert list(extractor.activations) == ["layer#0", "layer#1"]
        torch.testing.assert_close(extractor.activations["layer#1"], expected)


def test_no_inputs_are_kept_alive_after_a_forward():
    model, alive = nn.Sequential(nn.Linear(3, 2)).double(), []
    model.register_forward_pre_hook(lambda _module, args: alive.append(weakref.ref(args[0])))
    counts = []

    def agree(error):
        assert error is None
        counts.append((len(alive), sum(ref() is not None for ref in alive)))

    probe_set = ra.ProbeSet.from_tensors({"x": torch.randn(6, 3)})  # converted for each batch
    ra.ActivationExtractor("[0]").extract(model, probe_set, 2, agree=agree)
    assert counts[-1] == (4, 0)
    assert all(left == 0 for _, left in counts)
