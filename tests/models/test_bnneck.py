import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pgfl_jax.models.bnneck import BNNeck

EPSILON = 1e-5


def _variables(channels, rng):
    return {
        "params": {"scale": jnp.asarray(rng.normal(size=channels), jnp.float32)},
        "batch_stats": {
            "mean": jnp.asarray(rng.normal(size=channels), jnp.float32),
            "var": jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32),
        },
    }


def test_a_mask_weighs_each_group_of_channels():
    """By loops in float64: the statistics, the output and the running averages."""
    rng = np.random.default_rng(4)
    variables = _variables(6, rng)
    x = rng.normal(3, 2, (5, 6)).astype(np.float32)
    mask = np.array([[1, 0, 0.5], [0.25, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], np.float32)
    y, updates = BNNeck().apply(
        variables, jnp.asarray(x), jnp.asarray(mask), train=True, mutable=["batch_stats"]
    )
    for channel in range(6):
        weights = mask[:, channel // 2].astype(np.float64)
        stats = {name: float(value[channel]) for name, value in variables["batch_stats"].items()}
        new = {name: float(value[channel]) for name, value in updates["batch_stats"].items()}
        if channel // 2 == 1:  # nobody shows this group
            assert new == stats and not np.any(y[:, channel])
            continue
        mean = (weights * x[:, channel]).sum() / weights.sum()
        var = (weights * (x[:, channel] - mean) ** 2).sum() / weights.sum()
        scale = float(variables["params"]["scale"][channel])
        expected = weights * (x[:, channel] - mean) / np.sqrt(var + EPSILON) * scale
        np.testing.assert_allclose(y[:, channel], expected, rtol=2e-5, atol=1e-5)
        for name, value in (("mean", mean), ("var", var)):
            assert new[name] == pytest.approx(0.9 * stats[name] + 0.1 * value, rel=1e-5)


def test_gradients_of_values_and_weights():
    """The weights are predicted, so they have gradients, too."""
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        x, mask = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.uniform(0.2, 1, (5, 2)))
        variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), _variables(4, rng))

        def output(x, mask):
            # check_grads moves the inputs as NumPy arrays.
            inputs = jnp.asarray(x), jnp.asarray(mask)
            return BNNeck().apply(variables, *inputs, train=True, mutable=["batch_stats"])[0]

        check_grads(output, (x, mask), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


def test_masked_rows_leave_the_statistics():
    rng = np.random.default_rng(0)
    variables = _variables(5, rng)
    x = rng.normal(3, 2, (6, 5)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)

    y, updates = BNNeck().apply(
        variables, jnp.asarray(x), jnp.asarray(mask), train=True, mutable=["batch_stats"]
    )

    kept = x[mask > 0].astype(np.float64)
    mean, var = kept.mean(0), kept.var(0)
    scale = np.asarray(variables["params"]["scale"])
    expected = mask[:, None] * (x - mean) / np.sqrt(var + EPSILON) * scale
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-5)
    for name, new in (("mean", mean), ("var", var)):
        old = np.asarray(variables["batch_stats"][name])
        np.testing.assert_allclose(updates["batch_stats"][name], 0.9 * old + 0.1 * new, rtol=1e-5)


def test_without_a_mask_every_row_counts():
    rng = np.random.default_rng(1)
    variables, x = _variables(3, rng), jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    plain = BNNeck().apply(variables, x, train=True, mutable=["batch_stats"])
    masked = BNNeck().apply(variables, x, jnp.ones(4), train=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, plain, masked)


def test_an_empty_mask_keeps_the_running_statistics_and_finite_gradients():
    rng = np.random.default_rng(2)
    variables, x = _variables(3, rng), jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def total(x):
        y, updates = BNNeck().apply(variables, x, jnp.zeros(4), train=True, mutable=["batch_stats"])
        return jnp.sum(y), updates["batch_stats"]

    gradient, stats = jax.grad(total, has_aux=True)(x)
    assert np.isfinite(gradient).all()
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_evaluation_takes_the_running_statistics():
    rng = np.random.default_rng(3)
    variables, x = _variables(3, rng), rng.normal(size=(4, 3)).astype(np.float32)
    y = BNNeck().apply(variables, jnp.asarray(x), train=False)
    stats = jax.tree.map(np.asarray, variables["batch_stats"])
    scale = np.asarray(variables["params"]["scale"])
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON) * scale
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
