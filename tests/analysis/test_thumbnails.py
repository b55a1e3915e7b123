"""Small pictures of samples that are images, from the pixels of the inputs to the report."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import repaudit as ra
from repaudit.analysis.thumbnails import thumbnails
from repaudit.store.read.stored_probe_set import StoredProbeSet


def colours(n=6, side=8):
    """Images of one colour each, first red, then green, then blue."""
    images = np.zeros((n, side, side, 3))
    for k in range(n):
        images[k, ..., k % 3] = 1
    return images


def opened(text):
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_colours_come_back_from_normalised_pixels(first, dtype):
    images = colours()
    pixels = (images - 0.45) / 0.22 if dtype == "float32" else images * 255
    pixels = (np.moveaxis(pixels, -1, 1) if first else pixels).astype(dtype)
    found = thumbnails(xr.Dataset({"mask": ("sample", np.ones(6)), "pixels": (("sample", "a", "b", "c"), pixels)}))
    assert found is not None
    for text, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(opened(text), image * 255)


def test_large_pictures_become_small_and_grey_ones_stay_grey():
    pixels = np.random.default_rng(0).normal(size=(2, 1, 300, 150)).astype(np.float32)
    found = thumbnails(xr.Dataset({"pixel_values": (("sample", "c", "y", "x"), pixels)}))
    assert found is not None
    assert opened(found[0]).shape == (48, 24)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 8), (4, 2, 8, 8), (0, 3, 8, 8)])
def test_other_inputs_have_none(shape):
    dims = ("sample", "a", "b", "c")[: len(shape)]
    assert thumbnails(xr.Dataset({"x": (dims, np.zeros(shape))})) is None


def test_pixels_that_are_not_known_have_none():
    pixels = np.full((2, 3, 8, 8), np.nan)
    assert thumbnails(xr.Dataset({"x": (("sample", "a", "b", "c"), pixels)})) is None


def test_an_analysis_of_images_has_them_beside_the_samples(tmp_path):
    images, rng = colours(30), np.random.default_rng(0)
    probe_set = StoredProbeSet("a" * 64, [f"i{k}" for k in range(30)], {"pixel_values": np.moveaxis(images, -1, 1)})
    for model in "ab":
        with ra.TrajectoryWriter(
            tmp_path / "s.zarr", model_name=model, probe_set=probe_set, layers={"l": ((30, 4), "float32")}
        ) as writer:
            for step in range(2):
                writer.append(step, {"l": rng.normal(size=(30, 4)).astype("float32")})
    results = ra.analyze(tmp_path / "s.zarr", tmp_path / "out")
    pictures = results["merged"]["thumbnail"]
    assert pictures.dims == ("sample",)
    for text, image in zip(pictures.values, images, strict=True):
        np.testing.assert_array_equal(opened(text), image * 255)
