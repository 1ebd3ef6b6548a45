"""Files of a checkpoint that are deleted, cut or changed: never silently other numbers."""

import json
import shutil

import jax
import numpy as np
import pytest

from pgfl_jax.checkpoint import CheckpointError, open_checkpoints
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from tests.faults.conftest import STEPS
from tests.runs import assert_same_end, finish, leaves, start, steps

pytestmark = pytest.mark.faults


def _delete(path):
    path.unlink()


def _halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


HARMS = [_delete, _halve, _flip]


def _copy(workdir, target):
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(workdir, target)


def _target(experiment):
    """What to restore, and where to."""
    mesh = make_mesh(jax.devices()[:1])
    return experiment.abstract_state(), experiment.state_shardings(mesh)


def _restore(workdir, experiment):
    target = _target(experiment)
    with open_checkpoints(workdir) as checkpoints:
        step = checkpoints.newest
        return step, checkpoints.restore(*target, step), checkpoints.best


@pytest.mark.parametrize("harm", HARMS)
def test_no_harm_to_any_file_goes_unseen(undisturbed, tiny_config, tmp_path, harm, capsys):
    experiment = Experiment.create(tiny_config(), num_identities=16, num_images=128)
    right = {step: leaves(undisturbed, step) for step in steps(undisturbed)}
    before, newest = list(right)[-2:]
    folder = undisturbed / "checkpoints" / str(newest)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    fell_back = set()
    for file in files:
        workdir = _copy(undisturbed, tmp_path / "run")
        harm(workdir / "checkpoints" / str(newest) / file)
        step, state, best = _restore(workdir, experiment)
        for name, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
            expected = right[step][jax.tree_util.keystr(name)]
            np.testing.assert_array_equal(leaf, expected, err_msg=f"{file}: {name}")
        warning = capsys.readouterr().err
        aside = workdir / "damaged_checkpoints" / str(newest)
        if step == before:
            fell_back.add(file)
            assert aside.is_dir() and warning.count("\n") == 1
            assert f"checkpoint {newest} is damaged (" in warning and str(aside) in warning
        else:
            assert step == newest and best is not None and not aside.exists() and not warning
    # All but Orbax's notes of when and how it saved, which nothing is restored from.
    spared = {str(file) for file in set(files) - fell_back}
    assert spared == {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert len(files) > 12


def test_training_falls_back_and_saves_the_same_step_again(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    for _ in range(2):  # the second time there is something aside already
        newest = workdir / "checkpoints" / str(STEPS)
        _halve(max(newest.rglob("d/*"), key=lambda path: path.stat().st_size))
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
        _delete(workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt")
    code, _, err = finish(drive(workdir))
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"error: {workdir}/checkpoints: no checkpoint is sound: {there[0]} is da")
    assert "state/manifest.ocdbt is missing" in err and "another --workdir" in err
    assert steps(workdir) == there and not (workdir / "damaged_checkpoints").exists()


@pytest.mark.parametrize("harm", HARMS)
def test_reading_alone_tells_and_moves_nothing(undisturbed, tiny_config, tmp_path, harm):
    workdir = _copy(undisturbed, tmp_path / "run")
    experiment = Experiment.create(tiny_config(), num_identities=16, num_images=128)
    first, newest = steps(workdir)[0], steps(workdir)[-1]
    harm(workdir / "checkpoints" / str(newest) / "metrics" / "metrics")
    there = sorted(workdir.rglob("*"))
    try:
        with open_checkpoints(workdir, read_only=True) as checkpoints:
            with pytest.raises(CheckpointError, match=r"the best .*: 40 is damaged \(metrics/met"):
                _ = checkpoints.best
            target = _target(experiment)
            with pytest.raises(CheckpointError, match="step 40 cannot be restored: 40 is damaged"):
                checkpoints.restore(*target, newest)
            assert int(checkpoints.restore(*target, first).step) == first
    except CheckpointError as error:  # a score that is no JSON
        assert harm is not _delete and "cannot be opened: 40 is damaged (metrics" in str(error)
    assert sorted(workdir.rglob("*")) == there


def test_through_the_command_line(tiny_data_dir, compiled_once, tmp_path):
    def run(*options):
        short = "--config.train.epochs=2.5", "--config.train.eval_every=10"  # 20 steps
        return finish(start(tiny_data_dir, tmp_path, *short, *options, env=compiled_once))

    code, _, err = run()
    assert code == 0, err
    right = leaves(tmp_path, 20)
    _delete(tmp_path / "checkpoints" / "20" / "state" / "manifest.ocdbt")
    code, _, err = run("--mode=evaluate", "--config.eval.checkpoint=best")
    assert code == 1
    assert err.startswith(f"error: {tmp_path}/checkpoints: which step is the best cannot be told: ")
    assert err.count("\n") == 1 and "Traceback" not in err
    code, out, err = run()
    assert code == 0 and "resuming from step 10 of 20" in out
    assert err.count("warning: checkpoint 20 is damaged (state/manifest.ocdbt is missing)") == 1
    for name, leaf in leaves(tmp_path, 20).items():
        np.testing.assert_array_equal(leaf, right[name], err_msg=name)


def test_a_run_without_its_checkpoints_says_that_it_begins_anew(drive, undisturbed, tmp_path):
    workdir = _copy(undisturbed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
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
