import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import pgfl
from pgfl_jax.train_step import loss_and_gradients, make_train_step
from tests.runs import NETWORKS, OTHERS

pytestmark = pytest.mark.usefixtures("small_network")

IDENTITIES = 6
POSE_TERMS = {"id_foreground", "id_parts", "triplet_foreground", "triplet_parts", "alignment",
              "semantic", "kd_feature_foreground", "kd_feature_parts", "kd_logit_foreground",
              "kd_logit_parts", "interaction", "maps"}  # fmt: skip


def _batch(config, seed=0):
    rng = np.random.default_rng(seed)
    size = config.data.batch_size
    visibility = rng.uniform(0.2, 1, (size, 8)) * (rng.random((size, 8)) < 0.8)
    visibility[:3] = 0  # images without a pose
    return {
        "images": rng.normal(size=(size, 64, 32, 3)).astype(np.float32),
        "labels": np.repeat(np.arange(4), 4).astype(np.int32),
        "part_maps": (rng.random((size, *config.map_shape, 8)) * visibility[:, None, None]).astype(
            np.float32
        ),
        "visibility": visibility.astype(np.float32),
    }


EVERY_LOSS = {
    "loss.logit_kd": 1.0,
    "loss.interaction": 0.5,
    "loss.interaction_variant": "cross_triplet",
    "loss.teachers": "both",
}


@pytest.fixture
def every_loss(tiny_config):
    return tiny_config(**EVERY_LOSS)


def _run(config):
    return Experiment.create(config, num_identities=IDENTITIES, num_images=64)


def _assert_close(actual, expected, rtol):
    """Relative to the largest entry of each array: sums in another order cancel differently.

    The floor of 1 % is for the terms that are near 0 at the start, logit distillation above all:
    they are differences of logarithms of order 1, so their rounding error is that of a number of
    order 1.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(expected))
    for (path, b), a in zip(leaves, jax.tree.leaves(jax.device_get(actual)), strict=True):
        tolerance = rtol * max(np.abs(b).max(), 0.01)
        error = np.abs(a - b).max()
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error:.2e} > {tolerance:.2e}"


@pytest.mark.parametrize(
    "network", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_one_step_of_training_is_the_optimizer_on_these_gradients(tiny_config, network):
    config = tiny_config(**EVERY_LOSS, **(NETWORKS | OTHERS)[network])
    experiment, batch, mesh = _run(config), _batch(config), make_mesh(jax.devices()[:2])
    state = experiment.init_state(mesh)
    before = jax.device_get(state)
    gradients, stats, terms = jax.device_get(
        jax.jit(lambda s, b: loss_and_gradients(experiment, s, b))(state, batch)
    )
    after, metrics = make_train_step(experiment, mesh)(state, shard_batch(batch, mesh))
    assert int(after.step) == 1
    _assert_close(after.batch_stats, stats, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(gradients)))
    assert float(metrics.pop("gradient_norm")) == pytest.approx(norm, rel=1e-4)
    _assert_close(metrics, terms, rtol=5e-5)
    # AdamW's first update is rate · (sign-like g / (|g| + ε) + decay · x).
    rate, decay = float(experiment.schedule(0)), experiment.config.optim.weight_decay
    expected = jax.tree.map(
        lambda x, g: x - rate * (g / (np.abs(g) + 1e-8) + decay * x), before.params, gradients
    )
    name = "main_classifier"
    np.testing.assert_allclose(
        after.params[name]["kernel"], expected[name]["kernel"], rtol=1e-3, atol=1e-6
    )


def test_three_steps_trace_once(every_loss, monkeypatch):
    traces = []
    original = pgfl.PGFL.__call__

    def counted(self, *args, **kwargs):
        traces.append(1)
        return original(self, *args, **kwargs)

    experiment, mesh = _run(every_loss), make_mesh(jax.devices()[:2])
    state = experiment.init_state(mesh)
    train_step = make_train_step(experiment, mesh)
    monkeypatch.setattr(pgfl.PGFL, "__call__", counted)
    for seed in range(3):
        state, _ = train_step(state, shard_batch(_batch(every_loss, seed), mesh))
    assert len(traces) == 1


def test_a_batch_without_poses_has_pose_terms_of_zero(every_loss):
    experiment, batch = _run(every_loss), _batch(every_loss)
    batch["visibility"] = np.zeros_like(batch["visibility"])
    batch["part_maps"] = np.zeros_like(batch["part_maps"])
    state = experiment.init_state(make_mesh(jax.devices()[:1]))
    gradients, stats, terms = jax.jit(lambda s, b: loss_and_gradients(experiment, s, b))(
        state, batch
    )
    assert terms.keys() == POSE_TERMS | {"id_main", "triplet_main", "total"}
    assert all(float(terms[name]) == 0 for name in POSE_TERMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, stats)))
    for name in ("foreground", "parts"):
        assert not np.any(gradients[f"{name}_neck"]["scale"])
        assert not np.any(gradients[f"{name}_classifier"]["kernel"])
        jax.tree.map(
            np.testing.assert_array_equal,
            stats[f"{name}_neck"],
            state.batch_stats[f"{name}_neck"],
        )
    total = every_loss.loss.identity * terms["id_main"]
    total += every_loss.loss.triplet * terms["triplet_main"]
    assert float(terms["total"]) == pytest.approx(float(total))


def test_the_warm_up_holds_the_distillation_back(tiny_config):
    config = tiny_config(**{"loss.kd_start": 1.0, "loss.kd_ramp": 2.0})
    experiment, batch = _run(config), {k: jnp.asarray(v) for k, v in _batch(config).items()}
    state = experiment.init_state(make_mesh(jax.devices()[:1]))
    weighted = []
    for epoch in (0, 1, 2, 3, 9):  # 64 images in batches of 16: 4 steps are an epoch
        at = state.replace(step=jnp.asarray(4 * epoch))
        terms = jax.jit(lambda s, b: loss_and_gradients(experiment, s, b)[2])(at, batch)
        others = config.loss.alignment * terms["alignment"]
        others += config.loss.semantic * terms["semantic"] + config.loss.maps * terms["maps"]
        others += sum(v for name, v in terms.items() if name.startswith(("id_", "triplet_")))
        rest = float(terms["total"]) - float(others)
        weighted.append(rest / float(config.loss.feature_kd * terms["kd_feature_parts"]))
    np.testing.assert_allclose(weighted, [0, 0, 0.5, 1, 1], atol=1e-5)
