"""A written report as a test reads it: its elements, its visible text, the data of its figures."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np


class Page(HTMLParser):
    """Elements and visible text of a page, and the content of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._raw: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._raw = dict(attrs) if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._raw = None

    def handle_data(self, data):
        if self._raw is None:
            self.words.append(data)
        elif self.scripts:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def data(self, name: str):
        packed = next(text for attrs, text in self.scripts if attrs.get("id") == "data")
        everything = json.loads(gzip.decompress(base64.b64decode(packed)))

        def whole(value):
            if isinstance(value, list):
                return [whole(item) for item in value]
            if isinstance(value, dict):
                return everything["lists"][value["at"]] if "at" in value else {k: whole(v) for k, v in value.items()}
            return value

        found = whole(everything[name])
        if name != "figures":
            return found
        layers = dict.fromkeys(layer for of_kind in found.values() for layer in of_kind)
        return {layer: {kind: of[layer] for kind, of in found.items() if layer in of} for layer in layers}


def numbers(array) -> np.ndarray:
    """Values of an array of a figure; of packed ones the numbers that their codes stand for."""
    if isinstance(array, dict):
        codes = np.frombuffer(base64.b64decode(array["bdata"]), dtype="<u2").astype(float)
        codes[codes == 65535] = np.nan
        return (array["low"] + codes / 65534 * (array["high"] - array["low"])).reshape(array["shape"])
    return np.array(array, dtype=float)
