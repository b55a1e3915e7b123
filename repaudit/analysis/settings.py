"""How an analysis is done: every choice in one checked object, from keywords, flags or a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Real
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import torch
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from repaudit.analysis.layer_names import Match
from repaudit.analysis.shared_samples import FEWEST
from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.gram import bytes_of
from repaudit.measure.similarity import Measure
from repaudit.names import at_home

MAX_TOKENS: Final = 2000
"""Tokens analysed as samples, unless more are asked for."""

StoreStrategy = Literal["weighted", "frobenius", "reversible", "ot_barycenter"]
"""Merge strategies whose P* is over the samples of the store; that of gromov is not."""


def _several(asked: Any) -> Any:
    """Turn a single name or step into a list of one."""
    return [asked.item() if isinstance(asked, np.generic) else asked] if isinstance(asked, str | Real) else asked


def _measures(asked: Any) -> Any:
    """Turn the name of one measure into a list of one, and the word none into none."""
    measures = _several(asked)
    return () if measures in (["none"], ("none",)) else measures


def _bytes(memory: str) -> str:
    try:
        bytes_of(memory)
    except ValueError:
        raise ValueError("expected a memory budget such as 2GB") from None
    return memory


def _scales(scales: tuple[float | str, ...] | None) -> tuple[float | str, ...] | None:
    for scale in scales or ():
        text = str(scale).removeprefix("N/")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) <= 0:
            raise ValueError("expected perplexities such as 15 or N/4")
    if scales is not None and not scales:
        raise ValueError("expected at least one scale")
    return scales


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
    layers: Annotated[tuple[str, ...] | dict[str, dict[str, str]] | None, BeforeValidator(_several)] = None
    match: Match = "name"
    steps: Steps = None
    tokens: Literal["samples", "within"] | None = None
    max_tokens: Annotated[int, Field(ge=FEWEST)] = MAX_TOKENS
    merge: StoreStrategy = "frobenius"
    memory: Annotated[str, AfterValidator(_bytes)] = "2GB"
    scheduler: str | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    gauge: Annotated[DiffusionGauge, BeforeValidator(lambda gauge: gauge or {})] = DiffusionGauge()
    scales: Annotated[tuple[float | str, ...] | None, BeforeValidator(_several), AfterValidator(_scales)] = None
    groups: dict[str, Annotated[tuple[str, ...], BeforeValidator(_several)]] | None = None
    similarity: Annotated[tuple[Measure, ...], BeforeValidator(_measures)] = ("cka_debiased", "mutual_knn")
    similarity_steps: Steps = None
    frames: Annotated[int, Field(ge=0)] = 12
    units: Annotated[int, Field(ge=0)] = 32
    figures: Literal["main", "all", "none"] = "main"
    keep_merged: Literal["last", "all"] = "last"
    cache: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.scheduler is not None and self.workers is not None:
            raise ValueError("scheduler names running workers, workers starts some here; give one of them")
        if self.match == "depth" and self.layers_by_model:
            raise ValueError("layers names the layers of each model, match='depth' finds them; give one of them")
        if self.tokens != "samples" and self.max_tokens != MAX_TOKENS:
            raise ValueError("max_tokens bounds the tokens that are analysed as samples; it needs tokens='samples'")
        return self

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> Settings:
        """Check choices by keyword.

        Raises
        ------
        AnalysisError
            A name is unknown or a value is invalid; all of them at once.
        """
        try:
            return cls.model_validate(dict(choices))
        except ValidationError as error:
            raise AnalysisError("; ".join(_said(failure) for failure in error.errors())) from None

    @property
    def layers_by_model(self) -> dict[str, dict[str, str]]:
        """A name to the recorded layer of each model, where ``layers`` says so."""
        return self.layers if isinstance(self.layers, dict) else {}

    @property
    def chosen_layers(self) -> tuple[str, ...] | None:
        """Names of the layers to analyse; None for all."""
        return self.layers if isinstance(self.layers, tuple) else None

    @property
    def budget(self) -> int:
        """Bytes of ``memory``."""
        return bytes_of(self.memory)

    def check_similarity_steps(self, chosen: Sequence[int]) -> None:
        """Refuse steps for the similarity that are not analysed, before anything is computed.

        Raises
        ------
        AnalysisError
            No step, or one that is not among those analysed.
        """
        steps = self.similarity_steps
        missing = [step for step in steps or () if step not in chosen]
        if missing or (steps is not None and not steps):
            unknown, known = (", ".join(map(str, some)) for some in (missing, chosen))
            raise AnalysisError(
                f"similarity_steps: expected some of the steps analysed ({known}), found {unknown or 'none'}"
            )

    def group_of(self, models: tuple[str, ...]) -> dict[str, str]:
        """Return the group of every model, in the order of the groups; empty if no groups are asked for.

        Raises
        ------
        AnalysisError
            A model is in no group or in two, or a group has no model.
        """
        if not self.groups:
            return {}
        members_of = {
            name: [model for model in models if model in patterns or any(fnmatchcase(model, one) for one in patterns)]
            for name, patterns in self.groups.items()
        }
        for model in models:
            holding = [name for name, members in members_of.items() if model in members]
            if len(holding) != 1:
                raise AnalysisError(
                    f"groups: expected every model in one group, found {model} in {', '.join(holding) or 'none'}"
                )
        empty = [name for name, members in members_of.items() if not members]
        if empty:
            raise AnalysisError(f"groups: no model belongs to {', '.join(empty)}; the models are {', '.join(models)}")
        return {model: name for name, members in members_of.items() for model in members}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the choices in a YAML file.

    Raises
    ------
    AnalysisError
        The file cannot be read, is not YAML, or has something else than names and values.
    """
    try:
        choices = yaml.safe_load(at_home(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AnalysisError(f"config {os.fspath(path)}: {' '.join(str(error).split())}") from None
    if choices is None:
        return {}
    if not isinstance(choices, dict):
        raise AnalysisError(f"config {os.fspath(path)}: expected names and values, found {type(choices).__name__}")
    return choices


def _said(failure: Any) -> str:
    parts = [str(part) for part in failure["loc"] if isinstance(part, str)]  # no place in a list, and no kind of one
    name = ".".join(part for part in parts if "[" not in part) or "settings"
    if failure["type"] == "extra_forbidden":
        like = get_close_matches(name, Settings.model_fields, 1)
        meant = f"; did you mean {like[0]}?" if like else ""
        return f"{name}: unknown setting; expected one of {', '.join(Settings.model_fields)}{meant}"
    if failure["type"] == "unexpected_keyword_argument":
        known = ", ".join(field.name for field in fields(DiffusionGauge))
        return f"{name}: unknown setting of the gauge; expected one of {known}"
    message = re.sub(r", (unable to|got a) .*", "", str(failure["msg"]).removeprefix("Value error, "))
    message = re.sub("^Input should be (a valid integer|an integer)", "expected a whole number", message)
    message = re.sub("^Input should be (greater|less)", r"expected a number \1", message)
    message = re.sub("^Input should be (a valid )?(?=string|boolean)", "expected a ", message)
    message = re.sub("^Input should be (a valid )?", "expected ", message)
    return (
        f"{name}: {message}"
        if failure["type"] == "missing" or not failure["loc"]
        else f"{name}: {message}, found {failure['input']!r}"
    )
