import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses.map_prediction import map_prediction

HAS_POSE = np.array([1.0, 0.0, 1.0])


def reference(logits, target, has_pose):
    costs = []
    for image, wanted, kept in zip(logits, target, has_pose, strict=True):
        predicted = 1 / (1 + np.exp(-image))
        cost = -wanted * np.log(predicted) - (1 - wanted) * np.log(1 - predicted)
        if kept:
            costs.append(cost.mean())
    return sum(costs) / len(costs)


@pytest.mark.parametrize("maps", [1, 5])
def test_against_numpy(rng, x64, maps):
    logits, part_maps = rng.normal(size=(3, 4, 2, maps)), rng.random((3, 4, 2, 5))
    target = part_maps.max(-1, keepdims=True) if maps == 1 else part_maps
    loss = map_prediction(*map(jnp.asarray, (logits, part_maps, HAS_POSE)))
    assert float(loss) == pytest.approx(reference(logits, target, HAS_POSE), rel=1e-12)


def test_gradient(rng, check_gradient):
    part_maps = jnp.asarray(rng.random((3, 2, 2, 4)))
    check_gradient(
        lambda x: map_prediction(x, part_maps, jnp.asarray(HAS_POSE)), rng.normal(size=(3, 2, 2, 4))
    )


def test_large_logits_and_no_pose_stay_finite():
    logits = jnp.array([[[[90.0, -90.0]]]])
    for has_pose, expected in ((1.0, 90.0), (0.0, 0.0)):
        value, slope = jax.value_and_grad(map_prediction)(
            logits, jnp.array([[[[0.0, 1.0]]]]), jnp.array([has_pose])
        )
        assert float(value) == expected
        np.testing.assert_allclose(slope, has_pose / 2 * np.array([[[[1, -1]]]]), atol=1e-6)
