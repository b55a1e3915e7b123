"""Layer paths: grammar, resolution, names, and errors that say where."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from repaudit import LayerSpec
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.capture.extract.path_grammar import parse_path
from repaudit.errors import LayerPathError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())


class Net(nn.Module):
    def __init__(self, depth=6):
        super().__init__()
        self.embed = nn.Embedding(4, 2)
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(2)


def paths(model, *specs):
    return [layer.path for layer in resolve_layers(model, specs)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers[0]", ["layers.0"]),
        ("layers.0", ["layers.0"]),
        ("layers[-1]", ["layers.5"]),
        ("layers[-2].mlp[0]", ["layers.4.mlp.0"]),
        ("layers[*]", [f"layers.{i}" for i in range(6)]),
        ("layers[::4]", ["layers.0", "layers.4"]),
        ("layers[1:3]", ["layers.1", "layers.2"]),
        ("layers[::-3]", ["layers.5", "layers.2"]),
        ("layers.*", [f"layers.{i}" for i in range(6)]),
        ("layers[4:].mlp[1]", ["layers.4.mlp.1", "layers.5.mlp.1"]),
        ("no*", ["norm"]),
        ("layers[0].*", ["layers.0.attn", "layers.0.mlp"]),
    ],
)
def test_paths_resolve(path, expected):
    assert paths(Net(), path) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layerz[0]", r"'layerz' not found at the top \(Net\); its children: embed, layers, norm"),
        ("layers[6]", r"'\[6\]' not found at 'layers' \(ModuleList\); its children: 0, 1, 2"),
        ("layers[-7]", r"'\[-7\]' not found"),
        ("layers[0].mlq", r"'mlq' not found at 'layers.0' \(Block\); its children: attn, mlp"),
        ("norm[0]", r"'\[0\]' not found at 'norm' \(LayerNorm\); its children: none"),
        ("layers[9:]", "matches no layer"),
        ("layers[*].nope", "'nope'"),
    ],
)
def test_unresolved_paths_say_where(path, message):
    with pytest.raises(LayerPathError, match=message):
        resolve_layers(Net(), [path])


@pytest.mark.parametrize(
    "path",
    ["", "a..b", ".a", "a.", "a[", "a[x]", "a[1:2:0]", "a[__import__('os')]", "a b", "a[0", "a[]", "a.[0]", "a[1.5]"],
)
def test_what_does_not_parse_is_refused(path):
    with pytest.raises(LayerPathError):
        LayerSpec(path)


@given(st.text(max_size=30))
def test_any_text_parses_or_raises_a_typed_error(text):
    try:
        parts = parse_path(text)
    except LayerPathError:
        return
    assert parts


@given(
    st.lists(
        st.one_of(st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True), st.integers(-9, 9)), min_size=1, max_size=6
    )
)
def test_parsing_inverts_writing(parts):
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else ("." if text else "") + part
    assert parse_path(text) == parts


def test_names_tell_point_and_reduction():
    specs = [
        "norm",
        LayerSpec("norm", reduce="last_token"),
        LayerSpec("norm", extraction_point="input"),
        LayerSpec("norm", extraction_point="input", reduce="cls"),
        LayerSpec("norm", name="final"),
        LayerSpec("layers[:2]", name="block {path}"),
    ]
    names = [layer.name for layer in resolve_layers(Net(), specs)]
    assert names == [
        "norm",
        "norm:last_token",
        "norm@input",
        "norm@input:cls",
        "final",
        "block layers.0",
        "block layers.1",
    ]


def test_overlapping_patterns_give_each_layer_once():
    assert paths(Net(3), "layers[*]", "layers[-1]") == ["layers.0", "layers.1", "layers.2"]


def test_one_name_for_two_layers_is_refused():
    with pytest.raises(LayerPathError, match=r"must hold \{path\}"):
        resolve_layers(Net(), [LayerSpec("layers[*]", name="block")])
    with pytest.raises(LayerPathError, match="at least one layer"):
        resolve_layers(Net(), [])


@pytest.mark.parametrize(("field", "value"), [("extraction_point", "outputs"), ("reduce", "max")])
def test_unknown_choices_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected one of .* found '{value}'"):
        LayerSpec("norm", **{field: value})


def test_wrappers_do_not_show_in_paths():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Net(2)
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    model.layers[1] = torch.compile(model.layers[1], backend="eager")
    for wrapped in (model, nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert paths(wrapped, "layers[*].attn") == ["layers.0.attn", "layers.1.attn"]
        assert paths(wrapped, "layers[0]._checkpoint_wrapped_module.attn") == ["layers.0.attn"]
        assert all(type(layer.module) is Block for layer in resolve_layers(wrapped, ["layers[*]"]))


def test_paths_start_at_network():
    holder = nn.Module()
    holder.network = Net(1)
    assert paths(holder, "layers[0]") == ["layers.0"]
    assert paths(holder, "network.layers[0]") == ["layers.0"]


def test_a_glob_passes_by_siblings_that_have_no_children():
    model = nn.ModuleDict({"plain": nn.ReLU(), "deep": nn.Sequential(nn.Linear(2, 2))})
    assert [layer.path for layer in resolve_layers(model, ["*[0]"])] == ["deep.0"]
    with pytest.raises(LayerPathError, match="matches no layer"):
        resolve_layers(model, ["*.nothing"])


def test_a_name_must_not_be_empty():
    with pytest.raises(ValueError, match="name: expected a layer's name or None"):
        LayerSpec("deep", name="")
