"""What ``import repaudit as ra`` gives, in an interpreter that has imported nothing else."""

import re
import subprocess
import sys

import pytest

import repaudit as ra
from repaudit.extras import EXTRAS


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


@pytest.mark.parametrize("look", ["importlib.util.find_spec('xarray')", "import transformers"])
def test_libraries_that_look_for_xarray_without_importing_it_do_not_take_the_accessor_away(look):
    run = fresh(
        f"import sys; import importlib.util; import repaudit\n{look}\n{look}\n"
        "import xarray as xr\n"
        "print(type(xr.DataTree().repaudit).__name__, type(xr.DataArray([1.0]).repaudit).__name__)\n"
        "print(*[finder for finder in sys.meta_path if 'repaudit' in type(finder).__module__])"
    )
    assert run.stdout.split("\n")[:2] == ["TreeAccessor ArrayAccessor", ""], run.stderr


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


HEAVY = ("torch", "transformers", "lightning", "accelerate", "plotly", "phate", "matplotlib", "sklearn", "ot")


def without(libraries, code):
    """Run code where some libraries cannot be imported, as if they were not installed."""
    missing = f"import sys\nsys.modules.update(dict.fromkeys({libraries}))\n"
    return fresh(missing + code)


def test_a_store_is_read_without_what_trains_or_draws(planted_store, tmp_path):
    url = planted_store(layers=("only",))
    run = without(
        HEAVY,
        "import repaudit as ra\n"
        "from typer.testing import CliRunner\n"
        "from repaudit.cli import app\n"
        f"tree = ra.open_store({str(url)!r})\n"
        "print(tree['models/seed0']['only'].isel(step=0).values.shape)\n"
        f"copied = ['copy', {str(url)!r}, {str(tmp_path / 'copy.zarr')!r}]\n"
        f"exported = ['export', {str(url)!r}, 'seed0', 'only', {str(tmp_path / 'a.npy')!r}]\n"
        f"for words in (['info', {str(url)!r}], ['verify', {str(url)!r}, '--data'], ['repair', {str(url)!r}],\n"
        "              copied, exported):\n"
        "    done = CliRunner().invoke(app, words)\n"
        "    print(words[0], done.exit_code, done.exception)\n",
    )
    expected = ["(48, 12)", *(f"{name} 0 None" for name in ("info", "verify", "repair", "copy", "export"))]
    assert run.stdout.splitlines() == expected, run.stderr


def test_analysing_and_recording_a_loop_of_ones_own_need_no_extra(tmp_path):
    run = without(
        tuple(EXTRAS),
        "import numpy as np, torch, repaudit as ra\n"
        "probe_set = ra.ProbeSet.from_tensors({'input': torch.randn(16, 4)})\n"
        "for seed in (0, 1):\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())\n"
        f"    url = {str(tmp_path / 's.zarr')!r}\n"
        "    with ra.Recorder(url, f'seed{seed}', probe_set, ['[*]']) as recorder:\n"
        "        recorder.audit(model, 0)\n"
        "results = ra.analyze(url, frames=0, units=0, figures='none')\n"
        "print(len(results.repaudit.models), ra.JointObjective.__name__, len(ra.verify(url)))\n",
    )
    assert run.stdout.strip() == "2 JointObjective 0", run.stderr


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("lightning", "ra.HFTrainerModule", "repaudit.HFTrainerModule needs lightning, .* 'repaudit[train]'"),
        ("lightning", "ra.RepresentationAuditCallback", "needs lightning, .* 'repaudit[train]'"),
        ("transformers", "ra.AuditTrainerCallback", "needs transformers, .* 'repaudit[train]'"),
        ("transformers", "ra.record_pretrained(['x'], 'x.txt', ['x'], 's.zarr')", "transformers, .* 'repaudit[train]'"),
        ("s3fs", "ra.open_store('s3://bucket/store.zarr')", "s3://bucket/store.zarr needs s3fs, .* 'repaudit[s3]'"),
    ],
)
def test_what_is_missing_says_which_extra_brings_it(missing, code, said):
    run = without((missing,), f"import repaudit as ra\n{code}\n")
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("repaudit.errors.MissingPartError: "), run.stderr
    assert re.search(said.replace("[", r"\["), last), last


def test_a_command_that_lacks_a_part_says_so_in_one_line(tmp_path):
    words = ["record", "m", "--probe", "p.txt", "--layers", "x", "--store", str(tmp_path / "s.zarr")]
    run = without(("transformers",), f"from repaudit.cli import app\napp({words})")
    assert run.returncode == 2
    said = [line for line in run.stderr.splitlines() if "] reading " not in line]
    assert len(said) == 1, run.stderr
    assert said[0].endswith("is not installed: pip install 'repaudit[train]'")
