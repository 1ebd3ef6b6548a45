"""Helpers for the loss tests."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _central_differences(function: Callable, point: np.ndarray, step: float) -> np.ndarray:
    slope = np.zeros_like(point)
    for index in np.ndindex(*point.shape):
        ahead, behind = point.copy(), point.copy()
        ahead[index] += step
        behind[index] -= step
        difference = float(function(jnp.asarray(ahead))) - float(function(jnp.asarray(behind)))
        slope[index] = difference / (2 * step)
    return slope


@pytest.fixture
def check_gradient():
    """Compares jax.grad of a one-argument function with central differences in float64."""

    def check(function: Callable, point: np.ndarray, *, step: float = 1e-6) -> None:
        point = np.asarray(point, np.float64)
        with jax.enable_x64(True):
            gradient = jax.jit(jax.grad(function))(jnp.asarray(point))
            expected = _central_differences(jax.jit(function), point, step)
        assert np.abs(expected).max() > 1e-4, "the gradient is zero, so the test proves nothing"
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)

    return check


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
