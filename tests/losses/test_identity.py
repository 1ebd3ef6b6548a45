import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import identity_loss


def reference(logits, labels, smoothing, mask):
    total = weight = 0.0
    for row, label, kept in zip(logits, labels, mask, strict=True):
        log_sum = np.log(sum(np.exp(x) for x in row))
        cost = 0.0
        for k, x in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing if k == label else 0)
            cost -= target * (x - log_sum)
        total, weight = total + kept * cost, weight + kept
    return total / weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mask", [None, [1.0, 0.0, 1.0, 1.0]])
def test_against_numpy(rng, x64, smoothing, mask):
    logits, labels = rng.normal(size=(4, 5)) * 3, np.array([0, 4, 2, 2])
    loss = identity_loss(
        jnp.asarray(logits),
        jnp.asarray(labels),
        smoothing=smoothing,
        mask=None if mask is None else jnp.asarray(mask),
    )
    assert loss.dtype == jnp.float64
    assert float(loss) == pytest.approx(
        reference(logits, labels, smoothing, mask or [1.0] * 4), rel=1e-12
    )


def test_by_hand():
    # Two equal logits: log 2, whatever the smoothing.
    loss = identity_loss(jnp.zeros((1, 2)), jnp.array([1]), smoothing=0.3)
    assert float(loss) == pytest.approx(np.log(2))


def test_gradient(rng, check_gradient):
    labels, mask = np.array([0, 1, 1]), np.array([1.0, 1.0, 0.0])
    check_gradient(
        lambda x: identity_loss(x, jnp.asarray(labels), smoothing=0.1, mask=jnp.asarray(mask)),
        rng.normal(size=(3, 4)),
    )


def test_huge_logits_and_an_empty_mask_stay_finite():
    def loss(x, mask):
        return identity_loss(x, jnp.array([0, 1]), smoothing=0.1, mask=mask)

    huge = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    assert np.all(np.isfinite(jax.grad(loss)(huge, jnp.ones(2))))
    value, slope = jax.value_and_grad(loss)(huge, jnp.zeros(2))
    assert float(value) == 0 and not np.any(np.asarray(slope))


def test_bfloat16_logits_are_computed_in_float32(rng):
    logits = jnp.asarray(rng.normal(size=(4, 1000)), jnp.bfloat16)
    labels = jnp.arange(4)
    loss = identity_loss(logits, labels, smoothing=0.1)
    exact = reference(np.asarray(logits, np.float64), np.arange(4), 0.1, [1.0] * 4)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(exact, rel=1e-5)


def test_padding_columns_change_nothing(rng, x64):
    logits, labels = jnp.asarray(rng.normal(size=(4, 5))), jnp.array([0, 4, 2, 2])
    mask = jnp.array([1.0, 0.0, 1.0, 1.0])

    def loss(x, columns):
        x = jnp.pad(x, ((0, 0), (0, columns)), constant_values=-jnp.inf)
        return identity_loss(x, labels, smoothing=0.1, mask=mask)

    plain, padded = (jax.value_and_grad(loss)(logits, columns) for columns in (0, 123))
    np.testing.assert_allclose(padded[0], plain[0], rtol=1e-14)
    np.testing.assert_allclose(padded[1], plain[1], rtol=1e-14)
