import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import foreground_alignment


def reference(features, foreground, has_pose):
    costs = []
    for image, mask, kept in zip(features, foreground, has_pose, strict=True):
        inside = total = 0.0
        for y, x in np.ndindex(*mask.shape):
            energy = sum(value**2 for value in image[y, x])
            total += energy
            inside += energy * mask[y, x]
        if kept:
            costs.append(-np.log(inside / total))
    return sum(costs) / len(costs)


def test_against_numpy(rng, x64):
    features, foreground = rng.normal(size=(3, 4, 2, 5)), rng.random((3, 4, 2))
    has_pose = np.array([1.0, 0.0, 1.0])
    loss = foreground_alignment(*map(jnp.asarray, (features, foreground, has_pose)))
    assert float(loss) == pytest.approx(reference(features, foreground, has_pose), rel=1e-12)


def test_by_hand():
    # Energy 9 on the person and 3 * 9 off it: a quarter inside.
    features, foreground = jnp.full((1, 2, 2, 1), 3.0), jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    assert float(foreground_alignment(features, foreground, jnp.ones(1))) == pytest.approx(
        np.log(4)
    )
    assert float(foreground_alignment(features, jnp.ones((1, 2, 2)), jnp.ones(1))) == 0


def test_gradient(rng, check_gradient):
    foreground, has_pose = rng.random((2, 2, 2)), np.array([1.0, 0.0])
    check_gradient(
        lambda x: foreground_alignment(x, jnp.asarray(foreground), jnp.asarray(has_pose)),
        rng.normal(size=(2, 2, 2, 3)),
    )


@pytest.mark.parametrize("features", [0.0, 1.0])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
@pytest.mark.parametrize("has_pose", [0.0, 1.0])
def test_empty_inputs_stay_finite(features, foreground, has_pose):
    value, slopes = jax.value_and_grad(foreground_alignment, argnums=(0, 1))(
        jnp.full((2, 3, 2, 4), features), jnp.full((2, 3, 2), foreground), jnp.full(2, has_pose)
    )
    assert np.isfinite(value) and all(np.all(np.isfinite(slope)) for slope in slopes)
    if not has_pose:
        assert float(value) == 0 and not np.any(np.asarray(slopes[0]))


def test_bfloat16_is_computed_in_float32(rng):
    features = jnp.asarray(rng.normal(size=(2, 8, 4, 64)), jnp.bfloat16)
    foreground = jnp.asarray(rng.random((2, 8, 4)), jnp.float32)
    loss = foreground_alignment(features, foreground, jnp.ones(2))
    exact = reference(np.asarray(features, np.float64), np.asarray(foreground), [1, 1])
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(exact, rel=1e-5)
