"""How an analysis is made: every choice in one checked object, from keywords, flags or a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import yaml
from dask.utils import parse_bytes
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.similarity import Measure

StoreStrategy = Literal["weighted", "frobenius", "reversible", "ot_barycenter"]
"""Merge strategies whose P* is over the store's samples, which gromov's is not."""


def _several(asked: Any) -> Any:
    """A single name or step asks for a list of one."""
    return [asked] if isinstance(asked, str | int) else asked


def _bytes(memory: str) -> str:
    try:
        enough = parse_bytes(memory) > 0
    except (ValueError, TypeError, AttributeError):
        enough = False
    if not enough:
        raise ValueError("expected a memory budget such as 2GB")
    return memory


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"torch cannot use it here ({str(error).splitlines()[0]})") from None
    return name


Names = Annotated[tuple[str, ...] | None, BeforeValidator(_several)]
Steps = Annotated[tuple[int, ...] | None, BeforeValidator(_several)]


class Settings(BaseModel):
    """The choices of :func:`repaudit.analyze`, by its keywords; a file for ``--config`` has the same names.

    Examples
    --------
    >>> Settings(gauge={"knn": 10}, groups={"small": ["seed*"]}).gauge.knn
    10
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Names = None
    layers: Names = None
    steps: Steps = None
    merge: StoreStrategy = "frobenius"
    memory: Annotated[str, AfterValidator(_bytes)] = "2GB"
    scheduler: str | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    gauge: Annotated[DiffusionGauge, BeforeValidator(lambda gauge: gauge or {})] = DiffusionGauge()
    groups: dict[str, Annotated[tuple[str, ...], BeforeValidator(_several)]] | None = None
    similarity: Annotated[tuple[Measure, ...], BeforeValidator(_several)] = ("cka_debiased", "mutual_knn")
    similarity_steps: Steps = None
    frames: Annotated[int, Field(ge=0)] = 12
    units: Annotated[int, Field(ge=0)] = 32
    cache: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.scheduler is not None and self.workers is not None:
            raise ValueError("scheduler names workers that run already, workers starts some here; give one of them")
        return self

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> Settings:
        """Check choices by keyword.

        Raises
        ------
        AnalysisError
            A name that is none, or a value that cannot be; all of them at once.
        """
        try:
            return cls.model_validate(dict(choices))
        except ValidationError as error:
            raise AnalysisError("; ".join(_said(found) for found in error.errors())) from None

    @property
    def budget(self) -> int:
        """Bytes of ``memory``."""
        return int(parse_bytes(self.memory))

    def check_similarity_steps(self, there: Sequence[int]) -> None:
        """Refuse steps for the similarity that no model has, before anything is computed.

        Raises
        ------
        AnalysisError
        """
        missing = [step for step in self.similarity_steps or () if step not in there]
        if missing:
            found, known = (", ".join(map(str, steps)) for steps in (missing, there))
            raise AnalysisError(f"similarity_steps: no model has step {found}; there are {known}")

    def group_of(self, models: tuple[str, ...]) -> dict[str, str]:
        """The group of every model, in the order of the groups; none where no groups are asked for.

        Raises
        ------
        AnalysisError
            A model in no group or in two, or a group without a model.
        """
        if not self.groups:
            return {}
        found = {
            name: [model for model in models if any(fnmatchcase(model, pattern) for pattern in patterns)]
            for name, patterns in self.groups.items()
        }
        for model in models:
            holding = [name for name, members in found.items() if model in members]
            if len(holding) != 1:
                raise AnalysisError(
                    f"groups: expected every model in one group, found {model} in {', '.join(holding) or 'none'}"
                )
        empty = [name for name, members in found.items() if not members]
        if empty:
            raise AnalysisError(f"groups: no model belongs to {', '.join(empty)}; the models are {', '.join(models)}")
        return {model: name for name, members in found.items() for model in members}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The choices in a YAML file.

    Raises
    ------
    AnalysisError
        No file, no YAML, or something else than names and values.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AnalysisError(f"config {os.fspath(path)}: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise AnalysisError(f"config {os.fspath(path)}: expected names and values, found {type(found).__name__}")
    return found


def _said(found: Any) -> str:
    place = ".".join(str(part) for part in found["loc"]) or "settings"
    if found["type"] == "extra_forbidden":
        return f"{place}: no such setting; there are {', '.join(Settings.model_fields)}"
    if found["type"] == "unexpected_keyword_argument":
        known = ", ".join(field.name for field in fields(DiffusionGauge))
        return f"{place}: no such setting of the gauge; there are {known}"
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if found["type"] == "missing" else f"{place}: {message}, found {found['input']!r}"
