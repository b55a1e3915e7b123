"""Every bench in turn, and one page of what they print: ``scripts/bench all --out docs/benches.md``.

``--device cuda`` runs those that have a row for a device, and no others.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

HERE: Final = Path(__file__).parent
LIBRARIES: Final = (
    "torch", "numpy", "scipy", "scikit-learn", "zarr", "xarray", "dask", "transformers", "graphtools", "phate", "POT",
    "icechunk",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A bench with its options, the threads it may use, and what a reader should look at."""

    title: str
    command: str
    threads: int
    about: str


ROWS: Final = (
    Row("Operators, one thread", "gauge --sparse 0", 1, "The default operator over the bare matrix product of its "
        "activations, beside `pdist` with numpy and graphtools, in the same rounds."),
    Row("Operators, two threads", "gauge --samples 2000 5000 20000 --slow-until 0 --rounds 5", 2, "The same."),
    Row("Recording", "capture", 2, "An audit over bare forwards of the probe set, and the CPU time of a training with "
        "audits every 50 steps, less these forwards, over that without."),
    Row("The store", "store --steps 20", 2, "A commit over the bare writing of its bytes, beside `np.save`, "
        "safetensors, plain zarr and Icechunk (the last two force nothing to the device); appending and opening as the "
        "steps grow in number. The floor is all bytes of a step in one file, forced to the disk, which several "
        "files may undercut; `blocked_ms_per_audit` is how long a training waits."),
    Row("Distances", "analyze --steps 0", 2, "Distances of T operators of 1,000 samples over the bare Gram product; "
        "`recomputed` are pairs so close that they are read again, `sparse` is over the product of dense copies."),
    Row("Pictures", "embed", 1, "PHATE of an operator, of many operators and of units over steps, beside phate and "
        "(where it is installed) m-phate, from the same input; the stress of each layout against the same distances; "
        "the frames of a layer, in CPU seconds, beside SMACOF alone, from the same distances."),
    Row("Merging", "merge", 1, "Barycenters beside POT's own, which is timed on some rows and scaled to all; "
        "a marginal error is how far the plans' sums are from the operators (L1), `debiased` is without the blur that "
        "regularization brings."),
    Row("Sketches", "sketch", 1, "Nearest operators by sketches, beside all pairs of all entries."),
    Row("Sketches of more operators", "sketch --operators 10000", 1, "The same."),
    Row("Scaling out", "scale", 1, "One core and two, by threads and Dask workers, from a file and from S3; memory "
        "over the number of steps. `off by` is the largest difference of any spread from that of the first row."),
    Row("Growing work", "growth", 1, "The cost of an analysis as samples, steps, models or layers grow, on one core."),
)  # fmt: skip
ON_DEVICES: Final = (
    Row("Operators on the device", "gauge --samples 2000 5000 20000 --slow-until 0", 8, "The default operator over the "
        "bare product, both there."),
    Row("Recording from the device", "capture", 8, "A model so small that its forwards are launches and little else."),
    Row("Recording a larger model", "capture --rounds 5 --hidden 1024 --layers 12 --tokens 256 --samples 256", 8,
        "Twelve layers of 1,024 features, 256 samples of 256 tokens, float32."),
)  # fmt: skip


def machine(device: str) -> str:
    """Return the machine, its load and the versions, as lines of Markdown."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores ({model[1] if model else '?'}), "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.2f} before"
    ]
    if device != "cpu":
        lines.append(f"- {torch.cuda.get_device_name()}")
    lines.append("- " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES))
    return "\n".join(lines)


def section(row: Row, device: str) -> str:
    """Run one bench in a process of its own, and return what it printed, under its title and command."""
    name, *options = row.command.split()
    options += ["--device", device] if device != "cpu" else []
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(row.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE), name, *options]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    text = run.stdout.strip() if run.returncode == 0 else f"failed: {run.stderr.strip().splitlines()[-1]}"
    body = text if any(line.startswith("|") for line in text.splitlines()) else f"```text\n{text}\n```"
    on = f"{row.threads} thread{'s' * (row.threads > 1)}"
    spent = f"`scripts/bench {' '.join([name, *options])}`, {on}, {time.perf_counter() - start:.0f} s"
    return f"## {row.title}\n\n{row.about} {spent}.\n\n{body}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="all", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benches.md"))
    parser.add_argument("--device", default="cpu", help="where operators are computed: cpu or cuda")
    parser.add_argument("--only", nargs="*", help="the first words of some commands, such as gauge; by default all")
    options = parser.parse_args()
    chosen = ROWS if options.device == "cpu" else ON_DEVICES
    rows = [row for row in chosen if not options.only or row.command.split()[0] in options.only]
    title = "# Benches\n" if options.device == "cpu" else f"# Benches on {options.device}\n"
    parts = [title, machine(options.device), ""]
    for row in rows:
        print(f"{row.title}: scripts/bench {row.command}", flush=True)
        parts.append(section(row, options.device))
        options.out.write_text("\n".join(parts))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
