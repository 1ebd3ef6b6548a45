"""Which checkpoints are kept, and that they come back as they were saved."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax import checkpoint
from pgfl_jax.checkpoint import (
    CheckpointError,
    checkpoint_steps,
    open_checkpoints,
    read_main_branch,
)
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import main_branch

PENDING = [{"total": 0.1, "id_main": 2.5}, {"total": 0.3, "id_main": 1.5}]


def _run(config):
    return Experiment.create(config, num_identities=4, num_images=64)


@pytest.fixture(scope="module")
def state(tiny_config):
    """A fresh state on two devices."""
    return _run(tiny_config()).init_state(make_mesh(jax.devices()[:2]))


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    """A folder with a checkpoint of the state; only read."""
    folder = tmp_path_factory.mktemp("run")
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(state, 0.5, PENDING)
    return folder


def test_the_newest_two_and_the_best_are_kept(state, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest is None and checkpoints.best is None
        for step, score in ((0, 0.1), (10, None), (20, 0.5), (30, 0.3), (40, None), (50, None)):
            checkpoints.save(state.replace(step=jnp.asarray(step)), score)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [20, 40, 50]
    with open_checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.newest) == (20, 50)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_state_comes_back_bit_for_bit_onto_any_mesh(tiny_config, state, workdir, devices):
    experiment = _run(tiny_config())
    shardings = experiment.state_shardings(make_mesh(jax.devices()[:devices]))
    with open_checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state(), shardings, 0)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    leaf = jax.tree.leaves(restored.params)[0]
    assert len(leaf.sharding.device_set) == devices


def test_pending_metrics_come_back(tiny_config, workdir):
    assert (workdir / "checkpoints" / "0" / "unlogged").is_dir()  # the name in older runs, too
    with open_checkpoints(workdir) as checkpoints:
        experiment = _run(tiny_config())
        shardings = experiment.state_shardings(make_mesh())
        checkpoints.restore(experiment.abstract_state(), shardings, 0)
        assert checkpoints.pending_metrics(0) == PENDING


def test_another_architecture_is_refused_in_one_line(tiny_config, workdir):
    others = {
        "foreground_classifier/kernel: the checkpoint has (192, 128), the configuration none": _run(
            tiny_config(**{"model.pose_branches": False})
        ),
        "the checkpoint has (192, 128), the configuration (192, 256)": Experiment.create(
            tiny_config(), num_identities=129, num_images=64
        ),
    }
    with open_checkpoints(workdir) as checkpoints:
        for message, other in others.items():
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore(other.abstract_state(), other.state_shardings(make_mesh()), 0)
            assert message in str(error.value) and "\n" not in str(error.value)


class _Stop(Exception):
    pass


@pytest.mark.parametrize(("processes", "closed"), [(1, 1), (2, 0)])
def test_an_error_waits_for_the_save_of_a_single_process_alone(
    monkeypatch, tmp_path, processes, closed
):
    calls = []

    class Checkpoints:
        def __init__(self, workdir, read_only):
            pass

        def close(self):
            calls.append("close")

    monkeypatch.setattr(checkpoint, "Checkpoints", Checkpoints)
    monkeypatch.setattr(checkpoint, "locked", lambda workdir: contextlib.nullcontext())
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(_Stop), open_checkpoints(tmp_path):
        raise _Stop
    assert len(calls) == closed


@pytest.mark.parametrize("name", ["run[1]", "[2024]reid/run", "a*b", "what?", r"a\b"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    workdir = tmp_path / name
    workdir.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"^--workdir=/.*: checkpoints cannot be written bel"):
        open_checkpoints(workdir).__enter__()
    assert not list(workdir.iterdir())


def test_what_cannot_be_read_again_is_noticed_at_the_first_save(state, tmp_path, monkeypatch):
    """As below a folder in brackets, whose shards Orbax never merges."""
    workdir = tmp_path / "run[1]"
    workdir.mkdir()
    monkeypatch.setattr(checkpoint, "check_path", lambda workdir: None)
    with (
        pytest.raises(CheckpointError, match=r"checkpoints/0: was just written, but cannot be rea"),
        open_checkpoints(workdir) as checkpoints,
    ):
        checkpoints.save(state, None)
        checkpoints.wait()


@pytest.mark.parametrize("name", ["0003", "٣", "31"])
def test_what_has_nearly_the_name_of_a_checkpoint_is_named(workdir, tmp_path, name):
    run = shutil.copytree(workdir, tmp_path / "run")
    path = run / "checkpoints" / name
    path.touch() if name == "31" else path.mkdir()
    with pytest.raises(CheckpointError, match=rf"checkpoints/{name}: not a checkpoint, which is a"):
        checkpoint_steps(run)


def test_a_renamed_checkpoint_is_refused(tiny_config, workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints" / "0", tmp_path / "checkpoints" / "400")
    experiment = _run(tiny_config())
    target = experiment.abstract_state(), experiment.state_shardings(make_mesh())
    with (
        open_checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=r"/400: holds step 0; give the folder its name back$"),
    ):
        checkpoints.restore(*target, 400)
    abstract = main_branch({"params": target[0].params, "batch_stats": target[0].batch_stats})
    with pytest.raises(CheckpointError, match=r"/400: holds step 0"):
        read_main_branch(tmp_path, abstract, checkpoint="newest", parameters="trained")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_restored(tiny_config, state, tmp_path, value):
    kernel = state.params["main_classifier"]["kernel"]
    params = state.params | {"main_classifier": {"kernel": kernel.at[3, 5].set(value)}}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(params=params), None)
    experiment = _run(tiny_config())
    target = experiment.abstract_state(), experiment.state_shardings(make_mesh(model=4))
    with (
        open_checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(CheckpointError) as error,
    ):
        checkpoints.restore(*target, 0)
    name = "params/main_classifier/kernel"
    assert str(error.value).startswith(f"{tmp_path}/checkpoints/0: {name} has values that are not ")
