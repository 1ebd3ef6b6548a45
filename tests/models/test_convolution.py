import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models import winograd
from pgfl_jax.models.convolution import _by_blocks, _kernel_gradient, _plain, convolve
from tests.loops import by_loops


def _draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("size", "stride", "channels"), [(1, 1, 5), (1, 2, 5), (3, 1, 5), (3, 2, 5), (7, 2, 3)]
)
def test_a_convolution_is_what_loops_make_of_it(size, stride, channels):
    x, kernel = _draw(2, 8, 6, channels), _draw(size, size, channels, 4, seed=1)
    expected = by_loops(x, kernel, stride)
    given = kernel[0, 0] if size == 1 else kernel
    found = convolve(jnp.float32(x), jnp.float32(given), stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 7, 5, 3)])
def test_the_gradients_are_finite_differences(size, stride, shape):
    x, kernel = _draw(*shape), _draw(size, size, shape[-1], 4, seed=1)
    with jax.enable_x64(True):
        y, pull = jax.vjp(
            functools.partial(convolve, stride=stride), jnp.asarray(x), jnp.asarray(kernel)
        )
        weights = _draw(*y.shape, seed=2)
        found = pull(jnp.asarray(weights))
    # The function is linear in each argument, so one step of any length gives its derivative.
    for index, (array, gradient) in enumerate(zip((x, kernel), found, strict=True)):
        direction = _draw(*array.shape, seed=3)
        moved = [x, kernel]
        moved[index] = array + direction
        change = by_loops(*moved, stride) - by_loops(x, kernel, stride)
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient) * direction), np.sum(change * weights), rtol=1e-9
        )


def test_the_form_of_gpus_is_the_plain_one():
    with jax.enable_x64(True):
        x, kernel = _draw(2, 16, 8, 3), _draw(7, 7, 3, 5, seed=1)
        (plain, by_plain), (blocks, by_blocks) = (
            jax.vjp(form, x, kernel) for form in (functools.partial(_plain, stride=2), _by_blocks)
        )
        gradient = _draw(*plain.shape, seed=2)
        np.testing.assert_allclose(blocks, plain, rtol=0, atol=1e-12)
        for ours, theirs in zip(by_blocks(gradient), by_plain(gradient), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def _plain_with_gradients(x, kernel, stride):
    y, pull = jax.vjp(functools.partial(_plain, stride=stride), x, kernel)
    gradient = jnp.asarray(_draw(*y.shape, seed=2), y.dtype)
    return y, gradient, pull(gradient)


# Whole, in strips of two and of four rows.
@pytest.mark.parametrize("cache", [winograd._CACHE, 1, 2 * 3 * 4 * 5 * 16 * 8])
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (1, 2, 2, 1)])
def test_winograds_form_is_the_plain_one(shape, cache, monkeypatch):
    monkeypatch.setattr(winograd, "_CACHE", cache)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(_draw(*shape)), jnp.asarray(_draw(3, 3, shape[-1], 7, seed=1))
        y, gradient, (to_input, to_kernel) = _plain_with_gradients(x, kernel, 1)
        for found, expected in (
            (winograd.convolution(x, kernel), y),
            *zip(winograd.gradients(x, kernel, gradient), (to_input, to_kernel), strict=True),
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (2, 7, 5, 3)])
def test_the_gradient_of_a_kernel_as_a_product(shape, size, stride):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(_draw(*shape)), jnp.asarray(_draw(size, size, shape[-1], 7, seed=1))
        _, gradient, (_, to_kernel) = _plain_with_gradients(x, kernel, stride)
        found = _kernel_gradient(x, gradient, size, stride)
        np.testing.assert_allclose(found, to_kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_large_convolution_takes_them_on_a_cpu(stride):
    """At the size of the demo's second stage. In float32 they round alike."""
    arrays = _draw(32, 16, 8, 96), _draw(3, 3, 96, 96, seed=1)
    with jax.enable_x64(True):
        y, gradient, gradients = _plain_with_gradients(*map(jnp.asarray, arrays), stride)
        truth = [np.asarray(each) for each in (y, *gradients)]
    gradient = jnp.float32(np.asarray(gradient))
    x, kernel = map(jnp.float32, arrays)
    y, pull = jax.vjp(functools.partial(convolve, stride=stride), x, kernel)
    plain, pull_plain = jax.vjp(functools.partial(_plain, stride=stride), x, kernel)
    ours, plains = (y, *pull(gradient)), (plain, *pull_plain(gradient))
    for found, by_plain, expected in zip(ours, plains, truth, strict=True):
        off, off_plain = (np.linalg.norm(each - expected) for each in (found, by_plain))
        assert 0 < off < 2 * off_plain
    text = jax.jit(pull).lower(y).compile().as_text()
    assert ("convolution(" in text) == (stride == 2)  # the gradient of its input


def test_neither_a_small_convolution_nor_one_in_16_bits_takes_them():
    kernel = _draw(3, 3, 96, 96, seed=1)
    for x, dtype in ((_draw(1, 16, 8, 96), "float32"), (_draw(32, 16, 8, 96), "bfloat16")):
        y, pull = jax.vjp(convolve, jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
        text = jax.jit(pull).lower(y).as_text()
        assert "dot_general" not in text and text.count("stablehlo.convolution") == 2
