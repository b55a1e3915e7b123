"""What ``import repaudit as ra`` gives, in an interpreter that has imported nothing else."""

import subprocess
import sys

import pytest

import repaudit as ra


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", ["errors", "plots"])
def test_rooms_are_there_without_an_import_of_their_own(room):
    run = fresh(f"import repaudit as ra; print(ra.{room}.__name__)")
    assert run.stdout.strip() == f"repaudit.{room}", run.stderr


def test_catching_an_error_of_ours_hides_no_other():
    run = fresh(
        "import repaudit as ra\ntry:\n    raise KeyError('the real one')\nexcept ra.errors.StoreError:\n    pass"
    )
    assert run.stderr.strip().splitlines()[-1] == "KeyError: 'the real one'"
    assert "AttributeError" not in run.stderr


def test_trees_opened_by_xarray_have_the_accessor_and_need_no_torch(planted_store):
    url = planted_store(layers=("only",))
    run = fresh(
        "import sys; import repaudit; import xarray as xr\n"
        f"tree = xr.open_datatree({str(url)!r}, engine='zarr', consolidated=False, chunks={{}})\n"
        "print(tree.repaudit.models, tree.repaudit.steps('seed0')[:1])\n"
        "print(*{'torch', 'transformers', 'lightning', 'matplotlib'} & sys.modules.keys())"
    )
    assert run.stdout.split("\n")[:2] == ["['seed0', 'seed1', 'seed2'] [0]", ""], run.stderr


def test_a_tree_that_was_open_before_the_import_has_the_accessor_too(planted_store):
    url = planted_store(layers=("only",))
    run = fresh(
        "import xarray as xr\n"
        f"tree = xr.open_datatree({str(url)!r}, engine='zarr', consolidated=False, chunks={{}})\n"
        "assert type(tree.repaudit) is dict\n"
        "import repaudit\n"
        "print(type(tree.repaudit).__name__, tree.repaudit.models)"
    )
    assert run.stdout.strip() == "TreeAccessor ['seed0', 'seed1', 'seed2']", run.stderr


def test_every_name_is_found_where_the_table_says():
    for name in ra.__all__:
        assert getattr(ra, name) is not None
    assert {
        "Spread",
        "Similarity",
        "AuditWarning",
        "StoreWarning",
        "record_pretrained",
        "similarity_map",
        "copy_store",
    } <= {*dir(ra)}


def test_keywords_of_the_three_entry_points_are_one_list():
    from repaudit.capture.record.options import DEFAULTS, AuditOptions

    assert set(DEFAULTS) == set(AuditOptions.__annotations__)
    for entry in (ra.Recorder, ra.RepresentationAuditCallback, ra.AuditTrainerCallback):
        assert "Unpack[AuditOptions]" in str(entry.__init__.__annotations__["options"])
