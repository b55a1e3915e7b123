"""The names under which an analysis compares layers that models call differently: given, or by relative depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from repaudit.errors import AnalysisError

Match = Literal["name", "depth"]


@dataclass(frozen=True)
class LayerNames:
    """How recorded layers are named in an analysis.

    Parameters
    ----------
    given : mapping
        A name to the recorded layer of each model: ``{"penultimate": {"bert": "encoder.layer.4", "smol-*":
        "model.layers.28"}}``. The keys are models or patterns of them.
    counts : sequence of int
        Where layers are matched by depth, the numbers of layers of all models; the fewest give the depths.

    Examples
    --------
    >>> names = LayerNames({"last": {"bert*": "encoder.layer.5", "smol": "model.layers.29"}})
    >>> names.of_model("bert-base", ["encoder.layer.0", "encoder.layer.5"])
    {'last': 'encoder.layer.5'}
    >>> LayerNames(counts=(3, 5)).of_model("deep", ["h.0", "h.1", "h.2", "h.3", "h.4"])
    {'depth 0': 'h.0', 'depth 0.5': 'h.2', 'depth 1': 'h.4'}
    """

    given: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    counts: Sequence[int] = ()

    @property
    def renames(self) -> bool:
        """Whether any layer gets another name."""
        return bool(self.given or self.counts)

    def of_model(self, model: str, recorded: Sequence[str]) -> dict[str, str] | None:
        """Return a model's recorded layers by their names in the analysis; None where all keep theirs.

        Raises
        ------
        AnalysisError
            A layer that is meant is not recorded.
        """
        if not self.renames:
            return None
        if self.counts:
            return self._by_depth(recorded)
        meant = {name: _layer_of(model, layers) for name, layers in self.given.items()}
        for name, layer in meant.items():
            if layer is not None and layer not in recorded:
                raise AnalysisError(
                    f"layers: {name} of model {model} is to be {layer!r}, which was not recorded; it has "
                    f"{', '.join(recorded)}"
                )
        return {name: layer for name, layer in meant.items() if layer is not None}

    def _by_depth(self, recorded: Sequence[str]) -> dict[str, str]:
        fewest, own = min(self.counts), len(recorded) - 1
        depths = [index / (fewest - 1) for index in range(fewest)] if fewest > 1 else [1.0]
        return {f"depth {depth:.3g}": recorded[round(depth * own)] for depth in depths}

    def refuse_unused(self, models: Mapping[str, object]) -> None:
        """Refuse a pattern of models that none has.

        Raises
        ------
        AnalysisError
            Naming the pattern and the models that there are.
        """
        for name, layers in self.given.items():
            for pattern in layers:
                if pattern not in models and not any(fnmatchcase(model, pattern) for model in models):
                    raise AnalysisError(f"layers: {name} names model {pattern!r}, expected one of {', '.join(models)}")


def _layer_of(model: str, layers: Mapping[str, str]) -> str | None:
    """Return the layer that is given for a model by its name, or else by the first pattern that it fits."""
    fitting = (layer for pattern, layer in layers.items() if fnmatchcase(model, pattern))
    return layers[model] if model in layers else next(fitting, None)
