import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.checkpoint import CheckpointError, open_checkpoints
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment


def _run(config):
    return Experiment.create(config, num_identities=4, num_images=64)


def test_the_newest_two_and_the_best_are_kept(tiny_config, tmp_path):
    experiment, mesh = _run(tiny_config()), make_mesh()
    state = experiment.init_state(mesh)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest is None and checkpoints.best is None
        for step, score in ((0, 0.1), (10, None), (20, 0.5), (30, 0.3), (40, None), (50, None)):
            checkpoints.save(state.replace(step=jnp.asarray(step)), score)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [20, 40, 50]
    with open_checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best, checkpoints.newest) == (20, 50)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_state_comes_back_bit_for_bit_onto_any_mesh(tiny_config, tmp_path, devices):
    experiment = _run(tiny_config())
    state = experiment.init_state(make_mesh(jax.devices()[:2]))
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 0.5)
    shardings = experiment.state_shardings(make_mesh(jax.devices()[:devices]))
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state(), shardings, 0)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    leaf = jax.tree.leaves(restored.params)[0]
    assert len(leaf.sharding.device_set) == devices


def test_another_architecture_is_refused_in_one_line(tiny_config, tmp_path):
    experiment, mesh = _run(tiny_config()), make_mesh()
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(experiment.init_state(mesh), None)
    others = {
        "foreground_classifier/kernel: the checkpoint has (192, 128), the configuration none": _run(
            tiny_config(**{"model.pose_branches": False})
        ),
        "the checkpoint has (192, 128), the configuration (192, 256)": Experiment.create(
            tiny_config(), num_identities=129, num_images=64
        ),
    }
    with open_checkpoints(tmp_path) as checkpoints:
        for message, other in others.items():
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore(other.abstract_state(), other.state_shardings(mesh), 0)
            assert message in str(error.value) and "\n" not in str(error.value)
