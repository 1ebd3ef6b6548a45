import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.config import OptimConfig
from pgfl_jax.optim import learning_rate_schedule, make_optimizer

CONFIG = OptimConfig(
    name="adam",
    learning_rate=0.1,
    weight_decay=0.01,
    momentum=0.9,
    schedule="step",
    warmup_epochs=2.0,
    warmup_factor=0.1,
    milestones=(4.0, 6.0),
    decay_factor=0.1,
)


def test_step_schedule_by_hand():
    rate = learning_rate_schedule(CONFIG, num_steps=80, steps_per_epoch=10.0)
    # 20 steps of warm-up from 0.01 to 0.1, then a tenth at steps 40 and 60.
    expected = {0: 0.01, 10: 0.055, 20: 0.1, 39: 0.1, 40: 0.01, 59: 0.01, 60: 0.001, 79: 0.001}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_cosine_schedule_by_hand():
    config = dataclasses.replace(CONFIG, schedule="cosine")
    rate = learning_rate_schedule(config, num_steps=80, steps_per_epoch=10.0)
    for step in (20, 35, 50, 79, 80):
        expected = 0.1 * 0.5 * (1 + np.cos(np.pi * (step - 20) / 60))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4, abs=1e-8), step


def test_without_warmup_the_first_rate_is_the_full_one():
    config = dataclasses.replace(CONFIG, warmup_epochs=0.0)
    rate = learning_rate_schedule(config, num_steps=80, steps_per_epoch=10.0)
    assert float(rate(0)) == pytest.approx(0.1)


def _reference(name, gradients, x):
    """PyTorch's Adam, AdamW and SGD by their documented formulas, in float64."""
    first, second, rate, decay = 0.0, 0.0, 0.1, 0.01
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + (decay * x if name != "adamw" else 0)
        if name == "sgd":
            first = 0.9 * first + g
            x = x - rate * first
            continue
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        update = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        x = x - rate * update - (rate * decay * x if name == "adamw" else 0)
    return x


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_follow_the_published_formulas(name):
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name=name), lambda step: 0.1)
    rng = np.random.default_rng(0)
    gradients, start = rng.normal(size=(5, 3)), rng.normal(size=3)
    x, state = jnp.asarray(start, jnp.float32), None
    state = optimizer.init(x)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, x)
        x = x + updates
    np.testing.assert_allclose(x, _reference(name, gradients, start), rtol=1e-4, atol=1e-6)
