"""Optimizers and learning-rate schedules."""

import optax

from pgfl_jax.config import OptimConfig


def learning_rate_schedule(
    config: OptimConfig, *, num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """Linear warm-up, then steps down at milestones or half a cosine to zero.

    In the warm-up the rate rises from ``warmup_factor · learning_rate`` to ``learning_rate`` over
    ``warmup_epochs``. Milestones, too, count from the start of training.

    Args:
        config: the rate, the kind of schedule and its times in epochs.
        num_steps: length of the training, where the cosine reaches zero.
        steps_per_epoch: to turn epochs into steps.

    Returns:
        A function from the step to the rate.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, max(num_steps - warmup_steps, 1))
    else:
        boundaries = {
            round(epoch * steps_per_epoch) - warmup_steps: config.decay_factor
            for epoch in config.milestones
        }
        main = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    if warmup_steps == 0:
        return main
    start = config.warmup_factor * config.learning_rate
    warmup = optax.linear_schedule(start, config.learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The configured optimizer.

    ``adam`` and ``sgd`` add the decay to the gradient (L2, as ``torch.optim`` does), ``adamw``
    decouples it. Every parameter decays, as in the strong baseline.
    """
    if config.name == "adamw":
        scale = [optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay)]
    elif config.name == "adam":
        scale = [optax.add_decayed_weights(config.weight_decay), optax.scale_by_adam()]
    else:
        scale = [optax.add_decayed_weights(config.weight_decay), optax.trace(config.momentum)]
    return optax.chain(*scale, optax.scale_by_learning_rate(schedule))
