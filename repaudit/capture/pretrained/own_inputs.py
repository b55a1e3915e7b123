"""The samples as each model reads them: tokenized by its own tokenizer, or preprocessed by its own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from repaudit.capture.pretrained.loading import Loader
from repaudit.capture.pretrained.preprocessing import preprocessed
from repaudit.capture.pretrained.samples import Samples
from repaudit.capture.pretrained.sources import Source
from repaudit.capture.probe_set.files import read_probe_file
from repaudit.capture.probe_set.probe_set import ProbeSet

ProbeSource = str | PathLike[str] | ProbeSet | Samples
"""A probe file, samples read from one, or a probe set, which all models read as it is."""


def own_probe_sets(
    probe: ProbeSource, series: Mapping[str, Sequence[Source]], loader: Loader, max_length: int, store_texts: bool
) -> dict[str, ProbeSet]:
    """Return the probe set of each model.

    Raises
    ------
    ProbeSetError, PretrainedError
        When there are no samples, or a model brings nothing that reads them.
    """
    if isinstance(probe, ProbeSet):
        return dict.fromkeys(series, probe)
    samples = probe if isinstance(probe, Samples) else Samples("text", *_in_order(probe))
    if samples.kind != "text":
        return {
            name: preprocessed(samples, loader.preprocessor(sources[0], samples.kind))
            for name, sources in series.items()
        }
    return {
        name: ProbeSet.from_texts(
            samples.values,
            loader.tokenizer(sources[0]),
            max_length=max_length,
            ids=samples.ids,
            labels=samples.labels,
            store_texts=store_texts,
        )
        for name, sources in series.items()
    }


def _in_order(path: str | PathLike[str]) -> tuple[list[str], list[str] | None, list[str] | None]:
    texts, labels, ids = read_probe_file(path)
    return texts, ids, labels
