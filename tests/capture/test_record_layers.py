"""Models of different architectures in one command: layers by role, under names that they share."""

import json

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app

TINY = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "pad_token_id": 0}


def save_tokenizer(folder):
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", *"abcdef"])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(folder)


@pytest.fixture
def folders(tmp_path):
    """A BERT of 4 blocks and a Llama of 6, with one tokenizer, and a probe file."""
    torch.manual_seed(0)
    tf.BertModel(tf.BertConfig(**TINY, num_hidden_layers=4)).save_pretrained(tmp_path / "bert")
    tf.LlamaForCausalLM(tf.LlamaConfig(**TINY, num_hidden_layers=6)).save_pretrained(tmp_path / "smol: 2")
    for name in ("bert", "smol: 2"):
        save_tokenizer(tmp_path / name)
    (tmp_path / "probe.txt").write_text("a b c\nd e\nf\n")
    return tmp_path


def record(folder, *layers):
    options = [part for text in layers for part in ("--layers", text)]
    models = [str(folder / name) for name in ("bert", "smol: 2")]
    given = ["--probe", str(folder / "probe.txt"), "--store", str(folder / "s.zarr"), "--json"]
    return CliRunner().invoke(app, ["record", *models, *given, *options])


def test_one_command_records_the_same_roles_of_two_architectures(folders):
    done = record(
        folders, "penultimate=encoder.layer[-2],depth:0.5", "'smol: 2':penultimate=model.layers[-2]",
        "first=hidden_states[0]",
    )  # fmt: skip
    assert json.loads(done.stdout) == {"bert": [0], "smol: 2": [0]}, done.stderr
    found = ra.open_store(folders / "s.zarr").repaudit
    inputs = tf.AutoTokenizer.from_pretrained(folders / "bert")(
        ["a b c", "d e", "f"], padding=True, return_tensors="pt"
    )
    mask = inputs["attention_mask"][..., None]
    for name, auto, n_blocks in (("bert", tf.AutoModel, 4), ("smol: 2", tf.AutoModelForCausalLM, 6)):
        assert set(found.layers(name)) == {"penultimate", "depth:0.5", "first"}
        with torch.no_grad():
            model = auto.from_pretrained(folders / name).eval()
            states = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
        for layer, entry in (("penultimate", n_blocks - 1), ("depth:0.5", n_blocks // 2), ("first", 0)):
            expected = (states.hidden_states[entry] * mask).sum(1) / mask.sum(1)
            values = torch.from_numpy(found.activations(name, layer).sel(step=0).values)
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("smol:last=model.layers[-1]", "a model 'smol', but the models are 'bert', 'smol: 2': did you mean"),
        ("smol: 2:last=model.layers[-1]", "put a name that holds one in quotes"),
        ("bert:last=encoder.layer[-1]", "model 'smol: 2': expected at least one layer"),
        ("bert.pooler,'smol: 2':model.norm", "did you mean 'pooler'?"),
    ],
)
def test_layers_for_other_models_are_refused_in_one_line(folders, layers, message):
    done = record(folders, layers)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (folders / "s.zarr" / "models").exists()


def test_names_are_those_of_the_training(folders):
    texts = ["last=model.layers[-1]", "model.layers[*]", "depth:1", "hidden_states[-1]"]
    model = tf.AutoModelForCausalLM.from_pretrained(folders / "smol: 2")
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.tensor([[2, 3], [4, 5]])})
    with ra.Recorder(folders / "training.zarr", "smol", probe_set, texts) as recorder:
        recorder.audit(model, 0)
    ra.record_pretrained([folders / "smol: 2"], probe_set, texts, folders / "s.zarr", names=["smol"])
    layers = [ra.open_store(folders / store).repaudit.layers("smol") for store in ("training.zarr", "s.zarr")]
    assert layers[0] == layers[1]
    assert layers[0][0] == "last"
    assert layers[0][-2:] == ["depth:1", "hidden_states.6"]
