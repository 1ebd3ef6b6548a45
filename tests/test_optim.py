import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from pgfl_jax.config import OptimConfig
from pgfl_jax.optim import learning_rate_schedule, make_optimizer, scaled_learning_rate
from pgfl_jax.train_state import Average, update_average

CONFIG = OptimConfig(
    name="adam",
    learning_rate=0.1,
    scaling="none",
    base_batch_size=64,
    weight_decay=0.01,
    momentum=0.9,
    trust_coefficient=0.02,
    clip_norm=0.0,
    ema_decay=0.0,
    schedule="step",
    warmup_epochs=2.0,
    warmup_factor=0.1,
    milestones=(4.0, 6.0),
    decay_factor=0.1,
)


def test_step_schedule_by_hand():
    rate = learning_rate_schedule(CONFIG, batch_size=64, num_steps=80, steps_per_epoch=10.0)
    # 20 steps of warm-up from 0.01 to 0.1, then a tenth at steps 40 and 60.
    expected = {0: 0.01, 10: 0.055, 20: 0.1, 39: 0.1, 40: 0.01, 59: 0.01, 60: 0.001, 79: 0.001}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_milestones_that_fall_on_one_step_both_count():
    config = dataclasses.replace(CONFIG, milestones=(4.0, 4.01), warmup_epochs=0.0)
    rate = learning_rate_schedule(config, batch_size=64, num_steps=80, steps_per_epoch=10.0)
    assert float(rate(39)) == pytest.approx(0.1)
    assert float(rate(40)) == pytest.approx(0.001)


def test_cosine_schedule_by_hand():
    config = dataclasses.replace(CONFIG, schedule="cosine")
    rate = learning_rate_schedule(config, batch_size=64, num_steps=80, steps_per_epoch=10.0)
    for step in (20, 35, 50, 79, 80):
        expected = 0.1 * 0.5 * (1 + np.cos(np.pi * (step - 20) / 60))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4, abs=1e-8), step


def test_without_warmup_the_first_rate_is_the_full_one():
    config = dataclasses.replace(CONFIG, warmup_epochs=0.0)
    rate = learning_rate_schedule(config, batch_size=64, num_steps=80, steps_per_epoch=10.0)
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


def _trust_region(name, gradients, kernel, bias):
    """LARS (arXiv 1708.03888, algorithm 1) and LAMB (ICLR 2020, algorithm 2), in float64."""
    rate, decay, trust = 0.1, 0.01, 0.02
    moments = {"kernel": (0.0, 0.0), "bias": (0.0, 0.0)}
    values = {"kernel": kernel, "bias": bias}
    for t, gradient in enumerate(gradients, start=1):
        for key, x in values.items():
            first, second = moments[key]
            own_decay = decay if key == "kernel" else 0.0
            if name == "lars":
                g = gradient[key] + own_decay * x
                ratio = trust * np.linalg.norm(x) / np.linalg.norm(g) if key == "kernel" else 1
                first = 0.9 * first + rate * ratio * g
                values[key] = x - first
            else:
                g = gradient[key]
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                update = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-6)
                update = update + own_decay * x
                values[key] = x - rate * np.linalg.norm(x) / np.linalg.norm(update) * update
            moments[key] = first, second
    return values


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratios_follow_the_published_formulas(name):
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name=name), lambda step: 0.1)
    rng = np.random.default_rng(1)

    def draw():
        return {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}

    start, gradients = draw(), [draw() for _ in range(5)]
    x = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), start)
    state = optimizer.init(x)
    for gradient in gradients:
        gradient = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), gradient)
        updates, state = optimizer.update(gradient, state, x)
        x = jax.tree.map(jnp.add, x, updates)
    expected = _trust_region(name, gradients, start["kernel"], start["bias"])
    for key, value in expected.items():
        np.testing.assert_allclose(x[key], value, rtol=1e-4, atol=1e-6)


def test_columns_that_fill_a_classifier_up_change_no_trust_ratio():
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name="lamb"), lambda step: 0.1)
    rng = np.random.default_rng(2)
    narrow = [{"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)} for _ in range(2)]
    wide = [{"kernel": jnp.pad(value["kernel"], ((0, 0), (0, 6)))} for value in narrow]
    plain, filled = (
        optimizer.update(gradient, optimizer.init(kernel), kernel)[0]["kernel"]
        for kernel, gradient in (narrow, wide)
    )
    np.testing.assert_allclose(filled[:, :2], plain, rtol=1e-6)
    assert not np.any(filled[:, 2:])


NO_KERNELS = ("trunk/cls_token", "trunk/pos_embed", "trunk/patch_embed/bias", "main_pooling/power",
              "trunk/blocks_0/norm1/scale", "trunk/blocks_1/mlp/fc1/bias")  # fmt: skip
KERNELS = ("trunk/patch_embed/kernel", "trunk/blocks_0/attn/qkv/kernel", "main_classifier/kernel")


def _first_updates(config):
    """What one step adds to parameters of 1 whose gradients are 1, by name."""
    params = dict.fromkeys((*NO_KERNELS, *KERNELS, "trunk/norm/scale"), jnp.ones((1, 2, 3)))
    tree = unflatten_dict(params, sep="/")
    optimizer = make_optimizer(config, lambda step: 0.1, ("blocks_0", "blocks_1", "norm"))
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
    return {name: float(x[0, 0, 0]) for name, x in flatten_dict(updates, sep="/").items()}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_biases_scales_positions_and_tokens_do_not_decay(name):
    """Whatever their rank."""
    config = dataclasses.replace(CONFIG, name=name, decayed="kernels")
    found = _first_updates(config)
    without = _first_updates(dataclasses.replace(config, weight_decay=0.0))
    assert all(found[name] == without[name] for name in NO_KERNELS)
    if name != "lamb":  # whose step is as long as the weights, decay or not
        assert all(
            found[name] - without[name] == pytest.approx(-0.001, rel=1e-3) for name in KERNELS
        )


def test_all_parameters_decay_by_default():
    found = _first_updates(dataclasses.replace(CONFIG, name="sgd"))
    assert list(found.values()) == pytest.approx([-0.1 * 1.01] * len(found))


def test_rates_fall_from_the_heads_to_the_embedding():
    config = dataclasses.replace(
        CONFIG, name="sgd", weight_decay=0.0, layer_decay=0.5, head_rate=3.0
    )
    found = _first_updates(config)
    expected = {
        "trunk/cls_token": 0.125, "trunk/pos_embed": 0.125, "trunk/patch_embed/kernel": 0.125,
        "trunk/blocks_0/attn/qkv/kernel": 0.25, "trunk/blocks_0/norm1/scale": 0.25,
        "trunk/blocks_1/mlp/fc1/bias": 0.5, "trunk/norm/scale": 1.0,
        "main_classifier/kernel": 3.0, "main_pooling/power": 3.0,
    }  # fmt: skip
    for name, factor in expected.items():
        assert found[name] == pytest.approx(-0.1 * factor), name


def test_long_gradients_are_shortened_together():
    config = dataclasses.replace(CONFIG, name="sgd", weight_decay=0.0, clip_norm=2.5)
    optimizer = make_optimizer(config, lambda step: 0.1)
    x = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # of length 5: halved
    updates, _ = optimizer.update(gradient, optimizer.init(x), x)
    assert (float(updates["a"][0]), float(updates["b"][0])) == pytest.approx((-0.15, -0.2))
    small = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
    updates, _ = optimizer.update(small, optimizer.init(x), x)
    assert float(updates["b"][0]) == pytest.approx(-0.04)


def test_the_rate_follows_the_batch_size():
    for scaling, expected in (("none", 0.1), ("linear", 25.6), ("sqrt", 1.6)):
        config = dataclasses.replace(CONFIG, scaling=scaling)
        assert scaled_learning_rate(config, 64 * 256) == pytest.approx(expected)
        assert scaled_learning_rate(config, 64) == pytest.approx(0.1)
        rate = learning_rate_schedule(
            config, batch_size=64 * 256, num_steps=80, steps_per_epoch=10.0
        )
        # Warm-up from a tenth, and the milestones after it, scale along.
        assert float(rate(0)) == pytest.approx(0.1 * expected)
        assert float(rate(40)) == pytest.approx(0.1 * expected)


def test_the_average_by_hand():
    average = Average({"w": jnp.array([1.0])}, {"mean": jnp.array([0.0])})
    w, mean = 1.0, 0.0
    for step, value in enumerate([3.0, -1.0, 2.0]):
        average = update_average(
            average,
            {"w": jnp.array([value])},
            {"mean": jnp.array([10 * value])},
            step=jnp.asarray(step),
            decay=0.15,
        )
        d = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        w, mean = d * w + (1 - d) * value, d * mean + (1 - d) * 10 * value
        assert float(average.params["w"][0]) == pytest.approx(w)
        assert float(average.batch_stats["mean"][0]) == pytest.approx(mean)
