"""Run one bench: ``scripts/bench NAME [options]``. Each prints a table of ratios measured in one interleaved run."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: scripts/bench NAME [options], with NAME one of: {', '.join(names)}")
    sys.argv = sys.argv[1:]
    runpy.run_path(str(here / f"{sys.argv[0]}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
