import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses.masking import EPS, masked_mean, safe_log, spatial_distribution


def test_masked_mean_weighs_by_the_mask():
    mean = masked_mean(jnp.array([1.0, 2.0, 30.0]), jnp.array([1.0, 0.5, 0.0]))
    assert float(mean) == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert float(masked_mean(jnp.array([1.0, 3.0]))) == 2
    assert float(masked_mean(jnp.array([1.0, 3.0]), jnp.array([False, True]))) == 3


def test_an_empty_mask_gives_exactly_zero_and_no_gradient():
    value, slope = jax.value_and_grad(masked_mean)(jnp.array([1.0, jnp.inf]), jnp.zeros(2))
    assert float(value) == 0
    assert not np.any(np.asarray(slope))


def test_a_masked_nan_does_not_count():
    value, slope = jax.value_and_grad(masked_mean)(jnp.array([jnp.nan, 2.0]), jnp.array([0.0, 1.0]))
    assert float(value) == 2
    assert slope.tolist() == [0, 1]


def test_spatial_distribution_sums_to_one_per_map(rng):
    maps = rng.random((2, 3, 4, 5)).astype(np.float32)
    shares = np.asarray(spatial_distribution(jnp.asarray(maps)))
    np.testing.assert_allclose(shares.sum((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(shares[1, :, :, 2], maps[1, :, :, 2] / maps[1, :, :, 2].sum(), 1e-6)


def test_an_empty_map_stays_empty_with_finite_gradients():
    slope = jax.grad(lambda m: jnp.sum(safe_log(spatial_distribution(m))))(jnp.zeros((1, 2, 2)))
    assert np.all(np.isfinite(slope))
    assert not np.any(np.asarray(spatial_distribution(jnp.zeros((1, 2, 2)))))


def test_safe_log_has_a_floor():
    np.testing.assert_allclose(safe_log(jnp.array([0.0, 1.0])), [np.log(EPS), 0], rtol=1e-6)
