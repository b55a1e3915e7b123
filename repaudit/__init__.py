"""Audit what neural networks represent while they train.

Names are imported when they are first used, so that reading a store (``repaudit info``) needs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from repaudit import extras
from repaudit.names import __version__

if TYPE_CHECKING:
    from repaudit import errors as errors
    from repaudit import plots as plots
    from repaudit.align.coordinate_match import CoordinateMatch as CoordinateMatch
    from repaudit.align.feature_match import FeatureMatch as FeatureMatch
    from repaudit.align.joint_objective import JointObjective as JointObjective
    from repaudit.align.operator_match import OperatorMatch as OperatorMatch
    from repaudit.align.target import AlignmentTarget as AlignmentTarget
    from repaudit.align.trainers.aligned_fine_tuning import AlignedFineTuning as AlignedFineTuning
    from repaudit.align.trainers.aligned_trainer import AlignedTrainerMixin as AlignedTrainerMixin
    from repaudit.align.trainers.alignment_callback import AlignmentCallback as AlignmentCallback
    from repaudit.analysis.pipeline import analyze as analyze
    from repaudit.capture.extract.extractor import ActivationExtractor as ActivationExtractor
    from repaudit.capture.extract.layer_spec import LayerSpec as LayerSpec
    from repaudit.capture.pretrained.record_pretrained import record_pretrained as record_pretrained
    from repaudit.capture.probe_set.probe_set import ProbeSet as ProbeSet
    from repaudit.capture.record.recorder import Recorder as Recorder
    from repaudit.capture.record.trigger import AuditTrigger as AuditTrigger
    from repaudit.capture.trainers.hf_trainer_module import HFTrainerModule as HFTrainerModule
    from repaudit.capture.trainers.huggingface import AuditTrainerCallback as AuditTrainerCallback
    from repaudit.capture.trainers.lightning import RepresentationAuditCallback as RepresentationAuditCallback
    from repaudit.embed.phate import phate_embedding as phate_embedding
    from repaudit.embed.phate import phate_trajectories as phate_trajectories
    from repaudit.errors import AlignmentWarning as AlignmentWarning
    from repaudit.errors import AuditWarning as AuditWarning
    from repaudit.errors import StoreWarning as StoreWarning
    from repaudit.gauge.gauge import DiffusionGauge as DiffusionGauge
    from repaudit.live.geometry import GeometryMetrics as GeometryMetrics
    from repaudit.live.stop_when_settled import StopWhenSettled as StopWhenSettled
    from repaudit.live.track import Track as Track
    from repaudit.measure.distances import operator_distances as operator_distances
    from repaudit.measure.similarity import Similarity as Similarity
    from repaudit.measure.similarity import similarity as similarity
    from repaudit.measure.similarity import similarity_map as similarity_map
    from repaudit.measure.sketched import nearest_operators as nearest_operators
    from repaudit.measure.sketched import sketch_distances as sketch_distances
    from repaudit.measure.spread import Spread as Spread
    from repaudit.measure.spread import spread as spread
    from repaudit.merge.merging import DiffusionMerging as DiffusionMerging
    from repaudit.operators.operator import DiffusionOperator as DiffusionOperator
    from repaudit.operators.sketch import OperatorSketch as OperatorSketch
    from repaudit.operators.sketch import sketch as sketch
    from repaudit.store.check.repair import repair as repair
    from repaudit.store.check.verify import verify as verify
    from repaudit.store.copying import copy_store as copy_store
    from repaudit.store.read.reader import open_store as open_store
    from repaudit.store.write.writer import TrajectoryWriter as TrajectoryWriter

_HOMES: Final = {
    "ActivationExtractor": "repaudit.capture.extract.extractor",
    "AlignedFineTuning": "repaudit.align.trainers.aligned_fine_tuning",
    "AlignedTrainerMixin": "repaudit.align.trainers.aligned_trainer",
    "AlignmentCallback": "repaudit.align.trainers.alignment_callback",
    "AlignmentTarget": "repaudit.align.target",
    "AlignmentWarning": "repaudit.errors",
    "AuditTrainerCallback": "repaudit.capture.trainers.huggingface",
    "AuditTrigger": "repaudit.capture.record.trigger",
    "AuditWarning": "repaudit.errors",
    "CoordinateMatch": "repaudit.align.coordinate_match",
    "DiffusionGauge": "repaudit.gauge.gauge",
    "DiffusionMerging": "repaudit.merge.merging",
    "DiffusionOperator": "repaudit.operators.operator",
    "FeatureMatch": "repaudit.align.feature_match",
    "GeometryMetrics": "repaudit.live.geometry",
    "HFTrainerModule": "repaudit.capture.trainers.hf_trainer_module",
    "JointObjective": "repaudit.align.joint_objective",
    "LayerSpec": "repaudit.capture.extract.layer_spec",
    "OperatorMatch": "repaudit.align.operator_match",
    "OperatorSketch": "repaudit.operators.sketch",
    "ProbeSet": "repaudit.capture.probe_set.probe_set",
    "Recorder": "repaudit.capture.record.recorder",
    "RepresentationAuditCallback": "repaudit.capture.trainers.lightning",
    "Similarity": "repaudit.measure.similarity",
    "Spread": "repaudit.measure.spread",
    "StopWhenSettled": "repaudit.live.stop_when_settled",
    "StoreWarning": "repaudit.errors",
    "Track": "repaudit.live.track",
    "TrajectoryWriter": "repaudit.store.write.writer",
    "analyze": "repaudit.analysis.pipeline",
    "copy_store": "repaudit.store.copying",
    "nearest_operators": "repaudit.measure.sketched",
    "open_store": "repaudit.store.read.reader",
    "operator_distances": "repaudit.measure.distances",
    "phate_embedding": "repaudit.embed.phate",
    "phate_trajectories": "repaudit.embed.phate",
    "record_pretrained": "repaudit.capture.pretrained.record_pretrained",
    "repair": "repaudit.store.check.repair",
    "similarity": "repaudit.measure.similarity",
    "similarity_map": "repaudit.measure.similarity",
    "sketch": "repaudit.operators.sketch",
    "sketch_distances": "repaudit.measure.sketched",
    "spread": "repaudit.measure.spread",
    "verify": "repaudit.store.check.verify",
}
_ROOMS: Final = ("errors", "plots")
__all__ = ["__version__", *_ROOMS, *_HOMES]  # noqa: PLE0604 - the names are the table's keys


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"repaudit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'repaudit' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in extras.EXTRAS:
            extras.require(f"repaudit.{name}", library)
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _register(xarray: ModuleType) -> None:
    """Put ``.repaudit`` on xarray's objects; what it is, is imported when it is first used."""
    for kind, accessor in (("datatree", "TreeAccessor"), ("dataarray", "ArrayAccessor")):
        register = getattr(xarray, f"register_{kind}_accessor")
        register("repaudit")(lambda found, name=accessor: getattr(import_module("repaudit.accessor"), name)(found))


class _WithXarray(MetaPathFinder):
    """Register as soon as xarray is imported, which takes most of a second: the command says something before."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how xarray is imported, with the registration at the end; None for other modules.

        It may be asked often before that: many libraries look whether another one is there without importing it.
        """
        if name != "xarray" or self not in sys.meta_path:
            return None
        others = (finder.find_spec(name, path, target) for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "xarray" in sys.modules:
    _register(sys.modules["xarray"])
else:
    sys.meta_path.insert(0, _WithXarray())
