"""One training step: a pure function of the state and the global batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from pgfl_jax.distributed.sharding import batch_sharding, replicated, state_shardings
from pgfl_jax.experiment import Experiment
from pgfl_jax.losses import kd_scale, total_loss
from pgfl_jax.train_state import TrainState, update_average

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


def loss_and_gradients(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Array]
) -> tuple[Any, Any, Metrics]:
    """Differentiate the total loss of a global batch.

    Args:
        experiment: the network and the loss options.
        state: the parameters.
        batch: ``images``, ``labels``, ``part_maps``, ``visibility``.

    Returns:
        The gradients, the new batch statistics, and every loss term by name (``total`` among them).
    """
    weights = experiment.config.loss

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        outputs, updates = experiment.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["images"],
            batch["part_maps"],
            batch["visibility"],
            train=True,
            mutable=["batch_stats"],
        )
        scale = kd_scale(state.step / experiment.steps_per_epoch, weights)
        total, terms = total_loss(outputs, batch, weights, kd_scale=scale)
        return total, (updates["batch_stats"], terms)

    gradients, (batch_stats, terms) = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, batch_stats, terms


def accumulated(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Array]
) -> tuple[Any, Any, Metrics]:
    """As :func:`loss_and_gradients`, over a batch in parts, one after the other.

    Gradients and terms are the means over the parts. The batch statistics of one part go into the
    next, so that the running averages move once a part. Each part is a batch of its own: triplets
    are mined and statistics taken within it.

    Args:
        experiment: the network and the loss options.
        state: the parameters.
        batch: as there, with a leading axis over the parts.
    """

    def part(carry: tuple[Any, Any], batch: Mapping[str, Array]) -> tuple[tuple[Any, Any], Metrics]:
        total, batch_stats = carry
        gradients, batch_stats, terms = loss_and_gradients(
            experiment, dataclasses.replace(state, batch_stats=batch_stats), batch
        )
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), terms

    start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
    (total, batch_stats), terms = jax.lax.scan(part, start, batch)
    count = experiment.config.train.accumulation
    gradients = jax.tree.map(lambda value: value / count, total)
    return gradients, batch_stats, jax.tree.map(lambda values: jnp.mean(values, axis=0), terms)


def make_train_step(experiment: Experiment, mesh: Mesh) -> TrainStep:
    """Compile the step for a mesh.

    The batch is split over the mesh; of the state, the classifiers are split over ``model`` and
    the rest is replicated. Since the function is written over the global batch, BatchNorm
    statistics and triplet mining are global whatever the mesh. The state's buffers are donated.

    Returns:
        ``train_step(state, batch) -> (state, metrics)``, with a batch from
        :func:`pgfl_jax.distributed.sharding.shard_batch`. The metrics, the loss terms and
        ``gradient_norm`` (before clipping), are scalars that stay on the device.
    """
    optim, parts = experiment.config.optim, experiment.config.train.accumulation
    differentiate = accumulated if parts > 1 else loss_and_gradients

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gradients, batch_stats, terms = differentiate(experiment, state, batch)
        updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = update_average(
                average, params, batch_stats, step=state.step, decay=optim.ema_decay
            )
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, average)
        return new_state, terms | {"gradient_norm": optax.tree.norm(gradients)}

    shardings = state_shardings(experiment.abstract_state(), mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh, parts)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
