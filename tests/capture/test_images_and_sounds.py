"""Vision and audio models: folders of images, data sets on disk, and the models' own preprocessing."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

import repaudit as ra
from repaudit.capture.pretrained.dataset_files import read_dataset
from repaudit.capture.pretrained.preprocessing import preprocessed
from repaudit.capture.pretrained.record_pretrained import record_pretrained
from repaudit.capture.pretrained.samples import Samples, read_images
from repaudit.cli import app
from repaudit.errors import FingerprintError, PretrainedError, ProbeSetError

VIT = tf.ViTConfig(
    image_size=8, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
)
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
CONVOLUTIONS |= {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SPEECH = tf.Wav2Vec2Config(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, do_stable_layer_norm=True,
    vocab_size=32, **CONVOLUTIONS,
)  # fmt: skip


def pictures(n=6):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (5 + i, 9, 3), dtype=np.uint8)) for i in range(n)]


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    model = tf.ViTForImageClassification(VIT).eval()
    model.save_pretrained(tmp_path / "vit")
    tf.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    return model


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(pictures()):
        place = tmp_path / "images" / ("cat", "dog", "élan")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i}.png")
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "images" / "cat" / ".hidden.png").touch()
    return tmp_path / "images"


def pixels_of(model_folder, images):
    return tf.AutoImageProcessor.from_pretrained(model_folder)(images=images, return_tensors="pt")["pixel_values"]


def test_a_folder_of_images_is_recorded_with_its_labels(tmp_path, vit, folder):
    layers = "vit.layers[*],classifier,depth:0.5"
    given = ["--images", str(folder), "--layers", layers, "--store", str(tmp_path / "s.zarr"), "--json"]
    done = CliRunner().invoke(app, ["record", str(tmp_path / "vit"), *given])
    assert json.loads(done.stdout) == {"vit": [0]}, done.output
    tree = ra.open_store(tmp_path / "s.zarr")
    assert tree.label.values.tolist() == ["cat", "cat", "dog", "dog", "élan", "élan"]
    assert tree.sample.values.tolist() == [
        f"{name}/{i}.png" for name, i in zip(tree.label.values, (0, 3, 1, 4, 2, 5), strict=True)
    ]
    pixels = pixels_of(tmp_path / "vit", [pictures()[i] for i in (0, 3, 1, 4, 2, 5)])
    with torch.no_grad():
        own = vit(pixel_values=pixels, output_hidden_states=True)
    found = tree.repaudit
    np.testing.assert_allclose(found.activations("vit", "classifier")[0], own.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found.activations("vit", "vit.layers.0")[0], own.hidden_states[1].mean(1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found.activations("vit", "depth:0.5")[0], own.hidden_states[2].mean(1), rtol=1e-4, atol=1e-5
    )


def test_images_come_in_chunks_and_must_have_one_shape(monkeypatch):
    monkeypatch.setattr("repaudit.capture.pretrained.preprocessing._AT_ONCE", 4)
    processor = tf.ViTImageProcessorPil(size={"height": 8, "width": 8})
    samples = Samples("image", pictures())
    whole = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocessed(samples, processor).inputs["pixel_values"], whole)
    as_they_are = tf.ViTImageProcessorPil(do_resize=False)
    by_one = Samples("image", [pictures()[0]] * 4 + [pictures()[1]])
    with pytest.raises(
        ProbeSetError, match=r"'pixel_values': expected one shape, .* gives \[\(3, 5, 9\), \(3, 6, 9\)\]"
    ):
        preprocessed(by_one, as_they_are)


def test_models_that_preprocess_differently_are_refused(tmp_path, vit, folder):
    vit.save_pretrained(tmp_path / "other")
    tf.ViTImageProcessorPil(size={"height": 8, "width": 8}, do_rescale=False).save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintError, match="holds another input there than here"):
        record_pretrained(
            [tmp_path / "vit", tmp_path / "other"], read_images(folder), ["classifier"], tmp_path / "s.zarr"
        )


def test_a_model_of_texts_and_images_says_which_part_to_record(tmp_path, folder):
    text = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    clip = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=VIT.to_dict(), projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    processor = tf.CLIPImageProcessorPil(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "clip")
    arguments = (read_images(folder), ["depth:1"], tmp_path / "s.zarr")
    with pytest.raises(
        PretrainedError, match="CLIPModel reads input_ids, but the samples are pixel_values: save the part"
    ):
        record_pretrained([tmp_path / "clip"], *arguments)
    tf.CLIPVisionModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "vision")
    processor.save_pretrained(tmp_path / "vision")
    assert record_pretrained([tmp_path / "vision"], *arguments) == {"vision": [0]}


def test_folders_without_images_are_told(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").touch()
    with pytest.raises(ProbeSetError, match=r"expected images \(such as .png or .jpg\), found notes.md"):
        read_images(tmp_path / "empty")
    with pytest.raises(ProbeSetError, match="expected a folder of images, found nothing"):
        read_images(tmp_path / "nowhere")
    pictures()[0].save(folder / "alone.png")
    with pytest.raises(ProbeSetError, match=r"found alone.png in neither"):
        read_images(folder)
    (folder / "alone.png").unlink()
    (folder / "dog" / "0.png").write_bytes(b"junk")
    with pytest.raises(ProbeSetError, match=r"dog/0.png: cannot be read as an image"):
        read_images(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "found none"),
        (["--probe", "a.txt", "--images", "b"], "found --probe and --images"),
        (["--images", "b", "--label", "kind"], "--label names a column of a --dataset"),
    ],
)
def test_what_is_recorded_is_said_once(tmp_path, options, message):
    done = CliRunner().invoke(app, ["record", "m", "--layers", "x", "--store", str(tmp_path / "s.zarr"), *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def cells(images):
    files = []
    for image in images:
        content = io.BytesIO()
        image.save(content, "png")
        files.append({"bytes": content.getvalue(), "path": None})
    return files


@pytest.fixture
def saved_images(tmp_path):
    features = {
        "picture": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "kind": datasets.Value("int64"),
    }
    columns = {"picture": cells(pictures()), "label": [0, 1, 0, 1, 1, 0], "kind": [7, 7, 8, 8, 9, 9]}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "parts").mkdir()
    data.select(range(2)).to_parquet(tmp_path / "parts" / "train-0.parquet")
    data.select(range(2, 6)).to_parquet(tmp_path / "parts" / "train-1.parquet")
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "two")
    return tmp_path


@pytest.mark.parametrize("place", ["saved", "data.parquet", "parts", "one", "two/train"])
def test_data_sets_of_images(saved_images, place):
    samples = read_dataset(saved_images / place)
    assert samples.kind == "image"
    assert samples.labels == ["cat", "dog", "cat", "dog", "dog", "cat"]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(samples.values, pictures(), strict=True))
    assert read_dataset(saved_images / place, "kind").labels == ["7", "7", "8", "8", "9", "9"]


def test_a_data_set_is_recorded_from_the_shell(saved_images, vit):
    given = [
        "--dataset",
        str(saved_images / "saved"),
        "--layers",
        "classifier",
        "--store",
        str(saved_images / "s.zarr"),
    ]
    done = CliRunner().invoke(app, ["record", str(saved_images / "vit"), *given, "--json"])
    assert json.loads(done.stdout) == {"vit": [0]}, done.output
    with torch.no_grad():
        own = vit(pixel_values=pixels_of(saved_images / "vit", pictures())).logits
    found = ra.open_store(saved_images / "s.zarr").repaudit.activations("vit", "classifier")
    np.testing.assert_allclose(found[0], own, rtol=1e-4, atol=1e-5)


def test_data_sets_that_cannot_be_used_are_told(saved_images):
    with pytest.raises(ProbeSetError, match=r"holds 2 parts, expected one: pass one of \S+two/train, \S+two/test"):
        read_dataset(saved_images / "two")
    with pytest.raises(ProbeSetError, match="expected a column 'race' of labels, found picture, label, kind"):
        read_dataset(saved_images / "saved", "race")
    with pytest.raises(ProbeSetError, match=r"written by datasets' save_to_disk, or parquet"):
        read_dataset(saved_images / "vit")
    (saved_images / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(ProbeSetError, match=r"cannot be read as one"):
        read_dataset(saved_images / "junk.parquet")
    datasets.Dataset.from_dict({"numbers": [1, 2]}).save_to_disk(saved_images / "numbers")
    with pytest.raises(ProbeSetError, match=r"expected a column of images or sounds .* found numbers"):
        read_dataset(saved_images / "numbers")
    broken = datasets.Dataset.from_dict({"image": [{"bytes": b"junk", "path": None}]})
    broken = broken.cast_column("image", datasets.Image(decode=False))
    broken.save_to_disk(saved_images / "broken")
    with pytest.raises(ProbeSetError, match="row 0 cannot be read as an image"):
        read_dataset(saved_images / "broken")


def test_data_sets_of_texts(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a b", "c"], "labels": ["x", "y"], "id": [3, 4]})
    data.to_parquet(tmp_path / "texts.parquet")
    assert read_dataset(tmp_path / "texts.parquet") == Samples("text", ["a b", "c"], ["3", "4"], ["x", "y"])


def waves():
    rng = np.random.default_rng(0)
    return [rng.normal(scale=0.1, size=n).astype(np.float32) for n in (400, 250, 333)]


def test_sounds_are_resampled_padded_and_masked(tmp_path):
    torch.manual_seed(0)
    model = tf.Wav2Vec2ForCTC(SPEECH).eval()
    model.save_pretrained(tmp_path / "speech")
    extractor = tf.Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=True)
    extractor.save_pretrained(tmp_path / "speech")
    samples = Samples("audio", [(wave, 16000) for wave in waves()], ["a", "b", "c"], ["x", "x", "y"])
    layers = ["wav2vec2.encoder.layers[*]", "last=hidden_states[-1]"]
    assert record_pretrained([tmp_path / "speech"], samples, layers, tmp_path / "s.zarr") == {"speech": [0]}
    found = ra.open_store(tmp_path / "s.zarr").repaudit
    for i, wave in enumerate(waves()):  # alone, without padding
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            own = model(**inputs, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(found.activations("speech", "last")[0, i], own[-1][0].mean(0), rtol=1e-3, atol=1e-4)
        layer = found.activations("speech", "wav2vec2.encoder.layers.0")[0, i]
        np.testing.assert_allclose(layer, own[1][0].mean(0), rtol=1e-3, atol=1e-4)


def test_a_sound_of_another_rate_is_resampled():
    time = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    extractor = tf.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=False)
    values = preprocessed(Samples("audio", [(tone, 8000)]), extractor).inputs["input_values"][0]
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert values.shape == (16000,)
    np.testing.assert_allclose(values[500:-500], expected[500:-500], atol=0.01)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 32768), (np.uint8, 128), (np.float32, 1)])
def test_data_sets_of_sounds(tmp_path, dtype, scale):
    wave = waves()[0].clip(-0.9, 0.9)
    stored = np.stack([wave, wave], 1) * scale + (128 if dtype is np.uint8 else 0)
    content = io.BytesIO()
    wavfile.write(content, 8000, stored.astype(dtype))
    data = datasets.Dataset.from_dict({"audio": [{"bytes": content.getvalue(), "path": None}], "label": ["x"]})
    data.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(tmp_path / "sounds")
    samples = read_dataset(tmp_path / "sounds")
    (found, rate), *_ = samples.values
    assert (samples.kind, rate, samples.labels) == ("audio", 8000, ["x"])
    np.testing.assert_allclose(found, wave, atol=1.5 / scale if scale > 1 else 1e-6)  # of both channels the mean
