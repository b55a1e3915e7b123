"""What the dims of activations mean, followed through the forward, against means over the right dims."""

import pytest
import torch
import transformers as tf
from torch import nn

import repaudit as ra
from repaudit.capture.extract.layout import Layout
from repaudit.errors import CaptureError


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class Temporal(nn.Module):
    """A block of a temporal convolutional network."""

    def __init__(self, inner, outer, dilation):
        super().__init__()
        conv = nn.Conv1d(inner, outer, 3, padding=2 * dilation, dilation=dilation)
        self.net = nn.Sequential(conv, Chomp(2 * dilation), nn.ReLU(), nn.Dropout())
        self.skip, self.relu = nn.Conv1d(inner, outer, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.net(x) + self.skip(x))


@pytest.mark.parametrize("length", [20, 8, 16])
def test_features_first_in_three_dims_from_any_module(length, seen, extract):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU()), nn.MaxPool1d(2), Temporal(8, 8, 1), nn.BatchNorm1d(8),
        nn.GELU(), nn.AdaptiveAvgPool1d(8),
    )  # fmt: skip
    x = torch.randn(5, 3, length)
    found = extract(["[*]", "[0][*]", "[2].net[*]", "[2].relu"], model, input=x)
    for name, own in seen(model, list(found), input=x).items():
        torch.testing.assert_close(found[name], own.mean(2), msg=name)


class Mixed(nn.Module):
    """Puts features first by a convolution and last by a linear layer, and adds, transposes and flattens between."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.first, self.last = (
            nn.Conv1d(4, 6, 1),
            nn.Linear(6, 6),
            nn.Identity(),
            nn.Identity(),
        )
        self.heads, self.mixed = nn.Identity(), nn.Identity()

    def forward(self, x):
        y = self.first(self.conv(x).sigmoid() * 2)
        y = self.last(self.linear(y.mT) + y.transpose(1, 2))
        self.heads(y.unflatten(-1, (2, 3)).transpose(1, 2))
        return self.mixed(y.flatten(0, 1))


@pytest.mark.parametrize("length", [6, 9])  # also where there are as many positions as features
def test_dims_are_followed_through_functions(length, seen, extract):
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(5, 4, length)
    found = extract(["first", "last", "heads", "mixed"], model, input=x)
    own = seen(model, list(found), input=x)
    torch.testing.assert_close(found["first"], own["first"].mean(2))
    torch.testing.assert_close(found["last"], own["last"].mean(1))
    torch.testing.assert_close(found["heads"], own["heads"].mean(2).flatten(1))
    torch.testing.assert_close(found["mixed"], own["last"].mean(1))


def test_swin_at_a_size_that_is_not_square(seen, extract):
    config = tf.SwinConfig(
        image_size=(32, 64), patch_size=4, embed_dim=24, depths=[1, 1], num_heads=[2, 4], window_size=4
    )
    model, pixels = tf.SwinModel(config), torch.randn(3, 3, 32, 64)
    found = extract(["embeddings", "encoder.layers[*]", "encoder.layers[*].blocks[*]"], model, pixel_values=pixels)
    assert {name: value.shape[1] for name, value in found.items()} == {
        "embeddings": 24, "encoder.layers.0": 48, "encoder.layers.1": 48,
        "encoder.layers.0.blocks.0": 24, "encoder.layers.1.blocks.0": 48,
    }  # fmt: skip
    for name, own in seen(model, list(found), pixel_values=pixels).items():
        torch.testing.assert_close(found[name], own.mean(1), msg=name)


def test_convnext_norms_with_features_first_and_last(seen, extract):
    model = tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    pixels, layer = torch.randn(3, 3, 32, 64), "encoder.stages.0.layers.0"
    names = [f"{layer}.{part}" for part in ("dwconv", "layernorm", "act")]
    found, own = extract(names, model, pixel_values=pixels), seen(model, names, pixel_values=pixels)
    torch.testing.assert_close(found[names[0]], own[names[0]].mean((2, 3)))
    for name in names[1:]:
        torch.testing.assert_close(found[name], own[name].mean((1, 2)), msg=name)


@pytest.mark.parametrize("tokens", [9, 12])  # twelve are also the features of all heads
@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])  # heads behind tokens, and before them
def test_heads_are_features_and_the_mask_counts(kind, tokens, seen, extract):
    sizes = {
        "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 6,
    }  # fmt: skip
    model = (
        tf.Qwen3Model(tf.Qwen3Config(**sizes)) if kind == "qwen3" else tf.Gemma3TextModel(tf.Gemma3TextConfig(**sizes))
    )
    ids = torch.randint(3, 40, (5, tokens))
    mask = (torch.arange(tokens)[None] < torch.tensor([tokens, 4, 6, tokens, 1])[:, None]).long()
    names = [f"layers.0.self_attn.{part}_norm" for part in "qk"]
    found = extract(names, model, input_ids=ids, attention_mask=mask)
    for name, own in seen(model, names, input_ids=ids, attention_mask=mask).items():
        by_token = own.flatten(2) if own.shape[1] == tokens else own.transpose(1, 2).flatten(2)
        torch.testing.assert_close(found[name], (by_token * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def test_routers_of_mixtures_of_experts_have_tokens(seen, extract):
    config = tf.MixtralConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    model, ids = tf.MixtralModel(config), torch.randint(3, 40, (5, 7))
    mask = (torch.arange(7)[None] < torch.tensor([7, 4, 6, 3, 1])[:, None]).long()
    name = "layers.0.mlp.gate"
    found = extract(name, model, input_ids=ids, attention_mask=mask)[name]
    own = seen(model, [name], input_ids=ids, attention_mask=mask)[name].view(5, 7, 3)
    torch.testing.assert_close(found, (own * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Graph(nn.Module):
    """Mixes nodes by a matrix of its own."""

    def __init__(self, how):
        super().__init__()
        self.embed, self.out, self.mixed = nn.Linear(3, 8), nn.Linear(8, 4), nn.Identity()
        self.how, self.inner = how, nn.Linear(5, 5)
        self.register_buffer("adjacency", torch.rand(5, 5))

    def forward(self, x):
        h, a = self.embed(x), self.adjacency
        mixed = {
            "einsum": lambda: torch.einsum("nm,bmd->bnd", a, h),
            "product": lambda: (h.mT @ a).mT,
            "before": lambda: a @ h,
            "mixer": lambda: self.inner(h.mT).mT,
        }
        return self.out(self.mixed(mixed[self.how]()).relu())


class Products(nn.Module):
    """Makes features first by a matrix of its own, and stacks the states of a loop behind them."""

    def __init__(self):
        super().__init__()
        self.embed, self.weights = nn.Linear(3, 8), nn.Parameter(torch.randn(6, 8))
        self.first, self.states = nn.Identity(), nn.Identity()

    def forward(self, x):
        h = self.embed(x)
        return self.first(self.weights @ h.mT), self.states(torch.stack([step.relu() for step in h.unbind(1)], 2))


def test_features_before_as_many_positions_as_a_parameter_has_rows(seen, extract):
    torch.manual_seed(0)
    model, x = Products(), torch.randn(5, 8, 3)
    found = extract(["first", "states"], model, x=x)
    for name, own in seen(model, ["first", "states"], x=x).items():
        assert own.shape[2] == 8
        torch.testing.assert_close(found[name], own.mean(2), msg=name)


@pytest.mark.parametrize("how", ["einsum", "product", "before", "mixer"])
def test_positions_that_are_mixed_are_positions(seen, extract, how):
    torch.manual_seed(0)
    model, x = Graph(how), torch.randn(6, 5, 3)
    found = extract(["mixed", "out"], model, x=x)
    for name, own in seen(model, ["mixed", "out"], x=x).items():
        torch.testing.assert_close(found[name], own.mean(1), msg=name)


class Front(nn.Module):
    """Makes channels of a signal, and tokens of features."""

    def __init__(self):
        super().__init__()
        self.bands, self.conv, self.up = nn.Identity(), nn.Conv1d(3, 16, 1), nn.Identity()

    def forward(self, x):
        y = self.conv(self.bands(torch.stack([x, x.cumsum(1), x.abs()], 1)))
        return self.up(y.mT.reshape(len(x), -1, 8))


def test_stacked_channels_and_upsampled_tokens(seen, extract):
    torch.manual_seed(0)
    model, x = Front(), torch.randn(6, 12)
    found, own = extract(["bands", "up"], model, x=x), seen(model, ["bands", "up"], x=x)
    torch.testing.assert_close(found["bands"], own["bands"].mean(2))
    torch.testing.assert_close(found["up"], own["up"].mean(1))
    with pytest.raises(CaptureError, match="it is unclear which dims"):
        extract("bands", model, x=torch.randn(6, 16))


def test_frames_of_samples_are_positions(extract):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    model, x = nn.Sequential(nn.Flatten(0, 1), conv), torch.randn(6, 5, 3, 7, 7)
    with torch.no_grad():
        own = conv(x.flatten(0, 1)).reshape(6, 5, 4, 7, 7).mean((1, 3, 4))
    torch.testing.assert_close(extract("[1]", model, input=x)["1"], own)


class Opaque(nn.Module):
    """Computes outside of torch, where nothing can be followed."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.from_numpy(self.inner(x).numpy(force=True).copy())


def test_what_cannot_be_followed_is_told_by_widths_or_asked(extract):
    torch.manual_seed(0)
    model, x = Opaque(nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU())), torch.randn(4, 3, 11)
    net = nn.Sequential(model, nn.Identity())
    torch.testing.assert_close(extract("[0]", net, input=x)["0"], model(x).mean(2))
    square = torch.randn(4, 3, 8)
    with pytest.raises(CaptureError, match=r"layer '0' \(Opaque\): it is unclear which dims of \(2, 8, 8\) .*layout="):
        extract("[0]", net, input=square)
    told = ra.LayerSpec("[0]", layout="sample channel position")
    torch.testing.assert_close(extract(told, net, input=square)["0"], model(square).mean(2))
    maps, wide = nn.Sequential(Opaque(nn.Identity()), nn.Conv2d(3, 5, 1)), torch.randn(4, 3, 8, 9)
    torch.testing.assert_close(extract("[0]", maps, input=wide)["0"], wide.mean((2, 3)))  # the network around tells
    with pytest.raises(CaptureError, match="LayerSpec"):
        extract("[0]", maps, input=torch.randn(4, 3, 8, 3))
    told = ra.LayerSpec("[0]", layout="sample feature height width", reduce="all")
    assert extract(told, maps, input=torch.randn(4, 3, 8, 9))["0:all"].shape == (4, 72, 3)


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("sample token feature", (2, 5, 3), (2, 5, 3)),
        ("sample head token feature", (2, 4, 5, 3), (2, 5, 12)),
        ("sample token head feature", (2, 5, 4, 3), (2, 5, 12)),
        ("token sample feature", (5, 2, 3), (2, 5, 3)),
        ("(sample token) feature", (10, 3), (2, 5, 3)),
        ("(token sample) feature", (10, 3), (2, 5, 3)),
        ("sample channel height width", (2, 3, 4, 5), (2, 20, 3)),
        ("sample feature", (2, 3), (2, 3)),
    ],
)
def test_layouts_are_arranged(layout, shape, expected):
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    arranged = Layout.parse(layout).arrange(x, 2)
    assert arranged.shape == expected
    assert str(Layout.parse(layout)) == layout
    if layout == "(token sample) feature":
        torch.testing.assert_close(arranged, x.reshape(5, 2, 3).transpose(0, 1))
    if layout == "sample head token feature":
        torch.testing.assert_close(arranged, x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "text", ["sample time feature", "token feature", "sample token", "sample sample feature", "sample (token feature)",
             "(sample token head) feature", ""]
)  # fmt: skip
def test_layouts_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match="layout: expected"):
        ra.LayerSpec("layers[0]", layout=text)


def test_a_layout_that_does_not_fit_names_the_layer():
    model, probe_set = nn.Linear(3, 4), ra.ProbeSet.from_tensors({"input": torch.randn(5, 3)})
    net = nn.Sequential(model)
    with pytest.raises(CaptureError, match=r"layer '0': expected sample token feature, found \(2, 4\)"):
        ra.ActivationExtractor(ra.LayerSpec("[0]", layout="sample token feature")).extract(net, probe_set)


class TokensFirst(nn.Module):
    """Works on (token, sample, feature) inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("tokens", [5, 7])  # as many as samples, and others
def test_tokens_before_samples_are_refused_by_both_ways(tokens, extract):
    torch.manual_seed(0)
    model, x = TokensFirst(), torch.randn(5, tokens, 4)
    refused = r"layer 'inner': expected \d samples along the first dim"
    with pytest.raises(CaptureError, match=refused):
        extract("inner", model, x=x)
    with pytest.raises(CaptureError, match=refused), ra.ActivationExtractor("inner").capture(model):
        model(x)
    told = ra.LayerSpec("inner", layout="token sample feature")
    with torch.no_grad():
        torch.testing.assert_close(extract(told, model, x=x)["inner"], model(x).mean(1))
        with ra.ActivationExtractor(told).capture(model) as extractor:
            model(x)
        torch.testing.assert_close(extractor.activations["inner"], model(x).mean(1))


def test_capture_follows_dims_as_extract_does(extract):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU()).eval(), torch.randn(5, 3, 20)
    extractor = ra.ActivationExtractor("[*]")
    for _ in range(2):  # the second time by what the first told
        with extractor.capture(model):
            model(x)
        assert {name: value.shape for name, value in extractor.activations.items()} == {"0": (5, 8), "1": (5, 8)}
    torch.testing.assert_close(extractor.activations, extract("[*]", model, input=x))


def test_capture_of_one_sample_and_then_of_several():
    config = tf.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    model, ids = tf.GPT2Model(config).eval(), torch.randint(3, 40, (6, 8))
    extractor = ra.ActivationExtractor("h[0]")
    for batch in (ids[:1], ids):
        with extractor.capture(model), torch.no_grad():
            output = model(batch, output_hidden_states=True)
        assert extractor.activations["h.0"].shape == (len(batch), 16)
    assert output.hidden_states[0].shape == (6, 8, 16)
