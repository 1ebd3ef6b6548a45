"""Every form of BatchNorm against its definition, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models import PGFL, folded
from pgfl_jax.models.batch_norm import BatchNorm, moments, normalise
from pgfl_jax.models.convolution import _plain
from tests.networks import random_variables, small_networks


def _draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _definition(y, scale, bias, shortcut, relu):
    """Two passes, differentiated by JAX."""
    mean = jnp.mean(y, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(y - mean), (0, 1, 2), keepdims=True)
    z = scale * (y - mean) / jnp.sqrt(var + 1e-5) + bias
    z = z if shortcut is None else z + shortcut
    return (jnp.maximum(z, 0) if relu else z), (mean, var)


SIZES = {"growing": (3, 7), "growing from few rows": (14, 20), "shrinking": (7, 3), "3x3": (4, 4)}


@pytest.mark.parametrize("window", SIZES)
@pytest.mark.parametrize(
    ("stride", "relu", "with_shortcut"), [(1, True, True), (2, True, False), (1, False, False)]
)
def test_a_training_step_is_the_definitions(window, stride, relu, with_shortcut):
    inputs, outputs = SIZES[window]
    kernel = _draw(*((3, 3) if window == "3x3" else ()), inputs, outputs, seed=1)
    x = _draw(4, 8, 6, inputs) + 2
    shortcut = _draw(4, 8 // stride, 6 // stride, outputs, seed=2) if with_shortcut else None
    scale, bias = _draw(outputs, seed=3), _draw(outputs, seed=4)
    norm = BatchNorm(outputs, use_running_average=False, dtype="float64")

    def ours(x, kernel, scale, bias, shortcut):
        averages = {"mean": jnp.full(outputs, 0.3), "var": jnp.ones(outputs)}
        z, updated = norm.apply(
            {"params": {"scale": scale, "bias": bias}, "batch_stats": averages},
            x, kernel, stride, shortcut, relu=relu, method="after", mutable=["batch_stats"],
        )  # fmt: skip
        mean, var = updated["batch_stats"]["mean"], updated["batch_stats"]["var"]
        return z, ((mean - 0.9 * 0.3) / 0.1, (var - 0.9) / 0.1)

    def theirs(x, kernel, scale, bias, shortcut):
        window = kernel if kernel.ndim == 4 else kernel[None, None]
        vectors = (scale[None, None, None], bias[None, None, None])
        z, statistics = _definition(_plain(x, window, stride), *vectors, shortcut, relu)
        return z, tuple(value.reshape(-1) for value in statistics)

    with jax.enable_x64(True):
        given = tuple(
            None if a is None else jnp.asarray(a) for a in (x, kernel, scale, bias, shortcut)
        )
        (found, pull, statistics), (expected, pull_expected, statistics_expected) = (
            jax.vjp(function, *given, has_aux=True) for function in (ours, theirs)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
        for one, other in zip(statistics, statistics_expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
        gradient = jnp.asarray(_draw(*found.shape, seed=5))
        for one, other in zip(pull(gradient), pull_expected(gradient), strict=True):
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def test_a_shift_near_the_mean_keeps_the_digits():
    """In float32 and around 1,000, where E[x²] - E[x]² would have lost six of seven digits."""
    x = np.float32(_draw(8, 16, 16, 4) * 0.5 + 1000)
    ones, zeros = jnp.ones(4), jnp.zeros(4)
    _, statistics = normalise(
        jnp.asarray(x), ones, zeros, jnp.full(4, 999.9, "float32"), None, False
    )
    np.testing.assert_allclose(statistics.var, np.float64(x).var((0, 1, 2)), rtol=2e-6)
    np.testing.assert_allclose(statistics.mean, np.float64(x).mean((0, 1, 2)), rtol=1e-7)


def test_moments_and_their_gradient():
    x = _draw(40, 5)
    symmetric = _draw(5, 5, seed=1)
    symmetric = symmetric + symmetric.T
    vector = _draw(5, seed=2)
    with jax.enable_x64(True):
        (mean, products), pull = jax.vjp(moments, jnp.asarray(x))
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(products, np.einsum("ni,nj->ij", x, x) / 40, rtol=1e-10)
        (found,) = pull((jnp.asarray(vector), jnp.asarray(symmetric)))
        _, pull = jax.vjp(lambda x: (x.mean(0), jnp.einsum("ni,nj->ij", x, x) / 40), jnp.asarray(x))
        (expected,) = pull((jnp.asarray(vector), jnp.asarray(symmetric)))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@small_networks()
@pytest.mark.parametrize("backbone", ["resnet8", "four_blocks_ibn_a"])
def test_folded_variables_compute_the_same(backbone):
    model = PGFL(10, backbone)
    images = jnp.float32(_draw(2, 64, 32, 3))
    variables = jax.tree.map(jnp.asarray, random_variables(model))
    apply = jax.jit(lambda v: model.apply(v, images, train=False).main.neck)
    less = folded(variables, "float32")
    assert "trunk" not in less["batch_stats"]
    expected = apply(variables)
    np.testing.assert_allclose(apply(less), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(expected) > 0
