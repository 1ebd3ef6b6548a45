import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import channel_group_semantic


def reference(features, part_maps, visibility):
    size = features.shape[-1] // part_maps.shape[-1]
    total = weight = 0.0
    for b, g in np.ndindex(*visibility.shape):
        part = part_maps[b, :, :, g]
        if part.sum() == 0:
            continue
        energy = np.zeros_like(part)
        for c in range(g * size, (g + 1) * size):
            energy += features[b, :, :, c] ** 2
        p, a = part / part.sum(), energy / energy.sum()
        divergence = 0.0
        for y, x in np.ndindex(*part.shape):
            if p[y, x] > 0:
                divergence += p[y, x] * np.log(p[y, x] / a[y, x])
        total += visibility[b, g] * divergence
        weight += visibility[b, g]
    return total / weight


def test_against_numpy(rng, x64):
    features, part_maps = rng.normal(size=(3, 4, 2, 6)), rng.random((3, 4, 2, 3))
    part_maps[0, :2] = 0
    part_maps[1, :, :, 2] = 0  # flagged as visible, but its map is empty
    visibility = np.array([[1, 0.5, 0], [0.2, 1, 1], [0, 0, 0]])
    loss = channel_group_semantic(*map(jnp.asarray, (features, part_maps, visibility)))
    assert float(loss) == pytest.approx(reference(features, part_maps, visibility), rel=1e-10)


def test_by_hand():
    # Group 0 = channels 0, 1 spreads evenly over two cells, while its part covers one: log 2.
    # Group 1 = channels 2, 3 has all its energy on its part: 0.
    features = jnp.array([[[[1.0, 0, 5, 5], [0, 1.0, 0, 0]]]])
    part_maps = jnp.array([[[[0.7, 0.3], [0, 0]]]])
    loss = channel_group_semantic(features, part_maps, jnp.array([[1.0, 0.5]]))
    assert float(loss) == pytest.approx(np.log(2) / 1.5)


def test_gradient(rng, check_gradient):
    part_maps, visibility = rng.random((2, 2, 2, 2)), np.array([[1.0, 0.3], [0.0, 0.8]])
    check_gradient(
        lambda x: channel_group_semantic(x, jnp.asarray(part_maps), jnp.asarray(visibility)),
        rng.normal(size=(2, 2, 2, 4)),
    )


@pytest.mark.parametrize("features", [0.0, 1.0])
@pytest.mark.parametrize("part_maps", [0.0, 1.0])
@pytest.mark.parametrize("visibility", [0.0, 1.0])
def test_empty_inputs_stay_finite(features, part_maps, visibility):
    value, slopes = jax.value_and_grad(channel_group_semantic, argnums=(0, 1))(
        jnp.full((2, 3, 2, 4), features),
        jnp.full((2, 3, 2, 2), part_maps),
        jnp.full((2, 2), visibility),
    )
    assert np.isfinite(value) and all(np.all(np.isfinite(slope)) for slope in slopes)
    if not (part_maps and visibility):
        assert float(value) == 0 and not np.any(np.asarray(slopes[0]))


def test_channels_that_do_not_split_are_refused():
    with pytest.raises(ValueError, match="10 channels do not split into 4 equal groups"):
        channel_group_semantic(jnp.ones((1, 2, 2, 10)), jnp.ones((1, 2, 2, 4)), jnp.ones((1, 4)))
