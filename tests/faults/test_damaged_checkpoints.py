"""Files of a checkpoint are deleted, cut or changed: a run never goes on from other numbers."""

import json
import shutil

import jax
import numpy as np
import pytest

from pgfl_jax import checksums
from pgfl_jax.checkpoint import CheckpointError, open_checkpoints
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from tests.faults.conftest import NETWORK, STEPS
from tests.runs import (
    GOLDEN_RUN,
    assert_same_end,
    by_name,
    delete,
    finish,
    flip,
    halve,
    launch,
    leaves,
    one_block,
    steps,
)

pytestmark = pytest.mark.faults


HARMS = [delete, halve, flip]


def _copy(workdir, target):
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(workdir, target)


@pytest.fixture
def target(tiny_config):
    """What to restore, and where to."""
    with one_block():
        config = tiny_config(**NETWORK)
        experiment = Experiment.create(config, num_identities=16, num_images=128)
        return experiment.abstract_state(), experiment.state_shardings(make_mesh(jax.devices()[:1]))


def _restore(workdir, target):
    with open_checkpoints(workdir) as checkpoints:
        step = checkpoints.newest
        return step, checkpoints.restore(*target, step), checkpoints.best


# Orbax's notes of when and how it saved; restoring needs neither.
NOTES = {"_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize("harm", HARMS)
def test_no_harm_to_any_file_goes_unseen(undisturbed, tmp_path, harm):
    newest = _copy(undisturbed / "checkpoints" / str(steps(undisturbed)[-1]), tmp_path / "copy")
    files = {path for path in newest.rglob("*") if path.is_file()}
    unseen = set()
    for file in files:
        content = file.read_bytes()
        harm(file)
        damage, name = checksums.find_damage(newest), file.relative_to(newest).as_posix()
        if damage is None:
            unseen.add(name)
        else:
            assert damage.startswith(f"{name} ") or name == checksums.DIGESTS
        file.write_bytes(content)
    assert checksums.find_damage(newest) is None
    assert unseen == NOTES and len(files) > 12


@pytest.mark.parametrize("harm", HARMS)
def test_the_checkpoint_before_a_damaged_one_is_restored(
    undisturbed, target, tmp_path, harm, capsys
):
    workdir = _copy(undisturbed, tmp_path / "run")
    before, newest = steps(undisturbed)[-2:]
    folders = {step: workdir / "checkpoints" / str(step) for step in (before, newest)}
    harm(max(folders[newest].rglob("d/*"), key=lambda path: path.stat().st_size))
    for name in NOTES:
        harm(folders[before] / name)
    step, state, best = _restore(workdir, target)
    assert step == before and best is not None
    right, restored = leaves(undisturbed, before), by_name(jax.device_get(state))
    assert restored.keys() == right.keys()
    for name, leaf in restored.items():
        np.testing.assert_array_equal(leaf, right[name], err_msg=name)
    warning = capsys.readouterr().err
    aside = workdir / "damaged_checkpoints" / str(newest)
    assert aside.is_dir() and warning.count("\n") == 1
    assert f"checkpoint {newest} is damaged (state/" in warning and str(aside) in warning


def test_training_falls_back_and_saves_the_same_step_again(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    for _ in range(2):  # the second time there is something aside already
        newest = workdir / "checkpoints" / str(STEPS)
        halve(max(newest.rglob("d/*"), key=lambda path: path.stat().st_size))
        code, out, err = finish(drive(workdir))
        assert code == 0 and err.startswith(f"warning: checkpoint {STEPS} is damaged (state/")
        assert err.count("\n") == 1 and f"resuming from step 20 of {STEPS}" in out
        assert_same_end(workdir, undisturbed, STEPS)
    aside = {path.name for path in (workdir / "damaged_checkpoints").iterdir()}
    assert aside == {f"{STEPS}", f"{STEPS}.2"}


def test_when_all_are_damaged_nothing_is_moved(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    there = steps(workdir)
    for step in there:
        delete(workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt")
    code, _, err = finish(drive(workdir))
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"error: {workdir}/checkpoints: no checkpoint is intact: {there[0]} is d")
    assert "state/manifest.ocdbt is missing" in err and "another --workdir" in err
    assert steps(workdir) == there and not (workdir / "damaged_checkpoints").exists()


@pytest.mark.parametrize("harm", HARMS)
def test_reading_alone_reports_damage_and_moves_nothing(undisturbed, target, tmp_path, harm):
    workdir = _copy(undisturbed, tmp_path / "run")
    first, newest = steps(workdir)[0], steps(workdir)[-1]
    harm(workdir / "checkpoints" / str(newest) / "metrics" / "metrics")
    there = sorted(workdir.rglob("*"))
    try:
        with open_checkpoints(workdir, read_only=True) as checkpoints:
            with pytest.raises(CheckpointError, match=r"the best .*: 40 is damaged \(metrics/met"):
                _ = checkpoints.best
            with pytest.raises(CheckpointError, match="step 40 cannot be restored: 40 is damaged"):
                checkpoints.restore(*target, newest)
            assert int(checkpoints.restore(*target, first).step) == first
    except CheckpointError as error:  # a score that is not JSON
        assert harm is not delete and "cannot be opened: 40 is damaged (metrics" in str(error)
    assert sorted(workdir.rglob("*")) == there


def test_through_the_command_line(tiny_data_dir, tmp_path):
    workdir = _copy(GOLDEN_RUN, tmp_path / "run")
    delete(workdir / "checkpoints" / "30" / "state" / "manifest.ocdbt")
    command = "main.py", "--mode=evaluate", f"--workdir={workdir}"
    options = f"--config.data.data_dir={tiny_data_dir}", "--config.eval.checkpoint=best"
    code, _, err = finish(launch(*command, *options))
    assert code == 1
    warning, error = err.splitlines()
    assert warning.startswith(f"warning: {workdir}: not checked whether the run was trained on")
    assert error.startswith(
        f"error: {workdir}/checkpoints: the best step cannot be determined: 30 "
    )


def test_a_run_that_lost_its_checkpoints_loses_nothing_else(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    (workdir / "checkpoints").rename(tmp_path / "checkpoints")
    before = {path: path.read_bytes() for path in workdir.rglob("*.json*")}
    code, _, err = finish(drive(workdir))
    assert code == 1 and err == (
        f"error: {workdir}: holds a run of {STEPS} steps or more without its checkpoints; bring "
        f"{workdir}/checkpoints back, or use another --workdir (to start over in this one, empty "
        "it)\n"
    )
    assert before == {path: path.read_bytes() for path in workdir.rglob("*.json*")}
    shutil.rmtree(workdir / "checkpoints")  # the driver has made an empty one
    (tmp_path / "checkpoints").rename(workdir / "checkpoints")
    assert finish(drive(workdir))[0] == 0


def test_a_run_without_its_checkpoints_says_that_it_starts_over(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    # As after a kill during the first save: evaluated at step 0, and a few steps logged.
    for path in (workdir / "results").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 0}))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    early = [line for line in lines if json.loads(line)["step"] <= 20]  # the next save
    (workdir / "metrics.jsonl").write_text("".join(early))
    code, out, err = finish(drive(workdir))
    assert (code, err) == (
        0,
        f"warning: {workdir} holds a run, but no checkpoint; it starts over\n",
    )
    assert "resuming" not in out
    assert_same_end(workdir, undisturbed, STEPS)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == sorted(
        json.loads(line)["step"] for line in lines
    )
