"""A forward that logs: during an audit it goes nowhere, and the metrics are those of a training without audits."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.fabric import Fabric
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

import repaudit as ra

PROBE = ra.ProbeSet.from_tensors({"x": 100 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))})


def batches():
    generator = torch.Generator().manual_seed(2)
    rows = [{"x": torch.randn(4, generator=generator), "y": torch.randn(1, generator=generator)} for _ in range(16)]
    return DataLoader(rows, batch_size=4)


class Logs(pl.LightningModule):
    """Logs by every way there is, in its forward."""

    def __init__(self, on_step=False):
        super().__init__()
        self.body, self.head, self.on_step = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 1), on_step
        self.mean, self.seen = torchmetrics.MeanMetric(), torchmetrics.MetricCollection([torchmetrics.MeanMetric()])

    def forward(self, x):
        hidden = self.body(x)
        size = hidden.detach().abs().mean()
        self.log("size", size, on_step=self.on_step, on_epoch=True, batch_size=len(x))
        self.log_dict({"twice": 2 * size, "half": size / 2}, on_step=self.on_step, on_epoch=True, batch_size=len(x))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.mean.update(size)
        self.seen(size)
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(size)}, step=self.global_step)
            self.logger.experiment.log_metrics({"by experiment": float(size)}, self.global_step)
            assert str(self.logger.log_dir).startswith(self.logger.save_dir)
        return self.head(hidden)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch["x"]), batch["y"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "size"}}


class Metrics(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        own = {"mean so far": module.mean.compute(), **module.seen.compute()}
        self.seen.append({name: float(value) for name, value in (trainer.callback_metrics | own).items()})


def fitted(folder, *callbacks, **options):
    pl.seed_everything(3, verbose=False)
    module, metrics = Logs(**options), Metrics()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = CSVLogger(folder, flush_logs_every_n_steps=1)
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", log_every_n_steps=1, callbacks=[metrics, *callbacks], logger=logger, **quiet
    )
    trainer.fit(module, batches())
    logged = [path.read_text() for path in folder.rglob("metrics.csv")]
    return module.state_dict(), metrics.seen, logged, trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("on_step", [False, True])
@pytest.mark.parametrize("trigger", [{"every_n_steps": 1, "at_start": True}, {"on_checkpoint": True, "at_steps": [2]}])
def test_what_a_forward_logs_in_an_audit_goes_nowhere(tmp_path, on_step, trigger):
    plain = fitted(tmp_path / "plain", on_step=on_step)
    options = {"trigger": ra.AuditTrigger(**trigger), "on_store_error": "raise", "durable": False}
    callback = ra.RepresentationAuditCallback(tmp_path / "s.zarr", "seed0", PROBE, ["body[*]"], **options)
    audited = fitted(tmp_path / "audited", callback, on_step=on_step)
    assert all(torch.equal(value, audited[0][name]) for name, value in plain[0].items())
    assert plain[1:] == audited[1:]
    assert len(plain[1]) == 4
    assert len(plain[2]) == 1
    assert plain[3] < 0.1  # the scheduler did something
    assert len(ra.open_store(tmp_path / "s.zarr")["models/seed0"].step) == (17 if "at_start" in trigger else 1)


def test_ones_own_log_and_loggers_are_put_back_after_a_failure():
    module, own = Logs(), []
    module.log = lambda *arguments, **_: own.append(arguments)
    module.head.register_forward_pre_hook(lambda *_: 1 / 0)
    extractor = ra.ActivationExtractor(["head"])
    with pytest.raises(ZeroDivisionError):
        extractor.extract(module, PROBE)
    assert own == []
    module.log("x", 1.0)
    assert own == [("x", 1.0)]
    assert "log_dict" not in vars(module)


def test_in_fabric_too(tmp_path):
    logger = CSVLogger(tmp_path)
    told = []
    logger.log_metrics = lambda metrics, step=None: told.append(metrics)
    fabric = Fabric(accelerator="cpu", loggers=logger)
    module = Logs()
    module.fabric = fabric
    fabric.setup(module)
    with ra.Recorder(
        tmp_path / "s.zarr", "seed0", PROBE, ["body[*]"], on_store_error="raise", durable=False
    ) as recorder:
        assert recorder.audit(module, 0)
    assert told == []
    assert fabric.loggers == [logger]


def test_the_other_package_of_lightning_too(tmp_path):
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")

    class Other(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.head, self.values = nn.Linear(4, 1), []

        def forward(self, x):
            self.log("size", x.abs().mean())
            return self.head(x)

        def training_step(self, batch, batch_idx):
            return self(batch["x"]).mean()

        def on_train_batch_end(self, *_):
            recorder.audit(self, self.trainer.global_step)

        def on_train_epoch_end(self):
            self.values.append(float(self.trainer.callback_metrics["size"]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Other()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with ra.Recorder(tmp_path / "s.zarr", "seed0", PROBE, ["head"], on_store_error="raise", durable=False) as recorder:
        other.Trainer(max_epochs=1, accelerator="cpu", logger=False, **quiet).fit(module, batches())
    last = torch.stack([row["x"] for row in batches().dataset[12:]])
    np.testing.assert_allclose(module.values, float(last.abs().mean()), rtol=1e-6)
    assert recorder.steps == [1, 2, 3, 4]
