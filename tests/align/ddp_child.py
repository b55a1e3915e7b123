"""Lightning's own DDP with an aligned student: ``ddp_child.py FOLDER PROCESSES`` writes the weights it ends with."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

import students

import repaudit as ra


class Student(ra.AlignedFineTuning):
    """Plain steps: Adam turns differences of 1e-9 at the start into others of its learning rate."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


def train(processes: int) -> pl.Trainer:
    torch.manual_seed(0)
    match = ra.OperatorMatch(students.target())
    objective = students.objective(match, batch_size=16, probe_set=students.probe_set())
    inputs, labels = students.inputs(), torch.arange(students.COUNT) % 4
    rows = [{name: value[i] for name, value in inputs.items()} | {"labels": labels[i]} for i in range(32)]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Student(students.student(dropout=0.0), objective), DataLoader(rows, batch_size=8 // processes))
    return trainer


if __name__ == "__main__":
    processes = int(sys.argv[2])
    trainer = train(processes)
    if trainer.global_rank == 0:
        torch.save(trainer.lightning_module.network.state_dict(), Path(sys.argv[1], f"{processes}.pt"))
