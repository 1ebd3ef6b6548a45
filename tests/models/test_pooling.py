import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pgfl_jax.models.pooling import max_pool


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_pytorchs_with_ties(dtype):
    rng = np.random.default_rng(0)
    # Few values, so that most windows hold their maximum more than once.
    x = jnp.asarray(rng.integers(-2, 2, (3, 12, 8, 5)), dtype)
    gradient = jnp.asarray(rng.integers(-4, 4, (3, 6, 4, 5)), dtype)
    y, pull = jax.vjp(max_pool, x)
    twin = torch.tensor(np.float32(x)).permute(0, 3, 1, 2).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(twin, 3, 2, 1)
    pooled.backward(torch.tensor(np.float32(gradient)).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(np.float32(y), pooled.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(np.float32(max_pool(x)), np.float32(y))
    np.testing.assert_array_equal(np.float32(pull(gradient)[0]), twin.grad.permute(0, 2, 3, 1))
