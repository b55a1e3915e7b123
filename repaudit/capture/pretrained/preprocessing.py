"""From images and sounds to a probe set, by a model's own preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch

from repaudit.capture.pretrained.samples import Samples
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.errors import PretrainedError, ProbeSetError

_MEDIA: Final = frozenset({"pixel_values", "input_values", "input_features"})
_AT_ONCE: Final = 64
"""Images that are in memory as pixels of full size and as inputs at the same time."""


def preprocessed(samples: Samples, processor: Any) -> ProbeSet:
    """Return the probe set that a model's own image processor or feature extractor makes of images or sounds.

    Sounds are resampled to the rate that it expects, and padded to the longest one.

    Raises
    ------
    ProbeSetError
        When the processor does not give every sample the same shape.

    Examples
    --------
    >>> from PIL import Image
    >>> from transformers import ViTImageProcessorPil
    >>> samples = Samples("image", [Image.new("RGB", (6, 4)), Image.new("RGB", (8, 8))], ids=["a", "b"])
    >>> preprocessed(samples, ViTImageProcessorPil(size={"height": 8, "width": 8})).inputs["pixel_values"].shape
    torch.Size([2, 3, 8, 8])
    """
    if samples.kind == "audio":
        rate = int(processor.sampling_rate)
        waves = [_resampled(wave, own, rate) for wave, own in samples.values]
        inputs = dict(processor(waves, sampling_rate=rate, padding=True, return_tensors="pt"))
        pieces = [inputs]
    else:
        batches = [samples.values[i : i + _AT_ONCE] for i in range(0, len(samples.values), _AT_ONCE)]
        pieces = [dict(processor(images=list(batch), return_tensors="pt")) for batch in batches]
    return ProbeSet.from_tensors(_joined(pieces, len(samples.values)), ids=samples.ids, labels=samples.labels)


def check_main_input(place: str, model: Any, probe_set: ProbeSet) -> None:
    """Refuse a model that reads something else than the samples: texts, images or sounds.

    Raises
    ------
    PretrainedError
        Naming what the model reads, and what there is.
    """
    main, given = getattr(model, "main_input_name", None), set(probe_set.inputs)
    found = f"{place}: {type(model).__name__} reads {main}, but the samples are {', '.join(sorted(given))}: "
    if main == "input_ids" and given & _MEDIA and not given & {main, "inputs_embeds"}:
        raise PretrainedError(
            f"{found}save the part of it that reads them (such as "
            "CLIPVisionModel.from_pretrained(...).save_pretrained(folder)) and record that"
        )
    if main in _MEDIA and "input_ids" in given and main not in given:
        raise PretrainedError(f"{found}pass images (--images) or sounds (--dataset) instead of texts")


def _joined(pieces: Sequence[dict[str, Any]], n: int) -> dict[str, torch.Tensor]:
    joined = {}
    for name, first in pieces[0].items():
        values = [piece[name] for piece in pieces]
        shapes = {tuple(value.shape[1:]) for value in values if isinstance(value, torch.Tensor)}
        if len(shapes) > 1:
            raise ProbeSetError(f"input {name!r}: expected one shape, the model's preprocessing gives {sorted(shapes)}")
        if shapes and first.ndim and sum(len(value) for value in values) == n:
            joined[name] = torch.cat(values)
    return joined


def _resampled(wave: np.ndarray, own: int, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly

    if own == rate:
        return wave
    ratio = Fraction(rate, own)
    return np.asarray(resample_poly(wave, ratio.numerator, ratio.denominator), dtype=np.float32)
