"""The same training on any mesh, and classifiers that no device ever holds whole."""

import dataclasses
import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import synthetic_tiny
from input_pipeline.from_config import training_data
from pgfl_jax.config import parse_config
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.experiment import Experiment
from pgfl_jax.losses import mine_hardest
from pgfl_jax.models.branches import pose_mask
from pgfl_jax.network_input import network_input
from pgfl_jax.train_step import make_train_step, random_keys
from tests.runs import code_of_users, one_block

IDENTITIES, COLUMNS = 1000, 1024
STEPS = 4
MESHES = {"1x1": (1, 1), "8x1": (8, 1), "2x4": (2, 4)}


class Training(NamedTuple):
    """A few steps: losses by step, parameters, mined triplets, start, and the compiled program."""

    losses: tuple
    params: Any
    mined: tuple
    start: Any
    program: str


def _batches(config, dtype):
    """Real batches, some of whose images lack a pose."""
    for batch in itertools.islice(training_data(config).batches(0), STEPS):
        kept = np.arange(16) >= 3
        yield {
            "images": np.asarray(network_input(batch, config.data), dtype),
            "labels": batch["labels"],
            "part_maps": (batch["part_maps"] * kept[:, None, None, None]).astype(dtype),
            "visibility": (batch["visibility"] * kept[:, None]).astype(dtype),
        }


def _train(config, mesh, start, dtype):
    experiment = Experiment.create(config, num_identities=IDENTITIES, num_images=64)
    state = jax.device_put(start, experiment.state_shardings(mesh))
    train_step = make_train_step(experiment, mesh)

    def step(state, batch):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        poses = batch["part_maps"], batch["visibility"]
        outputs, _ = experiment.model.apply(
            variables,
            batch["images"],
            *poses,
            train=True,
            mutable=["batch_stats"],
            rngs=random_keys(experiment, state.step),
        )
        masks = None, pose_mask(poses[1]), pose_mask(poses[1])  # as the losses mine
        branches = outputs.main, outputs.foreground, outputs.parts
        pairs = [
            mine_hardest(branch.embedding, branch.embedding, batch["labels"], mask)
            for branch, mask in zip(branches, masks, strict=True)
        ]
        # Where there is no valid triplet the indices mean nothing.
        mined = [[jnp.where(pair.valid, index, -1) for index in pair[:2]] for pair in pairs]
        return train_step(state, batch), mined

    compiled, history = None, []
    for batch in _batches(config, dtype):
        batch = shard_batch(batch, mesh)
        compiled = compiled or jax.jit(step).lower(state, batch).compile()
        (state, metrics), mined = compiled(state, batch)
        history.append(jax.device_get((metrics, mined)))
    metrics, mined = zip(*history, strict=True)
    return Training(metrics, jax.device_get(state.params), mined, start, compiled.as_text())


@pytest.fixture(scope="module", autouse=True)
def small():
    """Five trainings are compiled; what is split among the devices is that of any network."""
    with one_block():
        yield


@pytest.fixture(scope="module")
def config(tiny_data_dir):
    # Plain gradient steps: Adam's first ones have the size of the rate whatever the gradient, and
    # so turn the rounding error of a gradient near 0 into a step the other way.
    values = synthetic_tiny.get_config()
    values.loss.logit_kd = 1.0
    values.optim.name, values.optim.learning_rate, values.optim.warmup_epochs = "sgd", 1e-3, 0.0
    values.data.data_dir = str(tiny_data_dir)
    return parse_config(values)


@pytest.fixture(scope="module")
def meshes():
    devices = jax.devices()
    return {
        name: make_mesh(devices[: data * model], model=model)
        for name, (data, model) in MESHES.items()
    }


@pytest.fixture(scope="module")
def starts(config, meshes):
    """The initial state on some of the meshes."""
    experiment = Experiment.create(config, num_identities=IDENTITIES, num_images=64)
    with code_of_users():
        return {
            name: jax.device_get(experiment.init_state(meshes[name]))
            for name in ("1x1", "8x1", "2x4")
        }


@pytest.fixture(scope="module")
def trainings(config, meshes, starts):
    """Every mesh in float64, from the float32 start of one device; two of them in float32 too."""
    start = starts["1x1"]
    results = {
        ("float32", name): _train(config, meshes[name], start, np.float32)
        for name in ("1x1", "2x4")
    }
    with jax.enable_x64(True):
        for name, mesh in meshes.items():
            results["float64", name] = _train(config, mesh, _wide(start), np.float64)
    return results


def _wide(state):
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)


def _flat(params):
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)])


def _distances(training, other):
    """Largest relative difference of a loss, and the parameters' distance over what they moved."""
    losses = [
        np.array([[float(value) for value in step.values()] for step in each.losses])
        for each in (training, other)
    ]
    params = [_flat(each.params) for each in (training, other)]
    moved = np.linalg.norm(params[1] - _flat(other.start.params))
    assert moved > 0.05
    return (
        np.max(np.abs(losses[0] - losses[1]) / np.maximum(np.abs(losses[1]), 1e-2)),
        np.linalg.norm(params[0] - params[1]) / moved,
    )


@pytest.mark.parametrize("name", [name for name in MESHES if name != "1x1"])
def test_the_steps_are_the_same_on_any_mesh(trainings, name):
    """In float64, where rounding, 1e-16, stays small.

    The steps multiply a difference, by 10,000 or so if it carries a cell over the kink of a ReLU.
    So float64 cannot promise less than 1e-11.
    """
    one, training = trainings["float64", "1x1"], trainings["float64", name]
    jax.tree.map(np.testing.assert_array_equal, training.mined, one.mined)
    loss, params = _distances(training, one)
    assert loss < 1e-11 and params < 1e-11


def test_the_steps_of_a_transformer_are_the_same_on_any_mesh(config, meshes):
    """And so is what drop-path drops."""
    network = dataclasses.replace(config.model, backbone="vit_tiny", drop_path=0.5)
    config = dataclasses.replace(config, model=network)
    experiment = Experiment.create(config, num_identities=IDENTITIES, num_images=64)
    start = jax.device_get(experiment.init_state(meshes["1x1"]))
    with jax.enable_x64(True):
        one, training = (
            _train(config, meshes[name], _wide(start), np.float64) for name in ("1x1", "2x4")
        )
    jax.tree.map(np.testing.assert_array_equal, training.mined, one.mined)
    loss, params = _distances(training, one)
    assert loss < 1e-11 and params < 1e-11


def test_the_steps_in_float32_are_the_same_to_rounding(trainings):
    """A relative rounding error of 6e-8 times up to 10,000 (see above): 1e-3 with some room."""
    one, training = trainings["float32", "1x1"], trainings["float32", "2x4"]
    jax.tree.map(np.testing.assert_array_equal, training.mined, one.mined)
    loss, params = _distances(training, one)
    print("float32", loss, params)
    assert loss < 1e-3 and params < 1e-3


def test_every_mesh_starts_with_the_same_parameters(starts):
    for name in ("8x1", "2x4"):
        jax.tree.map(np.testing.assert_array_equal, starts[name], starts["1x1"])


def test_classifiers_and_logits_are_never_gathered(trainings):
    """No collective of the 2x4 mesh moves anything as wide as the identities."""
    pattern = r"= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    moved = re.findall(pattern, trainings["float32", "2x4"].program)
    assert len(moved) > 10
    assert not [shapes for shapes in moved if re.search(rf"\b{COLUMNS}\b", shapes)]
    # What each device computes with: its quarter of the columns, and nothing of their full width.
    assert re.search(rf"f32\[16,{COLUMNS // 4}\]", trainings["float32", "2x4"].program)
    assert not re.search(rf"f32\[\d+,{COLUMNS}\]", trainings["float32", "2x4"].program)
    assert re.search(
        rf"f32\[16,{COLUMNS}\]", trainings["float32", "1x1"].program
    )  # the pattern finds them


def test_moments_and_average_of_a_classifier_are_split_like_it(tiny_config):
    config = tiny_config(**{"optim.ema_decay": 0.9})
    state = Experiment.create(config, num_identities=200, num_images=64).init_state(
        make_mesh(model=4)
    )
    split = {
        jax.tree_util.keystr(path): leaf.addressable_shards[0].data.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.addressable_shards[0].data.shape != leaf.shape
    }
    # Three classifiers in parameters, both moments and the average; 200 identities in 256 columns.
    assert len(split) == 3 * 4
    assert all("_classifier" in name for name in split)
    assert set(split.values()) == {(16, 64)}
