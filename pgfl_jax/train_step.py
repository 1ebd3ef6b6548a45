"""One training step: a pure function of the state and the global batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from pgfl_jax.distributed.devices import compiler_options
from pgfl_jax.distributed.sharding import batch_sharding, replicated
from pgfl_jax.experiment import Experiment
from pgfl_jax.losses import kd_scale, total_loss
from pgfl_jax.network_input import network_input
from pgfl_jax.train_state import TrainState, update_average

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


def loss_and_gradients(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Array], part: int | Array = 0
) -> tuple[Any, Any, Metrics]:
    """Differentiate the total loss of a global batch.

    Args:
        experiment: the network and the loss options.
        state: the parameters.
        batch: ``images`` and ``erased`` (see :func:`pgfl_jax.network_input.network_input`),
            ``labels``, ``part_maps``, ``visibility``.
        part: which part of the step's batch this is, for what is random.

    Returns:
        The gradients, the new batch statistics, and every loss term by name (``total`` among them).
    """
    weights = experiment.config.loss

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        outputs, updates = experiment.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            network_input(batch, experiment.config.data),
            batch["part_maps"],
            batch["visibility"],
            train=True,
            mutable=["batch_stats"],
            rngs=random_keys(experiment, state.step, part),
        )
        scale = kd_scale(state.step / experiment.steps_per_epoch, weights)
        total, terms = total_loss(outputs, batch, weights, kd_scale=scale)
        return total, (updates["batch_stats"], terms)

    gradients, (batch_stats, terms) = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, batch_stats, terms


def random_keys(experiment: Experiment, step: Array, part: int | Array = 0) -> dict[str, Array]:
    """What the forward pass draws from: a function of seed, step and part of the batch."""
    if not experiment.config.model.drop_path:
        return {}
    key = jax.random.fold_in(jax.random.key(experiment.config.seed), step)
    return {"drop_path": jax.random.fold_in(key, part)}


def accumulated(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Array]
) -> tuple[Any, Any, Metrics]:
    """Like :func:`loss_and_gradients`, over the parts of a batch, one after the other.

    Gradients and terms are means over the parts. Each part starts from the batch statistics that
    the part before left, so the running averages move once per part. Each part is a batch of its
    own: triplets are mined and statistics taken within it.

    Args:
        experiment: the network and the loss options.
        state: the parameters.
        batch: the same arrays, with a leading axis over the parts.
    """

    def part(
        carry: tuple[Any, Any], numbered: tuple[Array, Mapping[str, Array]]
    ) -> tuple[tuple[Any, Any], Metrics]:
        (total, batch_stats), (number, batch) = carry, numbered
        gradients, batch_stats, terms = loss_and_gradients(
            experiment, dataclasses.replace(state, batch_stats=batch_stats), batch, number
        )
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), terms

    start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
    count = experiment.config.train.accumulation
    (total, batch_stats), terms = jax.lax.scan(part, start, (jnp.arange(count), batch))
    gradients = jax.tree.map(lambda value: value / count, total)
    return gradients, batch_stats, jax.tree.map(lambda values: jnp.mean(values, axis=0), terms)


def train_step(
    experiment: Experiment, state: TrainState, batch: Mapping[str, Array]
) -> tuple[TrainState, Metrics]:
    """Take one step of the optimizer on a global batch.

    Args:
        experiment: the network, the optimizer and the options.
        state: the state before the step.
        batch: as in :func:`loss_and_gradients`; with a leading axis over the parts where gradients
            are accumulated.

    Returns:
        The state after the step, and the loss terms and ``gradient_norm`` (before clipping) by
        name, scalars.
    """
    config = experiment.config
    differentiate = accumulated if config.train.accumulation > 1 else loss_and_gradients
    gradients, batch_stats, terms = differentiate(experiment, state, batch)
    updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = update_average(
            average, params, batch_stats, step=state.step, decay=config.optim.ema_decay
        )
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, average)
    return new_state, terms | {"gradient_norm": optax.tree.norm(gradients)}


def make_train_step(experiment: Experiment, mesh: Mesh) -> TrainStep:
    """Compile :func:`train_step` for a mesh.

    The batch is split over the mesh; the classifiers are split over ``model`` and the rest of the
    state is replicated. The function is written over the global batch, so BatchNorm statistics and
    triplet mining are global whatever the mesh. The state's buffers are donated.

    Returns:
        ``step(state, batch) -> (state, metrics)``, for a batch from
        :func:`pgfl_jax.distributed.sharding.shard_batch`. The metrics stay on the device.
    """

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(experiment, state, batch)

    shardings = experiment.state_shardings(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh, experiment.config.train.accumulation)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
