import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.branches import (
    AveragePooling,
    ContextPooling,
    GeneralizedMeanPooling,
    PredictedPooling,
    part_pooling,
    pose_mask,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 2, 6))
    part_maps = rng.uniform(size=(3, 4, 2, 3))
    return [x.astype(np.float32) for x in (features, part_maps)]


def test_one_map_pools_all_channels(batch):
    features, part_maps = batch
    foreground = part_maps.max(-1)
    pooled = part_pooling(jnp.asarray(features), jnp.asarray(foreground)[..., None])
    for i in range(3):
        total, weight = np.zeros(6), 0.0
        for row in range(4):
            for column in range(2):
                total += foreground[i, row, column] * features[i, row, column]
                weight += foreground[i, row, column]
        np.testing.assert_allclose(pooled[i], total / weight, rtol=1e-5)


def test_part_pooling_binds_each_channel_group_to_its_part(batch):
    features, part_maps = batch
    pooled = part_pooling(*map(jnp.asarray, batch))
    for i in range(3):
        for channel in range(6):
            part = channel // 2
            weights = part_maps[i, :, :, part]
            mean = (weights * features[i, :, :, channel]).sum() / weights.sum()
            assert pooled[i, channel] == pytest.approx(mean, rel=1e-4)


def two_layers(features, last, channels):
    """Random parameters of a 3×3 convolution, a ReLU and a layer ``last``, and what they give."""
    rng = np.random.default_rng(1)
    kernels = {
        "hidden": rng.normal(size=(3, 3, 6, 64)) / 8,
        last: rng.normal(size=(64, channels)) / 8,
    }
    biases = {"hidden": rng.normal(size=64), last: rng.normal(size=channels)}
    params = {
        name: {"kernel": jnp.asarray(kernels[name]), "bias": jnp.asarray(biases[name])}
        for name in kernels
    }
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.empty((*features.shape[:3], channels))
    for i, row, column in np.ndindex(features.shape[:3]):
        window = padded[i, row : row + 3, column : column + 3]
        hidden = np.tensordot(window, kernels["hidden"], 3) + biases["hidden"]
        found[i, row, column] = np.maximum(hidden, 0) @ kernels[last] + biases[last]
    return {"params": params}, found


def test_a_plain_mean_of_features_that_have_seen_their_neighbours(batch):
    features, _ = batch
    variables, logits = two_layers(features, "gate", 6)
    pooled = ContextPooling().apply(variables, jnp.asarray(features))
    weights = 1 / (1 + np.exp(-logits))
    own = features * np.stack([weight / weight.mean() for weight in weights])
    np.testing.assert_allclose(pooled.features, own, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pooled.embedding, own.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert pooled.seen is None and pooled.map_logits is None
    start, _ = ContextPooling().init_with_output(jax.random.key(0), jnp.abs(features))
    np.testing.assert_allclose(start.embedding, np.abs(features).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("maps", [1, 3])
def test_predicted_maps_pool_as_those_of_a_pose_do(batch, maps):
    features, _ = batch
    variables, found = two_layers(features, "maps", maps)
    pooled = PredictedPooling(maps).apply(variables, jnp.asarray(features))
    for i, logits in enumerate(found):
        np.testing.assert_allclose(pooled.map_logits[i], logits, rtol=1e-4, atol=1e-4)
        predicted = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(pooled.seen[i], predicted.max((0, 1)), rtol=1e-4)
        for channel in range(6):
            weights = predicted[:, :, channel * maps // 6]
            mean = (weights * features[i, :, :, channel]).sum() / weights.sum()
            assert pooled.embedding[i, channel] == pytest.approx(mean, rel=1e-3, abs=1e-5)


def test_predicted_pooling_starts_as_a_mean(batch):
    features = jnp.asarray(batch[0])
    pooled, _ = PredictedPooling(3).init_with_output(jax.random.key(0), features)
    np.testing.assert_allclose(pooled.embedding, np.mean(features, (1, 2)), rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(pooled.seen) == 0.5)


def test_empty_maps_pool_to_zero(batch):
    features = jnp.asarray(batch[0])
    assert not np.any(part_pooling(features, jnp.zeros((3, 4, 2, 3))))


def test_generalized_mean_with_power_one_is_the_mean(batch):
    features = jnp.abs(jnp.asarray(batch[0])) + 0.1
    for power in (1.0, 3.0):
        pooled = GeneralizedMeanPooling().apply({"params": {"power": jnp.array(power)}}, features)
        expected = np.mean(np.asarray(features, np.float64) ** power, (1, 2)) ** (1 / power)
        np.testing.assert_allclose(pooled.embedding, expected, rtol=1e-5)
    average = AveragePooling().apply({}, features)
    np.testing.assert_allclose(average.embedding, np.mean(features, (1, 2)), rtol=1e-6)


def test_a_pose_counts_when_it_shows_one_part():
    visibility = jnp.array([[0.0, 0.0], [0.0, 0.2], [1.0, 1.0]])
    assert pose_mask(visibility).tolist() == [0, 1, 1]
    assert pose_mask(visibility).dtype == jnp.float32


def test_pooled_features_are_float32_on_matrix_units_too(batch):
    """The default precision of a product of matrices is bfloat16 on TPUs and TF32 on GPUs."""
    pooled = jax.jit(part_pooling).lower(*map(jnp.asarray, batch)).as_text()
    assert "multiply" in pooled and "dot_general" not in pooled
    head = PredictedPooling(3)
    features = jnp.asarray(batch[0])
    params = head.init(jax.random.key(0), features)
    (product,) = [
        line
        for line in jax.jit(head.apply).lower(params, features).as_text().splitlines()
        if "dot_general" in line
    ]
    assert "precision = [HIGHEST, HIGHEST]" in product
