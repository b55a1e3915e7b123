"""Run the blocks of a page of the documentation, for its figures; or check what built pages load from elsewhere."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
EARLIER = re.compile(r"^<!-- goes on from (\S+) -->$", re.M)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|next|prev))[^>]*\bhref=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|url\(\s*["']?(?:https?:)?//[^)]+|@import\s+["'](?:https?:)?//[^"']+""",
    re.I,
)
RUN = "from repaudit.cli import app; app()"


@dataclass(frozen=True)
class Block:
    """A fenced block, the line on which its code begins, and why it is not run, if it is not."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    """Give the fenced blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(found["language"], found["code"], line, found["reason"])


def earlier(page: Path) -> Path | None:
    """Return the page on whose store this one goes on."""
    found = EARLIER.search(page.read_text(encoding="utf-8"))
    return page.parent / found[1] if found else None


def run_page(page: Path, folder: Path) -> list[Block]:
    """Run the Python blocks of a page in one namespace, and its commands, in a folder; give those that were run."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    done = []
    with chdir(folder):
        for block in blocks(page):
            if block.reason is not None or block.language not in {"python", "sh"}:
                continue
            if block.language == "python":
                code = compile("\n" * (block.line - 1) + block.code, page, "exec")
                exec(code, namespace)  # noqa: S102 - the project's own pages
            else:
                run_commands(block.code)
            done.append(block)
    return done


def run_commands(code: str) -> None:
    """Run lines that call ``repaudit``; any other is an error."""
    for line in code.splitlines():
        name, *arguments = shlex.split(line, comments=True)
        if name != "repaudit":
            raise ValueError(f"expected a command of repaudit, found {line!r}")
        done = subprocess.run(
            [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False, env={**os.environ}
        )
        if done.returncode:
            raise RuntimeError(f"{line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Return what the pages and styles of a site load from other hosts."""
    pages = [path for path in sorted(site.rglob("*")) if path.suffix in {".html", ".css"}]
    return [
        f"{path.relative_to(site)}: {found[0]}"
        for path in pages
        for found in LOADED.finditer(path.read_text(encoding="utf-8"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", help="the page whose figures to make")
    parser.add_argument("folder", type=Path, help="where the figures go, or the site to check")
    parser.add_argument("--check", action="store_true", help="check a built site")
    args = parser.parse_args()
    if args.check:
        sys.exit("\n".join(loaded_from_elsewhere(args.folder)) or 0)
    with tempfile.TemporaryDirectory() as scratch:
        for page in (earlier(args.page), args.page):
            if page is not None:
                run_page(page.resolve(), Path(scratch))
        for figure in Path(scratch).glob("*.png"):
            (args.folder / figure.name).write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
