"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pgfl_jax.config import OptimConfig


def scaled_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """The learning rate for a batch size B: scaled by B / B₀ (``linear``) or √(B / B₀) (``sqrt``).

    Linear scaling keeps the sum of many small steps (P. Goyal et al., "Accurate, Large Minibatch
    SGD", arXiv 1706.02677). The square root keeps the variance of the update and suits adaptive
    methods (Y. You et al., "Large Batch Optimization for Deep Learning", ICLR 2020).

    >>> config = OptimConfig(learning_rate=0.1, base_batch_size=64, scaling="sqrt")
    >>> scaled_learning_rate(config, batch_size=256)
    0.2
    """
    ratio = batch_size / config.base_batch_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.scaling]
    return config.learning_rate * factor


def learning_rate_schedule(
    config: OptimConfig, *, batch_size: int, num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Linear warm-up, then steps down at milestones or half a cosine to zero.

    During ``warmup_epochs`` the rate rises from ``warmup_factor`` times the scaled rate to the
    scaled rate. Milestones also count from the start of training.

    Args:
        config: the rate, the kind of schedule and its times in epochs.
        batch_size: images per step, for the scaling.
        num_steps: length of the training, where the cosine reaches zero.
        steps_per_epoch: to turn epochs into steps.

    Returns:
        A function from the step to the rate.

    >>> config = OptimConfig(
    ...     learning_rate=0.1, schedule="step", milestones=(2.0,), decay_factor=0.1,
    ...     scaling="none", warmup_epochs=0.0,
    ... )
    >>> rate = learning_rate_schedule(config, batch_size=64, num_steps=40, steps_per_epoch=10.0)
    >>> [round(float(rate(step)), 3) for step in (0, 19, 20)]
    [0.1, 0.1, 0.01]
    """
    peak = scaled_learning_rate(config, batch_size)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(num_steps - warmup_steps, 1))
    else:
        boundaries: dict[int, float] = {}
        for epoch in config.milestones:
            # Two milestones may fall on one step.
            step = round(epoch * steps_per_epoch) - warmup_steps
            boundaries[step] = config.decay_factor * boundaries.get(step, 1.0)
        main = optax.piecewise_constant_schedule(peak, boundaries)
    if warmup_steps == 0:
        return main
    warmup = optax.linear_schedule(config.warmup_factor * peak, peak, warmup_steps)
    joined = optax.join_schedules([warmup, main], [warmup_steps])
    # Optax would divide an integer step in float32, even in x64 mode.
    return lambda step: joined(jnp.asarray(step, float))


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, layers: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The configured optimizer, after clipping by the global norm if ``clip_norm`` is set.

    ``adam`` and ``sgd`` add the decay to the gradient (L2, as ``torch.optim`` does); ``adamw``
    decouples it. With these three every parameter decays, as in the strong baseline, or the kernels
    alone. ``lars`` (Y. You et al., arXiv 1708.03888) and ``lamb`` (Y. You et al., ICLR 2020) scale
    each layer's step by the norm of its weights. There only kernels decay, and ``lars`` does not
    scale the steps of others.

    With ``layer_decay`` and ``head_rate``, each parameter has a rate of its own, decay included
    where it is decoupled.

    Args:
        config: the options.
        schedule: from the step to the rate of the backbone's last layer.
        layers: the backbone's modules after its stem or embedding, from input to output.
    """
    decay = config.weight_decay
    mask = _is_kernel if config.decayed == "kernels" else None
    if config.name == "lars":
        steps = [
            optax.lars(
                schedule,
                weight_decay=decay,
                weight_decay_mask=_is_kernel,
                trust_coefficient=config.trust_coefficient,
                trust_ratio_mask=_is_kernel,
                momentum=config.momentum,
            )
        ]
    elif config.name == "lamb":
        steps = [optax.lamb(schedule, weight_decay=decay, mask=_is_kernel)]
    else:
        scale = {
            "adam": [optax.add_decayed_weights(decay, mask), optax.scale_by_adam()],
            "adamw": [optax.scale_by_adam(), optax.add_decayed_weights(decay, mask)],
            "sgd": [optax.add_decayed_weights(decay, mask), optax.trace(config.momentum)],
        }[config.name]
        steps = [*scale, optax.scale_by_learning_rate(schedule)]
    if config.layer_decay != 1 or config.head_rate != 1:
        steps = [*steps, _own_rates(config, layers)]
    if config.clip_norm:
        steps = [optax.clip_by_global_norm(config.clip_norm), *steps]
    return optax.chain(*steps)


def _names(path: Sequence[Any]) -> list[str]:
    """The modules that a parameter is in, and its own name; boxes with shardings do not count."""
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]


def _is_kernel(params: Any) -> Any:
    """Which parameters are weights of a layer; not scales, biases, positions and tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)


def _own_rates(config: OptimConfig, layers: Sequence[str]) -> optax.GradientTransformation:
    """Scales the update of each parameter by its layer's relative rate.

    Reference: H. Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022.
    """

    def scaled(path: Sequence[Any], update: Any) -> Any:
        names = _names(path)
        if names[0] != "trunk":
            return update * config.head_rate
        depth = 1 + layers.index(names[1]) if names[1] in layers else 0
        return update * config.layer_decay ** (len(layers) - depth)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
