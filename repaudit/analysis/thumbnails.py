"""Small pictures of samples that are images, made of the pixels that the models read."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import SAMPLE

SIDE: Final = 48
"""Pixels of the longer side."""
_CHANNELS: Final = (1, 3)


def thumbnails(inputs: xr.Dataset) -> list[str] | None:
    """Return a PNG in base64 of every sample; None where no input is of images.

    Images are (sample, channel, height, width) or (sample, height, width, channel) with 1 or 3 channels. Every channel
    is scaled to its range over all samples, which undoes what normalised it.

    Examples
    --------
    >>> pixels = np.linspace(-2, 2, 2 * 3 * 8 * 6).reshape(2, 3, 8, 6)
    >>> found = thumbnails(xr.Dataset({"pixel_values": (("sample", "c", "y", "x"), pixels)}))
    >>> len(found), base64.b64decode(found[0])[1:4]
    (2, b'PNG')
    """
    pixels = next((found for name in inputs.data_vars if (found := _pixels(inputs[name])) is not None), None)
    if pixels is None:
        return None
    low, high = (bound(pixels, axis=(0, 1, 2)) for bound in (np.min, np.max))
    shown = (255 * (pixels - low) / np.where(high > low, high - low, 1)).round().astype(np.uint8)
    return [_png(image) for image in shown]


def _pixels(values: xr.DataArray) -> NDArray[np.float64] | None:
    """Return images as (sample, height, width, channel), every other pixel and fewer where they are large."""
    if values.ndim != 4 or values.dims[0] != SAMPLE or not all(values.shape) or values.dtype.kind not in "fui":
        return None
    if values.shape[1] in _CHANNELS:
        values = values.transpose(SAMPLE, *values.dims[2:], values.dims[1])
    elif values.shape[3] not in _CHANNELS:
        return None
    step = max(1, max(values.shape[1:3]) // (2 * SIDE))
    pixels = np.asarray(values[:, ::step, ::step].values, dtype=np.float64)
    return pixels if np.isfinite(pixels).all() else None


def _png(image: NDArray[np.uint8]) -> str:
    from PIL import Image  # as late as possible: few analyses are of images

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((SIDE, SIDE))
    written = BytesIO()
    picture.save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()
