import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.branches import (
    GeneralizedMeanPooling,
    average_pooling,
    foreground_pooling,
    part_pooling,
    pose_mask,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 2, 6))
    part_maps = rng.uniform(size=(3, 4, 2, 3))
    visibility = rng.uniform(size=(3, 3))
    return [x.astype(np.float32) for x in (features, part_maps, visibility)]


def test_foreground_pooling_is_a_weighted_mean_over_cells(batch):
    features, part_maps, _ = batch
    foreground = part_maps.max(-1)
    pooled = foreground_pooling(jnp.asarray(features), jnp.asarray(foreground))
    for i in range(3):
        total, weight = np.zeros(6), 0.0
        for row in range(4):
            for column in range(2):
                total += foreground[i, row, column] * features[i, row, column]
                weight += foreground[i, row, column]
        np.testing.assert_allclose(pooled[i], total / weight, rtol=1e-5)


def test_part_pooling_binds_each_channel_group_to_its_part(batch):
    features, part_maps, visibility = batch
    pooled = part_pooling(*map(jnp.asarray, batch))
    for i in range(3):
        for channel in range(6):
            part = channel // 2
            weights = part_maps[i, :, :, part]
            mean = (weights * features[i, :, :, channel]).sum() / weights.sum()
            assert pooled[i, channel] == pytest.approx(visibility[i, part] * mean, rel=1e-4)


def test_empty_maps_pool_to_zero(batch):
    features = jnp.asarray(batch[0])
    assert not np.any(foreground_pooling(features, jnp.zeros((3, 4, 2))))
    assert not np.any(part_pooling(features, jnp.zeros((3, 4, 2, 3)), jnp.zeros((3, 3))))


def test_generalized_mean_with_power_one_is_the_mean(batch):
    features = jnp.abs(jnp.asarray(batch[0])) + 0.1
    for power in (1.0, 3.0):
        pooled = GeneralizedMeanPooling().apply({"params": {"power": jnp.array(power)}}, features)
        expected = np.mean(np.asarray(features, np.float64) ** power, (1, 2)) ** (1 / power)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5)
    np.testing.assert_allclose(average_pooling(features), np.mean(features, (1, 2)), rtol=1e-6)


def test_a_pose_counts_when_it_shows_one_part():
    visibility = jnp.array([[0.0, 0.0], [0.0, 0.2], [1.0, 1.0]])
    assert pose_mask(visibility).tolist() == [0, 1, 1]
    assert pose_mask(visibility).dtype == jnp.float32


def test_pooled_features_are_float32_on_matrix_units_too(batch):
    """The default precision of a product is bfloat16 on TPUs and TF32 on GPUs."""
    features, maps, visibility = batch
    pooled = {
        "foreground": jax.jit(foreground_pooling).lower(features, maps.max(-1)),
        "parts": jax.jit(part_pooling).lower(features, maps, visibility),
    }
    for name, lowered in pooled.items():
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        assert products, name
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
