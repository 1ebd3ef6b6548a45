"""What the large-batch recipe is made of: accumulation, bfloat16, rematerialisation, averages."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.experiment import Experiment
from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.train import train
from pgfl_jax.train_step import accumulated, loss_and_gradients, make_train_step
from tests.runs import NETWORKS

ONE = jax.devices()[:1]


def _batch(size=16, seed=0, map_shape=(8, 4)):
    rng = np.random.default_rng(seed)
    visibility = rng.uniform(0.2, 1, (size, 8)) * (rng.random((size, 8)) < 0.8)
    maps = rng.random((size, *map_shape, 8)) * visibility[:, None, None]
    return {
        "images": rng.normal(size=(size, 64, 32, 3)).astype(np.float32),
        "labels": np.repeat(np.arange(size // 4), 4).astype(np.int32),
        "part_maps": maps.astype(np.float32),
        "visibility": visibility.astype(np.float32),
    }


def _run(config):
    return Experiment.create(config, num_identities=6, num_images=64)


def _assert_close(actual, expected, rtol):
    """Relative to the largest entry of each array."""
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((actual, expected))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-2))


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("network", NETWORKS)
def test_accumulation_is_the_mean_over_parts_that_are_batches_of_their_own(tiny_config, network):
    config = tiny_config(**{"train.accumulation": 2}, **NETWORKS[network])
    experiment = _run(config)
    mesh = make_mesh(jax.devices()[:4])
    state, batch = experiment.init_state(make_mesh(ONE)), _batch(map_shape=config.map_shape)
    single = jax.jit(partial(loss_and_gradients, experiment))
    halves = [jax.tree.map(lambda rows, i=i: rows[8 * i : 8 * i + 8], batch) for i in (0, 1)]
    first, stats, terms_0 = single(state, halves[0], 0)
    second, stats, terms_1 = single(state.replace(batch_stats=stats), halves[1], 1)

    sharded = shard_batch(batch, mesh, 2)
    # Every device has rows of both parts.
    assert sharded["images"].shape == (2, 8, 64, 32, 3)
    assert sharded["images"].addressable_shards[0].data.shape == (2, 2, 64, 32, 3)
    on_mesh = experiment.init_state(mesh)
    gradients, new_stats, terms = jax.jit(lambda s, b: accumulated(experiment, s, b))(
        on_mesh, sharded
    )
    # As in test_train_step: sums in another order.
    _assert_close(gradients, jax.tree.map(lambda a, b: (a + b) / 2, first, second), 5e-5)
    _assert_close(new_stats, stats, 5e-5)
    _assert_close(terms, jax.tree.map(lambda a, b: (a + b) / 2, terms_0, terms_1), 5e-5)


def test_bfloat16_is_in_the_convolutions_and_products_alone(tiny_config):
    experiment = _run(tiny_config(**{"model.dtype": "bfloat16"}))
    exact = _run(tiny_config())
    state, batch = experiment.init_state(make_mesh(ONE)), _batch()
    results = jax.jit(lambda s, b: loss_and_gradients(experiment, s, b))(state, batch)
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state, results)):
        assert leaf.dtype in (jnp.float32, jnp.int32)

    outputs, _ = jax.eval_shape(
        lambda v, *x: experiment.model.apply(v, *x, train=True, mutable=["batch_stats"]),
        {"params": state.params, "batch_stats": state.batch_stats},
        *(batch[name] for name in ("images", "part_maps", "visibility")),
    )
    assert outputs.features.dtype == jnp.bfloat16
    for branch in (outputs.main, outputs.foreground, outputs.parts):
        assert {x.dtype for x in branch} == {jnp.dtype(jnp.float32)}

    text = str(jax.make_jaxpr(lambda s, b: loss_and_gradients(experiment, s, b))(state, batch))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) > 10
    assert all("bf16[" in line.split("=")[0] for line in convolutions)

    # bfloat16 has 8 bits, a rounding error of 0.4 %, which six normalised layers do not amplify
    # by more than some units: losses agree to 3 %, gradients point the same way.
    expected = jax.jit(lambda s, b: loss_and_gradients(exact, s, b))(state, batch)
    for name, value in expected[2].items():
        assert float(results[2][name]) == pytest.approx(float(value), rel=0.03), name
    a, b = (np.concatenate([g.ravel() for g in jax.tree.leaves(x[0])]) for x in (results, expected))
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.97
    assert not np.array_equal(a, b)


def test_rematerialisation_keeps_less_and_changes_no_number():
    images = jnp.asarray(_batch(8)["images"])
    kept, gradients = {}, {}
    for remat in ("none", "convolutions", "blocks"):
        net = BACKBONES["resnet8"].copy(remat=remat)
        variables = jax.jit(partial(net.init, train=True))(jax.random.key(0), images[:2])

        def loss(params, net=net, variables=variables):
            features, _ = net.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.square(features))

        # The leaves of the pulled-back function are what the backward pass keeps.
        residuals = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], variables["params"])
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        gradients[remat] = jax.jit(jax.grad(loss))(variables["params"])
    for remat in ("convolutions", "blocks"):
        _assert_close(gradients[remat], gradients["none"], 5e-5)
    # Cells x channels of a block's input and of its convolutions' results, shortcut included, for
    # 8 images of 64x32: the stem's and those of the three blocks.
    inputs = 8 * (16 * 8 * 48 + 16 * 8 * 48 + 8 * 4 * 96)
    convolutions = 8 * (2 * 16 * 8 * 48 + 3 * 8 * 4 * 96 + 3 * 8 * 4 * 192)
    assert kept["convolutions"] - kept["blocks"] == convolutions
    assert kept["none"] - kept["blocks"] > convolutions
    assert kept["blocks"] > inputs


@pytest.mark.usefixtures("small_network")
def test_the_step_keeps_the_average_and_the_evaluation_takes_it(tiny_config):
    experiment, mesh = _run(tiny_config(**{"optim.ema_decay": 0.5})), make_mesh(ONE)
    state = experiment.init_state(mesh)
    before = jax.device_get(state)
    state, _ = make_train_step(experiment, mesh)(state, shard_batch(_batch(), mesh))
    # Step 0: the decay is (1 + 0) / (10 + 0), below 0.5.
    for old, new, average in zip(
        *map(jax.tree.leaves, (before.params, state.params, state.average.params)), strict=True
    ):
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * np.asarray(new), atol=1e-6)
    averaged = state.averaged()
    assert averaged.params is state.average.params
    assert averaged.batch_stats is state.average.batch_stats
    with pytest.raises(ValueError, match=r"ema_decay is 0"):
        _run(tiny_config()).init_state(mesh).averaged()


@pytest.mark.usefixtures("small_network")
def test_a_run_scores_its_average_too_and_leaves_the_profile_that_was_asked_for(
    tiny_config, tmp_path
):
    config = tiny_config(
        **{"train.epochs": 1.25, "optim.ema_decay": 0.9, "optim.clip_norm": 1.0, "profile": (3, 4)}
    )
    training, evaluation = training_data(config), evaluation_data(config)
    train(config, tmp_path, training, evaluation, devices=ONE)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for protocol in ("occluded", "holistic"):
        scores = {}
        for name, parameters in ((protocol, "trained"), (f"{protocol}.average", "average")):
            result = json.loads((tmp_path / "results" / f"{name}.json").read_text())
            assert (result["parameters"], result["step"]) == (parameters, 10)
            scores[parameters] = result["mAP"]
        assert lines[-1][f"{protocol}/main/mAP"] == scores["trained"]
        assert lines[-1][f"{protocol}/main.average/mAP"] == scores["average"]
        # Ten steps on, the two are not the same network; at the start they were.
        assert scores["average"] != scores["trained"]
        assert lines[0][f"{protocol}/main/mAP"] == lines[0][f"{protocol}/main.average/mAP"]
