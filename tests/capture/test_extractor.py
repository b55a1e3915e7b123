"""Extraction: hooks, early stop, batches, masks, and errors that name the layer."""

import gc

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from repaudit import ActivationExtractor, LayerSpec, ProbeSet
from repaudit.errors import ActivationTypeError, CaptureError, ProbeSetError


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=64, **(sizes | options))
    return LlamaForCausalLM(config)


def padded(side, length=12, n=7):
    """The same token sequences of several lengths, padded on either side to any length."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 32, (3 + i,), generator=generator) for i in range(n)]
    ids, mask = torch.zeros(n, length, dtype=torch.long), torch.zeros(n, length, dtype=torch.long)
    for k, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[k, place], mask[k, place] = row, 1
    return ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask})


class Reuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.unused = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.shared(self.shared(self.first(x)))


INPUT = ProbeSet.from_tensors({"x": torch.eye(2)})


@pytest.mark.parametrize("reduce", ["mean", "last_token", "cls"])
def test_padding_side_length_and_batch_size_do_not_matter(reduce):
    model = llama()
    extractor = ActivationExtractor(
        [LayerSpec("model.layers[*]", reduce=reduce), LayerSpec("model.norm", reduce=reduce)]
    )
    expected = extractor.extract(model, padded("right"), batch_size=1)
    for side, length, batch_size in [("left", 12, 3), ("right", 30, 7), ("left", 30, 2)]:
        found = extractor.extract(model, padded(side, length), batch_size)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=f"{name} {side} {length}")


def test_absolute_positions_are_counted_from_the_mask():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    extractor = ActivationExtractor(["transformer.h[-1]"])
    right = extractor.extract(model, padded("right"))["transformer.h.1"]
    torch.testing.assert_close(
        extractor.extract(model, padded("left", 20))["transformer.h.1"], right, rtol=1e-4, atol=1e-5
    )


def test_the_forward_stops_after_the_deepest_layer():
    model, extractor = llama(), ActivationExtractor(["model.layers[1]", "model.layers[0]"])
    seen = []
    for name in ("model.layers.2", "lm_head"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    extractor.extract(model, padded("right"), batch_size=7)
    assert seen == ["model.layers.2", "lm_head"]  # the first forward of a model, of one sample, runs whole
    extractor.extract(model, padded("right"), batch_size=2)
    assert seen == ["model.layers.2", "lm_head"]


def test_a_layer_that_fires_again_after_the_early_stop_is_found():
    with pytest.raises(CaptureError, match=r"layer 'shared' \(Linear\) fired 2 times"):
        ActivationExtractor(["shared"]).extract(Reuses(), INPUT)


def test_a_layer_that_never_fires_is_an_error():
    with pytest.raises(CaptureError, match=r"layer 'unused' \(Linear\) never fired"):
        ActivationExtractor(["first", "unused"]).extract(Reuses(), INPUT)


def test_no_hook_is_left_behind():
    model = Reuses()
    for specs in (["first"], ["shared"], ["unused"]):
        with pytest.raises(CaptureError) if specs != ["first"] else torch.no_grad():
            ActivationExtractor(specs).extract(model, INPUT)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: [x, x],
        lambda x: BaseModelOutput(last_hidden_state=x),
        lambda x: {"hidden": x},
    ],
)
def test_tensors_tuples_and_model_outputs_are_understood(wrap):
    class Layer(nn.Module):
        def forward(self, x):
            return wrap(2 * x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            self.layer(x)
            return x

    found = ActivationExtractor(["layer"]).extract(Net(), INPUT)["layer"]
    assert torch.equal(found, 2 * torch.eye(2))


@pytest.mark.parametrize("value", [None, "text", (), (None, 1), {}])
def test_any_other_output_is_a_typed_error(value):
    class Layer(nn.Module):
        def forward(self, x):
            return value

    model = nn.Sequential(Layer())
    with pytest.raises(ActivationTypeError, match=r"layer '0' \(Layer\): expected a tensor"):
        ActivationExtractor(["[0]"]).extract(model, INPUT)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda x: x.to_sparse(), "of layout torch.sparse_coo"),
        (lambda x: (x.to_sparse_csr(), x), "of layout torch.sparse_csr"),
        (lambda x: torch.nested.nested_tensor(list(x)), "that is nested"),
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "that is nested"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage):UserWarning")
def test_an_output_that_is_not_dense_is_a_typed_error(made, found):
    class Layer(nn.Module):
        def forward(self, x):
            return made(x)

    expected = rf"layer '0' \(Layer\): expected a dense tensor, found one {found}: record another module"
    with pytest.raises(ActivationTypeError, match=expected):
        ActivationExtractor(["[0]"]).extract(nn.Sequential(Layer()), INPUT)


def test_first_dim_must_be_the_samples():
    class Transposes(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1)

    with pytest.raises(CaptureError, match=r"'0': expected 2 samples along the first dim, found \(3, 2\)"):
        ActivationExtractor(["[0]"]).extract(
            nn.Sequential(Transposes()), ProbeSet.from_tensors({"x": torch.ones(2, 3)})
        )


def test_input_is_what_goes_in():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = ActivationExtractor(["[0]", LayerSpec("[1]", extraction_point="input")]).extract(model, INPUT)
    assert torch.equal(found["0"], found["1@input"])


def test_input_by_keyword_is_found():
    model = llama()
    spec = LayerSpec("model.layers[0].self_attn", extraction_point="input", reduce="all")  # takes hidden_states=
    probe_set = padded("right")
    found = ActivationExtractor([spec, LayerSpec("model.layers[0].input_layernorm", reduce="all")]).extract(
        model, probe_set
    )
    assert torch.equal(found["model.layers.0.self_attn@input:all"], found["model.layers.0.input_layernorm:all"])


def test_inputs_that_forward_does_not_know_are_listed():
    with pytest.raises(ProbeSetError, match=r"\['a', 'b'\] are not parameters of Reuses.forward, which takes x"):
        ActivationExtractor(["first"]).extract(Reuses(), ProbeSet.from_tensors({"a": torch.eye(2), "b": torch.eye(2)}))


def test_mask_that_forward_does_not_take_still_pools():
    model = nn.Sequential(nn.Linear(3, 2))
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = ActivationExtractor(["[0]"]).extract(model, ProbeSet.from_tensors({"input": x, "attention_mask": mask}))[
        "0"
    ]
    with torch.no_grad():
        torch.testing.assert_close(found[0], model(x)[0, :2].mean(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes(dtype):
    model = llama().to(dtype)
    extractor = ActivationExtractor(["model.layers[-1]", LayerSpec("model.layers[-1]", reduce="all")])
    found = extractor.extract(model, padded("right"))
    assert found["model.layers.2:all"].dtype == dtype
    assert found["model.layers.2"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert extractor.source_dtypes["model.layers.2"] == str(dtype).removeprefix("torch.")


def test_capture_records_the_callers_forwards():
    model, probe_set = llama().eval(), padded("right")
    extractor = ActivationExtractor(["model.layers[*]"])
    expected = extractor.extract(model, probe_set)
    with torch.no_grad(), extractor.capture(model) as recording:
        for batch in probe_set.batches(3):
            model(**batch)
    assert recording is extractor
    for name, value in expected.items():
        torch.testing.assert_close(extractor.activations[name], value, rtol=1e-4, atol=1e-5)
    model(**next(probe_set.batches(2)))
    assert len(extractor.activations["model.layers.0"]) == len(probe_set)
    assert not any(part._forward_hooks for part in model.modules())


def test_capture_keeps_the_graph_where_asked():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    extractor = ActivationExtractor(["[0]"])
    with extractor.capture(model, detach=False):
        model(torch.eye(2))
    extractor.activations["0"].sum().backward()
    assert model[0].weight.grad is not None


def test_capture_without_a_forward_and_with_a_reused_layer_are_errors():
    with pytest.raises(CaptureError, match="never fired"), ActivationExtractor(["first"]).capture(Reuses()):
        pass
    model = Reuses()
    with pytest.raises(CaptureError, match="fired 2 times"), ActivationExtractor(["shared"]).capture(model):
        model(torch.eye(2))
    assert not any(part._forward_hooks for part in model.modules())


def test_capture_of_a_part_that_is_called_by_itself():
    model, batch = llama().eval(), next(padded("right").batches(7))
    extractor = ActivationExtractor([LayerSpec("model.layers[0]", reduce="all")])
    with torch.no_grad(), extractor.capture(model):
        model.model(**batch)
    assert extractor.activations["model.layers.0:all"].shape == (7, 12, 16)


def test_memory_does_not_grow_over_audits():
    model, extractor, probe_set = llama(), ActivationExtractor(["model.layers[*]", "model.norm"]), padded("right")

    def live():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for _ in range(3):
        extractor.extract(model, probe_set)
    before = live()
    for _ in range(200):
        extractor.extract(model, probe_set)
    assert live() == before


def test_an_audits_tensors_are_its_own():
    model, extractor = Reuses(), ActivationExtractor(["first"])
    first = extractor.extract(model, INPUT)["first"]
    kept = first.clone()
    nn.init.zeros_(model.first.weight)
    extractor.extract(model, INPUT)
    assert torch.equal(first, kept)


def test_compiled_models_run_eagerly_and_stay_warm():
    model = llama()
    compiled = torch.compile(model, backend="eager")
    batch = next(padded("right").batches(4))
    expected = ActivationExtractor(["model.layers[*]"]).extract(model, padded("right"))
    compiled(**batch).logits.sum().backward()
    counters = torch._dynamo.utils.counters
    frames = counters["stats"]["unique_graphs"]
    found = ActivationExtractor(["model.layers[*]"]).extract(compiled, padded("right"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    compiled(**batch).logits.sum().backward()
    assert counters["stats"]["unique_graphs"] == frames > 0


def test_capture_of_a_compiled_model_sees_its_layers():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model.compile(backend="eager")
    model(torch.eye(2))
    extractor = ActivationExtractor(["[0]"])
    with extractor.capture(model):
        model(torch.eye(2))
    assert extractor.activations["0"].shape == (2, 3)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.first(x)
        more = self.second(hidden)
        hidden += more
        return self.relu(hidden)


@pytest.mark.parametrize("reduce", ["mean", "last_token", "cls", "all"])
@pytest.mark.parametrize("tokens", [False, True])
def test_what_later_changes_an_output_in_place_does_not_reach_the_activations(reduce, tokens):
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(5, 3, 4) if tokens else torch.randn(5, 4)
    specs = [LayerSpec("first", reduce=reduce, name="first"), LayerSpec("second", "input", reduce, name="input")]
    extractor = ActivationExtractor(specs)
    with torch.no_grad():
        expected = model.first(x)
    pooled = {"mean": lambda v: v.mean(1), "last_token": lambda v: v[:, -1], "cls": lambda v: v[:, 0]}
    expected = pooled[reduce](expected) if tokens and reduce in pooled else expected
    for _ in range(2):  # a whole forward, then one that stops early
        for found in extractor.extract(model, ProbeSet.from_tensors({"x": x})).values():
            torch.testing.assert_close(found, expected)
    with torch.no_grad(), extractor.capture(model):
        model(x)
    torch.testing.assert_close(extractor.activations["first"], expected)


def test_capture_forgets_a_forward_that_failed():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fails = nn.Linear(2, 2), True

        def forward(self, x):
            y = self.first(x)
            if self.fails:
                raise KeyError
            return y

    model, extractor = Fails(), ActivationExtractor(["first"])
    with extractor.capture(model):
        with pytest.raises(KeyError):
            model(torch.zeros(3, 2))
        model.fails = False
        model(torch.ones(3, 2))
    torch.testing.assert_close(extractor.activations["first"], model.first(torch.ones(3, 2)).detach())


class Keyworded(nn.Module):
    """A layer whose caller gives its keywords in an order of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.first = Ordered(), nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(bias=torch.zeros(2, 2), unused=None, hidden=self.first(x))


class Ordered(nn.Module):
    def forward(self, unused=None, hidden=None, bias=None):
        return {"hidden": hidden, "bias": bias}


def test_input_is_the_first_in_the_order_of_forward():
    model = Keyworded()
    found = ActivationExtractor(["first", LayerSpec("layer", "input")]).extract(model, INPUT)
    assert torch.equal(found["layer@input"], found["first"])


def test_a_dict_of_several_tensors_is_refused():
    with pytest.raises(ActivationTypeError, match=r"found dict of hidden, bias, which is ambiguous"):
        ActivationExtractor(["layer"]).extract(Keyworded(), INPUT)


def test_mixed_dtypes_take_inputs_of_the_first_parameters_dtype():
    model = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.LayerNorm(3).bfloat16(), nn.Identity(), nn.Linear(3, 2))
    model[2].forward = lambda x: x.float()
    found = ActivationExtractor(["[0]", "[3]"]).extract(model, ProbeSet.from_tensors({"input": torch.randn(2, 3)}))
    assert found["3"].shape == (2, 2)
