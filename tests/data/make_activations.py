"""Makes activations.npz: small activations of four models on each of three labelled sets, two of text, one of images.

Run it by hand from the project's root (``PYTHONPATH=scripts python tests/data/make_activations.py``); the tests read
what it wrote. Source of the data: e-mails of the SpamAssassin corpus, the standard library's own source, labelled by
module, and scikit-learn's digits. The text models are those of ``scripts/pretrained.py``; the image models are pixels
and three trained networks.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pretrained
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import repaudit as ra
from repaudit.capture.pretrained.record_pretrained import record_pretrained
from repaudit.capture.pretrained.samples import Samples

WIDTH, PER_CLASS = 32, 48
MODULES = ("argparse", "statistics", "tarfile", "typing", "ipaddress", "calendar")


def passages() -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for name in MODULES:
        lines = [line for line in inspect.getsource(importlib.import_module(name)).splitlines() if line.strip()]
        chosen = np.linspace(0, len(lines) - 12, PER_CLASS).astype(int)
        texts += ["\n".join(lines[at : at + 10]) for at in chosen]
        labels += [name] * PER_CLASS
    return texts, labels


def text_models(texts: list[str]) -> dict[str, np.ndarray]:
    """Return the penultimate layer of four pretrained models, each with its own tokenizer, by the recorder itself."""
    with TemporaryDirectory() as folder:
        store, models = Path(folder, "store.zarr"), pretrained.models()
        record_pretrained(
            list(models.values()), Samples("text", texts), ["penultimate=hidden_states[-2]"], store, names=list(models)
        )
        tree = ra.open_store(store)
        return {name: tree.repaudit.activations(name, "penultimate").isel(step=0).values for name in models}


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
    mails = pretrained.emails(288)
    sets = {"emails": ([mail["text"] for mail in mails], [mail["label"] for mail in mails]), "source": passages()}
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
