"""The objective over two gloo processes: the gradient, the bank and the heads of the single-process training."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import repaudit as ra

sys.path.insert(0, str(Path(__file__).parent))

import students

MATCHES = {
    "operator": lambda: ra.OperatorMatch(students.target()),
    "features": lambda: ra.FeatureMatch(students.teachers(), [f"s{i}" for i in range(students.COUNT)]),
}


def train(kind: str, batch_size: int, one_forward: bool) -> dict[str, torch.Tensor]:
    """Train a few steps, on this process's share of the task, and return weights and the objective's state."""
    model = students.student(dropout=0.0)
    objective = students.objective(
        MATCHES[kind](), batch_size=batch_size, probe_set=None if one_forward else students.probe_set()
    )
    if one_forward and kind == "features":
        objective.match.heads = torch.nn.ModuleList([torch.nn.Linear(16, 5), torch.nn.Linear(16, 7)])
    objective.prepare(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD([*model.parameters(), *objective.match.parameters()], lr=0.05)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    rows = students.inputs()
    labels = torch.arange(students.COUNT) % 4
    for step in range(4):
        places = torch.arange(step * 8, step * 8 + 8)[rank::world]
        batch = {name: value[places] for name, value in rows.items()}
        task, match = objective.joined(
            wrapped, step, lambda batch=batch, places=places: wrapped(**batch, labels=labels[places]).loss,
            places if one_forward else None,
        )  # fmt: skip
        optimizer.zero_grad()
        (task + match).backward()
        optimizer.step()
    return {
        **model.state_dict(),
        **{f"objective.{k}": v for k, v in objective.match.state_dict().items() if k != "_extra_state"},
    }


def worker(rank: int, folder: str, kind: str, batch_size: int, one_forward: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(train(kind, batch_size, one_forward), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "batch_size", "one_forward"),
    [
        pytest.param("operator", 16, False, marks=pytest.mark.slow),
        ("operator", 15, False),
        pytest.param("features", 16, False, marks=pytest.mark.slow),
        pytest.param("operator", 16, True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_does(tmp_path: Path, kind: str, batch_size: int, one_forward: bool) -> None:
    torch.manual_seed(0)
    alone = train(kind, batch_size, one_forward)
    mp.spawn(worker, (str(tmp_path), kind, batch_size, one_forward), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    start, moved, apart = students.student(dropout=0.0).state_dict(), 0.0, 0.0
    for name, value in alone.items():
        torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0, msg=name)
        if name in start:
            moved += float((value - start[name]).double().square().sum())
            apart += float((value - ranks[0][name]).double().square().sum())
    assert moved > 1e-5
    assert apart < 1e-4 * moved  # rounding, which few samples of an untrained student magnify


@pytest.mark.slow
def test_lightnings_own_ddp_trains_as_one_process_does(tmp_path):
    child = Path(__file__).parent / "ddp_child.py"
    for processes in (1, 2):
        command = [sys.executable, child, tmp_path, str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "all_gather is deprecated" not in done.stderr
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    fresh = students.student(dropout=0.0).state_dict()
    moved = max(float((one[name] - value).abs().max()) for name, value in fresh.items())
    assert moved > 1e-5
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-3 * moved)
