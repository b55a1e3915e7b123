"""What an analysis replaces in its folder: the results of an earlier one, told before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from rich.markup import escape

from repaudit.cli.console import PlainConsole, brief, prose

LISTED: Final = {"layer": "layers", "model": "models", "step": "steps"}
"""What is named one by one, by the name of its list in a summary."""

SETTINGS: Final = (
    "tokens", "max_tokens", "match", "merge", "groups", "similarity", "similarity_steps", "keep_merged", "frames",
    "units", "seed",
)  # fmt: skip
"""Settings that change what results hold; how they are computed does not."""

COUNTED: Final = {"similarity", "frames", "units"}
"""Those of which more have all that fewer had."""


@dataclass(frozen=True)
class EarlierResults:
    """The summary of the results that a folder has; an empty one where it has none that can be read.

    Examples
    --------
    >>> bool(EarlierResults.of(Path("nowhere")))
    False
    """

    folder: Path
    summary: Mapping[str, Any]
    otherwise: list[str] = field(default_factory=list)
    """What :meth:`tell_before` found to be of other stores, scales or settings."""

    def __bool__(self) -> bool:
        return bool(self.summary)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the summary of a folder."""
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            known = {*LISTED.values(), "scales", "parameters"} <= summary.keys() and (folder / "results.zarr").exists()
        except (OSError, ValueError, AttributeError):
            return cls(folder, {})
        return cls(folder, summary if known else {})

    def tell_before(self, study: Any) -> None:
        """Say on stderr what they have that the results of a study are not going to have, while they can be kept."""
        selection = study.selection
        now = {"layer": selection.layers, "model": selection.models, "step": selection.all_steps()}
        self.otherwise.extend(self._set_otherwise(study))
        had = [*self._gone(now), *self.otherwise]
        if had:
            self._say(f"replaces the results in {self.folder} at its end, which had {_and(had)}; --out keeps both")

    @contextmanager
    def told_of_when_interrupted(self) -> Iterator[None]:
        """Let an interrupt say that they are still in the folder."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if self:
                interrupt.add_note(f"{self.folder} has the earlier results")
            raise

    def tell_after(self, summary: Mapping[str, Any]) -> None:
        """Say on stderr what of them is no longer in the folder."""
        had = [*self._gone({what: summary[listed] for what, listed in LISTED.items()}), *self.otherwise]
        if had:
            self._say(f"replaced the earlier results in {self.folder}, which had {_and(had)}; --out keeps both")

    def _gone(self, now: Mapping[str, Iterable[Any]]) -> list[str]:
        said = []
        for what, listed in LISTED.items() if self.summary else ():
            names = [name for name in map(str, self.summary[listed]) if name not in {*map(str, now[what])}]
            said += [f"{what}{'s' * (len(names) > 1)} {brief(names)}"] if names else []
        return said

    def _set_otherwise(self, study: Any) -> list[str]:
        """Return in words what the earlier results are of that the new ones are not: stores, scales, a gauge."""
        if not self.summary:
            return []
        then, said = self.summary["parameters"], []
        if then["url"] != study.sources.urls:
            urls = [then["url"]] if isinstance(then["url"], str) else then["url"]
            said.append(f"store{'s' * (len(urls) > 1)} {brief(urls)}")
        scales = [one["name"] for one in self.summary["scales"]]
        gone = [name for name in scales if name not in {scale.name for scale in study.scales}]
        said += [f"scale{'s' * (len(gone) > 1)} {brief(gone)}"] if gone else []
        gauge, own = then.get("gauge") or {}, asdict(study.scales[0].gauge)
        others = {name for name, value in own.items() if value is not None} - {"perplexity", "neighbors"}
        said += [f"{name}={gauge[name]}" for name in gauge if name in others and gauge[name] != own[name]]
        chosen = json.loads(study.settings.model_dump_json())
        had = [name for name in SETTINGS if name in then and not _has(name, chosen[name], then[name])]
        return said + [f"{name}={_text(then[name])}" for name in had]

    def _say(self, text: str) -> None:
        prose(PlainConsole(stderr=True), escape(text))


def _has(name: str, now: Any, then: Any) -> bool:
    """Whether results of the one setting have what those of the other had."""
    if name in COUNTED:
        return {*then} <= {*now} if isinstance(then, list) else bool(then <= now)
    return bool(now == then)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _and(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
