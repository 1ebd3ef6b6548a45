import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.convolution import _by_blocks, _plain, convolve
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
