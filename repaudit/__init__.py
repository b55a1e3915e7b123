"""Audit what neural networks represent while they train.

Names are imported when they are first used, so that reading a store (``repaudit info``) needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from repaudit.capture.extractor import ActivationExtractor as ActivationExtractor
    from repaudit.capture.huggingface import AuditTrainerCallback as AuditTrainerCallback
    from repaudit.capture.layers import LayerSpec as LayerSpec
    from repaudit.capture.lightning import HFTrainerModule as HFTrainerModule
    from repaudit.capture.lightning import RepresentationAuditCallback as RepresentationAuditCallback
    from repaudit.capture.probe import ProbeSet as ProbeSet
    from repaudit.capture.recorder import Recorder as Recorder
    from repaudit.capture.trigger import AuditTrigger as AuditTrigger
    from repaudit.embed import phate_embedding as phate_embedding
    from repaudit.embed import phate_trajectories as phate_trajectories
    from repaudit.gauge.diffusion import DiffusionGauge as DiffusionGauge
    from repaudit.gauge.spectrum import DiffusionOperator as DiffusionOperator
    from repaudit.measure.distances import operator_distances as operator_distances
    from repaudit.measure.similarity import similarity as similarity
    from repaudit.measure.spread import spread as spread
    from repaudit.merge.merging import DiffusionMerging as DiffusionMerging
    from repaudit.pipeline import analyze as analyze
    from repaudit.store.reader import open_store as open_store
    from repaudit.store.repair import repair as repair
    from repaudit.store.verify import verify as verify
    from repaudit.store.writer import TrajectoryWriter as TrajectoryWriter

__version__ = "0.1.0"

_HOMES: Final = {
    "analyze": "repaudit.pipeline",
    "ActivationExtractor": "repaudit.capture.extractor",
    "AuditTrainerCallback": "repaudit.capture.huggingface",
    "LayerSpec": "repaudit.capture.layers",
    "HFTrainerModule": "repaudit.capture.lightning",
    "RepresentationAuditCallback": "repaudit.capture.lightning",
    "ProbeSet": "repaudit.capture.probe",
    "Recorder": "repaudit.capture.recorder",
    "AuditTrigger": "repaudit.capture.trigger",
    "phate_embedding": "repaudit.embed",
    "phate_trajectories": "repaudit.embed",
    "DiffusionGauge": "repaudit.gauge.diffusion",
    "DiffusionOperator": "repaudit.gauge.spectrum",
    "operator_distances": "repaudit.measure.distances",
    "similarity": "repaudit.measure.similarity",
    "spread": "repaudit.measure.spread",
    "DiffusionMerging": "repaudit.merge.merging",
    "open_store": "repaudit.store.reader",
    "repair": "repaudit.store.repair",
    "verify": "repaudit.store.verify",
    "TrajectoryWriter": "repaudit.store.writer",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are the table's keys


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'repaudit' has no attribute {name!r}")
    if name in {"open_store", "analyze"}:
        import_module("repaudit.accessor")  # registers .repaudit on what these return
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
