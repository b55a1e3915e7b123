"""Models that are not in training: probe files, folders, checkpoint series, GGUF."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

import repaudit as ra
from repaudit.capture.pretrained.record_pretrained import find_sources, record_pretrained
from repaudit.capture.probe_set.files import read_probe_file
from repaudit.cli import app
from repaudit.errors import FingerprintError, LayerPathError, PretrainedError, ProbeSetError
from repaudit.store.read import catalog

CONFIG = tf.LlamaConfig(
    vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)  # fmt: skip


def save(folder, seed=0, words="abcdef"):
    torch.manual_seed(seed)
    model = tf.LlamaForCausalLM(CONFIG)
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(folder)
    return model


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "probe.jsonl"
    path.write_text('{"text": "a b c", "label": "x"}\n\n{"text": "d e", "label": 2}\n{"text": "f", "label": "x"}\n')
    return path


def expected_of(model, probe_set):
    return ra.ActivationExtractor(["model.layers[*]"]).extract(model, probe_set)


def record(store, model):
    return ra.open_store(store)[f"models/{model}"].dataset.load()


def test_models_from_folders(tmp_path, texts):
    made = {name: save(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    steps = record_pretrained(
        [tmp_path / "one", str(tmp_path / "two")], texts, ["model.layers[*]"], tmp_path / "s.zarr"
    )
    assert steps == {"one": [0], "two": [0]}
    tree = ra.open_store(tmp_path / "s.zarr")
    assert tree.label.values.tolist() == ["x", "2", "x"]
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "one")
    probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tokenizer)
    for name, model in made.items():
        expected = expected_of(model, probe_set)
        np.testing.assert_allclose(record(tmp_path / "s.zarr", name)["model.layers.1"][0], expected["model.layers.1"])


def test_each_model_reads_the_texts_with_its_own_tokenizer(tmp_path, texts):
    made = {"one": save(tmp_path / "one"), "two": save(tmp_path / "two", 1, words="fedcba")}
    places = [tmp_path / "one", tmp_path / "two"]
    steps = record_pretrained(places, texts, ["model.layers[*]"], tmp_path / "s.zarr", max_length=2)
    assert steps == {"one": [0], "two": [0]}
    tree = ra.open_store(tmp_path / "s.zarr")
    assert tree.text.values.tolist() == ["a b c", "d e", "f"]
    for name, model in made.items():
        tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / name)
        probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tokenizer, max_length=2)
        np.testing.assert_array_equal(catalog.inputs(tree, name)["input_ids"], probe_set.inputs["input_ids"])
        encoding = catalog.encoding(tree, name)
        assert (encoding["max_length"], encoding["truncated"]) == (2, 1)
        assert encoding["tokenizer"] == str(tmp_path / name)
        found, expected = record(tmp_path / "s.zarr", name), expected_of(model, probe_set)
        np.testing.assert_allclose(found["model.layers.1"][0], expected["model.layers.1"], rtol=1e-5, atol=1e-6)
    hashes = [catalog.encoding(tree, name)["tokenizer_sha256"] for name in made]
    assert len(set(hashes)) == 2
    with pytest.raises(FingerprintError, match="max_length"):
        record_pretrained(places[:1], texts, ["model.layers[*]"], tmp_path / "s.zarr", max_length=3)
    texts.write_text(texts.read_text().replace("d e", "d d"))
    with pytest.raises(FingerprintError, match="sample '1' holds another text"):
        record_pretrained(places[:1], texts, ["model.norm"], tmp_path / "s.zarr", names=["third"])


def test_a_layer_that_one_model_lacks_is_refused_with_its_name(tmp_path, texts):
    save(tmp_path / "one")
    with pytest.raises(LayerPathError, match=r"model 'one': .*layers\[7\]"):
        record_pretrained([tmp_path / "one"], texts, ["model.layers[7]"], tmp_path / "s.zarr")


def test_what_is_recorded_already_is_told_with_what_fails(tmp_path, texts):
    save(tmp_path / "m/one")
    save(tmp_path / "m/two")
    layers = ["one:top=model.layers[1]", "two:top=model.layers[7]"]
    with pytest.raises(LayerPathError, match="model 'two'") as failed:
        record_pretrained([tmp_path / "m/one", tmp_path / "m/two"], texts, layers, tmp_path / "s.zarr")
    assert failed.value.__notes__ == ["recorded already: one; running again goes on behind them"]
    assert str(failed.value).endswith("; layers of one model alone have its name in front, such as 'two:PATH'")
    given = [str(tmp_path / "m/one"), str(tmp_path / "m/two"), "--probe", str(texts), "--layers", ",".join(layers)]
    run = CliRunner().invoke(app, ["record", *given, "--store", str(tmp_path / "t.zarr")])
    assert "\n  recorded already: one; running again" in run.stderr, run.output
    other = [*given[:1], "--probe", str(texts), "--layers", "model.norm", "--store", str(tmp_path / "t.zarr")]
    run = CliRunner().invoke(app, ["record", *other])
    assert "a model keeps its layers" in run.stderr, run.output
    assert "here, --name gives this model another name in the store" in run.stderr, run.output
    run = CliRunner().invoke(
        app, ["record", *given[:1], "--probe", str(texts), "--layers", "model.norm", "--store", "s", "--name", ""]
    )
    assert run.exit_code == 2, run.output
    assert "expected a name, found an empty text" in " ".join(run.stderr.split()), run.output
    with pytest.raises(PretrainedError, match=r"'(one|two)': expected .*several models is taken for the checkpoints"):
        record_pretrained([tmp_path / "m"], texts, ["model.layers[1]"], tmp_path / "u.zarr")


def test_an_interrupted_download_is_one_line(tmp_path, texts):
    save(tmp_path / "one")
    weights = tmp_path / "one/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:9])
    with pytest.raises(PretrainedError, match=r"cannot be loaded: .*header"):
        record_pretrained([tmp_path / "one"], texts, ["model.norm"], tmp_path / "s.zarr")


def test_one_tokenizer_for_all_by_choice(tmp_path, texts):
    save(tmp_path / "one")
    save(tmp_path / "two", words="fedcba")
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "one")
    places = [tmp_path / "one", tmp_path / "two"]
    record_pretrained(places, texts, ["model.norm"], tmp_path / "s.zarr", tokenizer=tokenizer, store_texts=False)
    tree = ra.open_store(tmp_path / "s.zarr")
    assert len(catalog.all_inputs(tree)) == 1
    assert "text" not in tree.coords


@pytest.mark.slow
def test_revisions_are_sets_of_weights_of_their_own(tmp_path, texts):
    """The command on a hub's cache, as it lies on disk, without a network."""
    revisions, cached = ("step0", "step1000"), tmp_path / "hub" / "models--org--series"
    (cached / "refs").mkdir(parents=True)
    made = []
    for seed, revision in enumerate(revisions):
        (cached / "refs" / revision).write_text(f"{seed + 1:040x}")
        made.append(save(cached / "snapshots" / f"{seed + 1:040x}", seed))
    given = f"--probe {texts} --layers model.norm --store {tmp_path}/s.zarr --revision step1000 --revision step0 --json"
    command = [sys.executable, "-c", "from repaudit.cli import app; app()", "record", "org/series", *given.split()]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"series": [0, 1000]}
    tokenizer = tf.AutoTokenizer.from_pretrained(cached / "snapshots" / f"{1:040x}")
    probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tokenizer)
    found = record(tmp_path / "s.zarr", "series")["model.norm"]
    for row, model in zip(found, made, strict=True):
        expected = ra.ActivationExtractor(["model.norm"]).extract(model, probe_set)["model.norm"]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[0], found[1])


def test_a_folder_of_checkpoints_is_a_series(tmp_path, texts):
    for step in (500, 1000, 20):
        save(tmp_path / "run" / f"checkpoint-{step}", step)
    steps = record_pretrained([tmp_path / "run"], texts, ["model.layers[-1]"], tmp_path / "s.zarr", names=["pythia"])
    assert steps == {"pythia": [20, 500, 1000]}
    values = record(tmp_path / "s.zarr", "pythia")["model.layers.1"].values
    assert not np.allclose(values[0], values[1])


def test_lightning_checkpoints_go_into_a_config(tmp_path, texts):
    module = ra.HFTrainerModule(CONFIG)
    (tmp_path / "run").mkdir()
    state = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    torch.save(state, tmp_path / "run" / "epoch=1-step=40.ckpt")
    torch.save(state, tmp_path / "run" / "last.ckpt")
    save(tmp_path / "tokenizer")
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    arguments = ([tmp_path / "run"], texts, ["model.layers[*]"], tmp_path / "s.zarr")
    assert record_pretrained(*arguments, tokenizer=tokenizer, config=CONFIG) == {"run": [40]}
    probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tokenizer)
    expected = expected_of(module, probe_set)["model.layers.1"]
    np.testing.assert_allclose(record(tmp_path / "s.zarr", "run")["model.layers.1"][0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(PretrainedError, match="pass the model's config"):
        record_pretrained(*arguments[:3], tmp_path / "t.zarr", tokenizer=tokenizer)


def test_steps_come_from_revision_names():
    sources = find_sources("EleutherAI/pythia-70m", ["step1000", "step64", "step0"])
    assert [(source.step, source.revision) for source in sources] == [(0, "step0"), (64, "step64"), (1000, "step1000")]
    with pytest.raises(PretrainedError, match="'main': expected a name with the step"):
        find_sources("x/y", ["main"])
    with pytest.raises(PretrainedError, match="two checkpoints have the same step"):
        find_sources("x/y", ["step1", "branch-1"])


def test_places_without_a_model_say_what_is_there(tmp_path, texts):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").touch()
    with pytest.raises(PretrainedError, match=r"expected a model .*found notes.md"):
        record_pretrained([tmp_path / "empty"], texts, ["x"], tmp_path / "s.zarr")
    with pytest.raises(PretrainedError, match="each once"):
        record_pretrained(["a/same", "b/same"], texts, ["x"], tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_code_of_a_model_runs_by_request_alone(tmp_path, texts):
    save(tmp_path / "remote")
    config = tmp_path / "remote" / "config.json"
    text = config.read_text().replace('"model_type": "llama"', '"model_type": "own"')
    config.write_text(text.replace("{", '{"auto_map": {"AutoConfig": "own.Own"},', 1))
    (tmp_path / "remote" / "own.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(PretrainedError, match="--trust-remote-code"):
        record_pretrained([tmp_path / "remote"], texts, ["model.layers[*]"], tmp_path / "s.zarr")


def test_gguf(tmp_path, texts):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    model = save(tmp_path / "one")
    write_gguf(gguf, tmp_path / "tiny.gguf", model)
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "one")
    store = tmp_path / "s.zarr"
    assert record_pretrained([tmp_path / "tiny.gguf"], texts, ["model.norm"], store, tokenizer=tokenizer) == {
        "tiny": [0]
    }
    probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tokenizer)
    expected = ra.ActivationExtractor(["model.norm"]).extract(model, probe_set)["model.norm"]
    np.testing.assert_allclose(record(store, "tiny")["model.norm"][0], expected, rtol=1e-4, atol=1e-4)


def test_a_packed_file_that_is_none_is_one_line_without_advice_on_tokenizers(tmp_path, texts):
    (tmp_path / "tiny.gguf").write_bytes(b"<htm" * 100)
    with pytest.raises(PretrainedError, match=r"which begins with b'GGUF', found b'<htm'$"):
        record_pretrained([tmp_path / "tiny.gguf"], texts, ["model.norm"], tmp_path / "s.zarr")


def write_gguf(gguf, path, model):
    """The model as llama.cpp would store it: its names, and query and key rows in its rotary order."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(8)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in model.state_dict().items():
        array = value.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = array.reshape(2, 2, 4, 16).swapaxes(1, 2).reshape(16, 16)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\n two \n", (["one", " two "], None, None)),
        ("a.jsonl", '{"text": "one", "id": 7}\n{"text": "two", "id": 8}\n', (["one", "two"], None, ["7", "8"])),
        ("a.csv", 'label,text\nx,"one, and"\ny,two\n', (["one, and", "two"], ["x", "y"], None)),
        ("a.CSV", "\ufefftext\none\n", (["one"], None, None)),
    ],
)
def test_probe_files_are_read(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_probe_file(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n\n", "at least one text"),
        ("a.json", "[]", "ending in .txt, .jsonl, .csv"),
        ("a.jsonl", '{"text": "one"}\n{"tex": "two"}\n', "line 2: expected a non-empty 'text'"),
        ("a.jsonl", '{"text": "one"}\nnot json\n', "line 2: is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object, found list"),
        ("a.jsonl", '{"text": "one", "label": "x"}\n{"text": "two"}\n', "line 2: has no 'label'"),
        ("a.csv", "words\none\n", "expected a column 'text'"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_bad_probe_files_say_where(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ProbeSetError, match=message):
        read_probe_file(tmp_path / name)


def test_a_local_place_has_no_revisions(tmp_path):
    save(tmp_path / "one")
    with pytest.raises(PretrainedError, match="no revisions, found step1, step2"):
        find_sources(tmp_path / "one", ["step1", "step2"])


def test_separators_inside_a_text_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a\u2028b"}\n{"text": "c\x85d"}\n', encoding="utf-8-sig")
    assert read_probe_file(path)[0] == ["a\u2028b", "c\x85d"]


def test_another_model_under_a_name_that_exists_is_refused(tmp_path, texts):
    save(tmp_path / "one", 0)
    save(tmp_path / "two", 1)
    arguments = (texts, ["model.norm"], tmp_path / "s.zarr")
    assert record_pretrained([tmp_path / "one"], *arguments, names=["m"]) == {"m": [0]}
    assert record_pretrained([tmp_path / "one"], *arguments, names=["m"]) == {"m": [0]}
    with pytest.raises(PretrainedError, match=r"name 'm' \S*one \(step 0\), other weights than \S*two \(step 0\)"):
        record_pretrained([tmp_path / "two"], *arguments, names=["m"])
    save(tmp_path / "series" / "checkpoint-0", 0)
    save(tmp_path / "series" / "checkpoint-5", 5)
    series = [tmp_path / "series"]
    assert record_pretrained(series, *arguments, names=["m"]) == {"m": [0, 5]}  # begins with the same weights
    assert record_pretrained([tmp_path / "two"], *arguments, names=["m"], if_exists="replace") == {"m": [0]}


def test_a_model_recorded_in_training_is_no_pretrained_one(tmp_path, texts):
    model = save(tmp_path / "one")
    probe_set = ra.ProbeSet.from_texts(["a b c", "d e", "f"], tf.AutoTokenizer.from_pretrained(tmp_path / "one"))
    with ra.Recorder(tmp_path / "s.zarr", "one", probe_set, ["model.norm"]) as recorder:
        recorder.audit(model, 0)
    with pytest.raises(PretrainedError, match="a model recorded in its training than"):
        record_pretrained([tmp_path / "one"], probe_set, ["model.norm"], tmp_path / "s.zarr")


def run_record(*arguments):
    command = [sys.executable, "-c", "from repaudit.cli import app; app()", "record", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_lightning_checkpoints_from_the_shell(tmp_path, texts):
    module = ra.HFTrainerModule(CONFIG)
    torch.save({"state_dict": module.state_dict(), "global_step": 30}, tmp_path / "best.ckpt")
    save(tmp_path / "base")
    options = ["--probe", texts, "--layers", "model.norm", "--json"]
    done = run_record(tmp_path / "best.ckpt", *options, "--store", tmp_path / "s.zarr", "--config", tmp_path / "base")
    assert json.loads(done.stdout) == {"best.ckpt": [30]}, done.stderr
    there = ["--config", tmp_path / "base" / "config.json", "--tokenizer", tmp_path / "base"]
    done = run_record(tmp_path / "best.ckpt", *options, "--store", tmp_path / "t.zarr", *there)
    assert json.loads(done.stdout) == {"best.ckpt": [30]}, done.stderr
    wrong = run_record(tmp_path / "best.ckpt", *options, "--store", tmp_path / "u.zarr", "--batch-size", 0)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("content", [b"", b"junk", {"weights": 1}, {"state_dict": {}, "other": object}])
def test_files_that_are_no_checkpoints_of_plain_values_are_told(tmp_path, texts, content):
    place = tmp_path / "step=3.ckpt"
    place.write_bytes(content) if isinstance(content, bytes) else torch.save(content, place)
    save(tmp_path / "base")
    with pytest.raises(PretrainedError, match=r"step=3\.ckpt: expected a Lightning checkpoint"):
        record_pretrained([place], texts, ["model.norm"], tmp_path / "s.zarr", config=str(tmp_path / "base"))


def test_a_trainers_folder_is_its_checkpoints_and_its_last_model(tmp_path):
    save(tmp_path / "run")
    assert [source.step for source in find_sources(tmp_path / "run")] == [0]
    for step in (500, 20):
        save(tmp_path / "run" / f"checkpoint-{step}", step)
    assert [source.step for source in find_sources(tmp_path / "run")] == [20, 500]
    (tmp_path / "run" / "trainer_state.json").write_text('{"global_step": 700}')
    found = [(source.step, source.place) for source in find_sources(tmp_path / "run")]
    assert found[-1] == (700, str(tmp_path / "run"))
    (tmp_path / "light").mkdir()
    torch.save({"state_dict": {}, "global_step": 9}, tmp_path / "light" / "last.ckpt")
    assert [source.step for source in find_sources(tmp_path / "light")] == [9]


def test_what_is_not_here_is_said_to_be_looked_for_at_the_hub(tmp_path, monkeypatch):
    """Where the hub cannot be reached, a mistyped path waits for a minute."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = (
        "import torch, repaudit as ra\n"
        "probe_set = ra.ProbeSet.from_tensors({'input_ids': torch.tensor([[1, 2], [3, 4]])})\n"
        "ra.record_pretrained(['mistyped'], probe_set, ['h[*]'], 's.zarr')"
    )
    (tmp_path / "mistype").mkdir()
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "nothing here is called mistyped (did you mean mistype?): looking" in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.endswith("; nothing here is called mistyped (did you mean mistype?)"), (
        "and no tokenizer is what it lacks"
    )
    assert "PretrainedError: mistyped: cannot be loaded" in run.stderr


@pytest.mark.slow
def test_warnings_of_commands_are_one_line(tmp_path):
    save(tmp_path / "one")
    for labels in ("xyz", "xyy"):
        rows = [{"text": f"a b {text}", "label": label} for text, label in zip("cde", labels, strict=True)]
        (tmp_path / f"{labels}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-c", "from repaudit.cli import app; app()", "record", "one", "--layers", "model.norm"]
    said = [
        subprocess.run(
            [*command, "--probe", f"{labels}.jsonl", "--store", "s.zarr", "--name", labels],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stderr
        for labels in ("xyz", "xyy")
    ]  # fmt: skip
    assert "warning" not in said[0]
    (line,) = [line for line in said[1].splitlines() if "keeps its own labels" in line]
    assert line.startswith("warning: ")
    assert "stacklevel" not in said[1]
    assert "ensure_root" not in said[1]
