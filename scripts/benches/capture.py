"""Bench of recording: an audit's blocked time over bare forwards of its batches, and what audits cost a training loop.

``scripts/bench capture [--rounds 7] [--samples 64] [--tokens 64] [--hidden 384] [--layers 6] [--device cpu]``

``cpu_...`` is the CPU time, of all threads, of 50 training steps with one audit, less the bare forwards of its
batches, over that of 50 training steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import repaudit as ra

BATCH_SIZE = 32


def build(options: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=options.tokens,
    )
    return LlamaForCausalLM(config).to(options.device)


def probe_of(options: argparse.Namespace) -> ra.ProbeSet:
    """Right-padded texts of half to full length, as real ones are."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.samples, options.tokens)
    lengths = torch.randint(options.tokens // 2, options.tokens + 1, (options.samples, 1), generator=generator)
    mask = (torch.arange(options.tokens) < lengths).long()
    ids = torch.randint(1, options.vocabulary, shape, generator=generator)
    return ra.ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask})


def bare(call: Callable[..., Any], probe_set: ra.ProbeSet, device: str) -> None:
    with torch.no_grad():
        for batch in probe_set.batches(BATCH_SIZE):
            call(**{name: value.to(device) for name, value in batch.items()}, use_cache=False)


def timed(action: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bench_audit(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Alternate the bare trunk, the full forward, extraction alone and a whole audit; medians of the ratios."""
    model, probe_set = build(options).eval(), probe_of(options)
    specs = ["model.layers[*]", "model.norm"]
    extractor = ra.ActivationExtractor(specs)
    recorder = ra.Recorder(
        store=folder / "bench.zarr", model_name="m", probe_set=probe_set, layer_specs=specs, batch_size=BATCH_SIZE
    )
    step = iter(range(10**6))
    actions: dict[str, Callable[[], Any]] = {
        "trunk": lambda: bare(model.model, probe_set, options.device),
        "extract": lambda: extractor.extract(model, probe_set, BATCH_SIZE),
        "audit": lambda: recorder.audit(model, next(step)),
        "full": lambda: bare(model, probe_set, options.device),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    with recorder:
        for round_ in range(options.rounds + 1):
            order = list(actions.items())
            for name, action in order if round_ % 2 else order[::-1]:  # so that no action always follows the same one
                seconds = timed(action, options.device)
                recorder.flush()  # the store's own work is another bench's
                if round_ > 0:
                    times[name].append(seconds)
    ratio = {name: [a / b for a, b in zip(values, times["trunk"], strict=True)] for name, values in times.items()}
    return {
        "trunk_ms": 1e3 * statistics.median(times["trunk"]),
        "extract_over_trunk": statistics.median(ratio["extract"]),
        "audit_over_trunk": statistics.median(ratio["audit"]),
        "full_over_trunk": statistics.median(ratio["full"]),
        "audit_over_full": statistics.median(a / b for a, b in zip(times["audit"], times["full"], strict=True)),
    }


def bench_training(options: argparse.Namespace, folder: Path, every: int = 5, steps: int = 10) -> dict[str, float]:
    """The time of a training loop with an audit every ``every`` steps over the same loop without, alternating."""
    probe_set = probe_of(options)
    times: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(3):
        for audited in (False, True):
            torch.manual_seed(0)
            model = build(options)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            ids = torch.randint(1, options.vocabulary, (16, options.tokens), device=options.device)
            recorder = ra.Recorder(
                store=folder / f"train{round_}.zarr",
                model_name="m",
                probe_set=probe_set,
                layer_specs=["model.layers[*]"],
                trigger=ra.AuditTrigger(every_n_steps=every),
            )
            if audited:
                recorder.open(model)
            loop = lambda: train(model, optimizer, ids, steps, recorder if audited else None)  # noqa: B023, E731
            times[audited].append(timed(loop, options.device))
            recorder.close()
    return {
        "audit_every_steps": every,
        "probe_over_training_samples": options.samples / (16 * every),
        "training_slowdown": statistics.median(a / b for a, b in zip(times[True], times[False], strict=True)),
    }


def bench_cpu(options: argparse.Namespace, folder: Path, every: int = 50) -> dict[str, float]:
    """Return the CPU time of a training with an audit every 50 steps, less the audits' forwards, over that without.

    Steps, bare forwards, calls of the recorder that are not due, and audits with their writing alternate: their sums
    tell whole loops apart by less than these differ from one time to the next.
    """
    found = {}
    for record in ("activations", "operators", "sketches"):
        model, probe_set = build(options), probe_of(options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = torch.randint(1, options.vocabulary, (16, options.tokens), device=options.device)
        recorder = ra.Recorder(
            store=folder / f"{record}.zarr",
            model_name="m",
            probe_set=probe_set,
            layer_specs=["model.layers[*]"],
            trigger=ra.AuditTrigger(every_n_steps=every),
            batch_size=BATCH_SIZE,
            gauge=None if record == "activations" else ra.DiffusionGauge(),
            record=record,
        )
        ratios = []
        with recorder:
            recorder.open(model)
            for first in range(0, every * (options.rounds + 1), every):
                training = cpu(lambda: train(model, optimizer, ids, 2, None)) * every / 2  # noqa: B023
                forwards = cpu(lambda: bare(model.eval().model, probe_set, options.device))  # noqa: B023
                model.train()
                steps = range(first + 1, first + every + 1)
                audits = cpu(lambda: ([recorder.audit(model, step) for step in steps], recorder.flush()))  # noqa: B023
                ratios.append(1 + (audits - forwards) / training)
        found[f"cpu_{record}"] = statistics.median(ratios[1:])
    return {"cpu_ms_of_a_step": 1e3 * training / every, "cpu_ms_of_forwards": 1e3 * forwards, **found}


def cpu(action: Callable[[], Any]) -> float:
    """Return the CPU time of all threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def train(model: Any, optimizer: Any, ids: torch.Tensor, steps: int, recorder: ra.Recorder | None) -> None:
    for step in range(1, steps + 1):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.audit(model, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"rounds": 7, "samples": 64, "tokens": 64, "hidden": 384, "layers": 6, "vocabulary": 8000}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", help="where operators are computed: cpu or cuda")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = bench_audit(options, Path(folder)) | bench_training(options, Path(folder))
        found |= bench_cpu(options, Path(folder))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
