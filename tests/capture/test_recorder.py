"""The recorder in one's own loop: opening, failing, and what is noted of it."""

import pickle

import pytest
import torch
from torch import nn

import repaudit as ra
from repaudit.errors import RepauditError

PROBE = ra.ProbeSet.from_tensors({"x": torch.eye(3)})


def recorder(store, specs=("[0]",), **options):
    return ra.Recorder(store, "seed0", PROBE, list(specs), durable=False, **options)


def test_a_failed_opening_is_tried_again(tmp_path):
    place, model = tmp_path / "s.zarr", nn.Sequential(nn.Linear(3, 2))
    place.write_text("in the way")
    with recorder(place) as audits:
        for _ in range(2):
            with pytest.raises((RepauditError, OSError)):
                audits.audit(model, 1)
        place.unlink()
        assert audits.audit(model, 1)
    assert audits.steps == [1]


def test_paths_that_do_not_resolve_are_told_at_every_audit(tmp_path):
    audits = recorder(tmp_path / "s.zarr", ["nope"])
    for _ in range(2):
        with pytest.raises(RepauditError, match="nope"):
            audits.audit(nn.Sequential(nn.Linear(3, 2)), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on_store_eror": "raise"}, TypeError, "'on_store_eror': is 'on_store_error' meant"),
        ({"gauge": "gaussian"}, TypeError, "gauge: expected a DiffusionGauge"),
        ({"model_name": ""}, ValueError, "model_name"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        ra.Recorder(**{"store": tmp_path, "model_name": "m", "probe_set": PROBE, "layer_specs": ["[0]"], **options})


def test_a_callback_travels_to_another_process(tmp_path):
    callback = ra.RepresentationAuditCallback(tmp_path / "s.zarr", "seed0", PROBE, ["[0]"])
    model = nn.Sequential(nn.Linear(3, 2))
    callback.recorder.rehearse(model)
    there = pickle.loads(pickle.dumps(callback))
    assert there.recorder.rehearse(model) == callback.recorder.rehearse(model)
