"""Audits over two gloo processes: the record equals the single-process one, and a failing rank hangs nobody."""

import os
import random
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import GPT2Config, GPT2LMHeadModel

import repaudit as ra
from repaudit.capture.extract import hooks
from repaudit.capture.record import ranks as distributed
from repaudit.errors import AuditWarning, LostRankError, RankError, StateError

GENERATOR = torch.Generator().manual_seed(3)
PROBE = ra.ProbeSet.from_tensors({"input_ids": torch.randint(1, 32, (7, 8), generator=GENERATOR)})
DATA = torch.randint(1, 32, (3, 4, 8), generator=GENERATOR)
LAYERS = ["transformer.h[*]", ra.LayerSpec("transformer.h[-1]", reduce="all")]


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, use_cache=False))


def wrapped(kind):
    model = gpt2()
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def train(model, recorder):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if recorder is not None:
        recorder.audit(model, 0)
    for step, ids in enumerate(DATA, 1):
        share = ids.chunk(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else ids
        model(input_ids=share, labels=share).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.audit(model, step)


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def recorder_of(store, **options):
    return ra.Recorder(store=store, model_name="m", probe_set=PROBE, layer_specs=LAYERS, batch_size=3, **options)


def join(rank, folder, timeout=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=timeout)
    )


def train_both_ways(rank, folder, kind, split):
    join(rank, folder)
    plain = wrapped(kind)
    train(plain, None)
    audited = wrapped(kind)
    with recorder_of(f"{folder}/s.zarr", split_across_ranks=split) as recorder:
        train(audited, recorder)
    for a, b in zip(plain.parameters(), audited.parameters(), strict=True):
        assert torch.equal(full(a.detach()), full(b.detach()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "split"), [pytest.param("ddp", False, marks=pytest.mark.slow), ("ddp", True), ("fsdp2", False)]
)
@pytest.mark.thin(2)
def test_the_record_equals_the_single_process_one(tmp_path, kind, split):
    mp.spawn(train_both_ways, (str(tmp_path), kind, split), nprocs=2)
    with recorder_of(tmp_path / "single.zarr") as recorder:
        train(gpt2().train(), recorder)
    found = ra.open_store(tmp_path / "s.zarr")["models/m"].dataset.load()
    expected = ra.open_store(tmp_path / "single.zarr")["models/m"].dataset.load()
    assert found.step.values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found["transformer.h.0"][0], expected["transformer.h.0"][0], rtol=1e-5, atol=1e-6)
    assert found["transformer.h.1:all"].shape == (4, 7, 8, 16)
    assert np.isfinite(found["transformer.h.1:all"]).all()


def fail_on_one_rank(rank, folder, kind, split, dies):
    distributed.RANK_TIMEOUT = timedelta(seconds=8)
    join(rank, folder, timeout=8)
    model = wrapped(kind)
    recorder = recorder_of(f"{folder}/s.zarr", split_across_ranks=split, on_store_error="raise")
    recorder.open(model)
    if rank == 1:
        if dies:
            os._exit(0)
        recorder.auditor.extractor.extract = refuse
    with pytest.raises((RankError, MemoryError)) as caught:
        recorder.audit(model, 0)
    with open(f"{folder}/rank{rank}", "w") as file:  # noqa: PTH123
        file.write(f"{type(caught.value).__name__}: {caught.value}")
    os._exit(0)


def refuse(*_, agree=None, **__):
    error = MemoryError("no memory left")
    if agree is not None:
        agree(error)
    raise error


@pytest.mark.timeout(90)
@pytest.mark.parametrize("dies", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "split"), [("ddp", True)])
def test_a_failing_rank_ends_the_audit_on_all(tmp_path, kind, split, dies):
    mp.spawn(fail_on_one_rank, (str(tmp_path), kind, split, dies), nprocs=2)
    message = (tmp_path / "rank0").read_text()
    assert "no longer answers" in message if dies else "failed on rank 1: MemoryError: no memory left" in message
    assert not ra.open_store(tmp_path / "s.zarr")["models/m"].dataset.sizes.get("step", 0)


class Stubborn(random.Random):
    def setstate(self, state):
        raise OSError("no")


def fail_in_sharded_audits(rank, folder):
    """Once behind the forward, which every rank survives, once where the state of one cannot be put back, then in the
    middle of a forward: which ends the training on all.
    """
    distributed.RANK_TIMEOUT = timedelta(seconds=6)
    join(rank, folder)
    model = wrapped("fsdp2")
    recorder = recorder_of(f"{folder}/s.zarr")
    recorder.open(model)
    pool = hooks.pool
    if rank == 1:
        hooks.pool = refuse
    with pytest.warns(AuditWarning, match="no memory left"):
        assert not recorder.audit(model, 0)
    hooks.pool = pool
    recorder.audit(model, 1)
    recorder.flush()
    if rank == 1:
        model.generator = Stubborn(0)
    with pytest.raises(StateError, match="cannot be put back"):
        recorder.audit(model, 2)
    model.generator = None
    if rank == 1:
        model.transformer.h[0].register_forward_pre_hook(refuse)  # the other rank waits for the next block
    with pytest.raises(LostRankError) as caught:
        recorder.audit(model, 2)
    with open(f"{folder}/rank{rank}", "w") as file:  # noqa: PTH123
        file.write(str(caught.value))
    os._exit(0)


@pytest.mark.timeout(90)
def test_a_rank_that_fails_in_a_sharded_audit_leaves_none_waiting(tmp_path):
    mp.spawn(fail_in_sharded_audits, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert f"rank {rank}: another rank no longer answers" in (tmp_path / f"rank{rank}").read_text()
    assert ra.open_store(tmp_path / "s.zarr")["models/m"].step.values.tolist() == [1]


SCRIPT = """
import sys

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config

import repaudit as ra

IDS = torch.randint(1, 32, (23, 8), generator=torch.Generator().manual_seed(5))

class Module(ra.HFTrainerModule):
    def train_dataloader(self):  # the processes share each batch of the single one
        n = self.trainer.world_size
        return DataLoader([{"input_ids": row} for row in IDS[self.global_rank : 16 : n]], batch_size=4 // n)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    folder, devices = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    pl.seed_everything(0)
    rates = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    module = Module(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, **rates))
    callback = ra.RepresentationAuditCallback(
        f"{folder}/{devices}.zarr", "m", ra.ProbeSet.from_tensors({"input_ids": IDS[16:]}), ["transformer.h[*]"],
        ra.AuditTrigger(every_n_steps=2, at_start=True, on_checkpoint=True), split_across_ranks=sys.argv[3] == "split",
    )
    strategy = pl.strategies.DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=devices, strategy=strategy, logger=False, callbacks=[callback],
        default_root_dir=folder, enable_progress_bar=False, use_distributed_sampler=False,
    ).fit(module)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("split", ["whole", "split"])
def test_lightnings_own_strategy_records_what_one_process_does(tmp_path, split):
    (tmp_path / "train.py").write_text(SCRIPT)
    for devices in (1, 2):
        command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path), str(devices), split]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
    single, double = (ra.open_store(tmp_path / f"{devices}.zarr")["models/m"].dataset.load() for devices in (1, 2))
    assert double.step.values.tolist() == single.step.values.tolist() == [0, 2, 4]
    for layer in ("transformer.h.0", "transformer.h.1"):
        np.testing.assert_allclose(double[layer], single[layer], rtol=1e-4, atol=1e-5)
    assert double.trigger.values.tolist() == single.trigger.values.tolist()
