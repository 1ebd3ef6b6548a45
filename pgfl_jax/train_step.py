"""One training step: a pure function of the state and the global batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from pgfl_jax.losses import kd_scale, total_loss
from pgfl_jax.run import Run
from pgfl_jax.sharding import batch_sharding, replicated, state_shardings
from pgfl_jax.train_state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


def loss_and_gradients(
    run: Run, state: TrainState, batch: Mapping[str, Array]
) -> tuple[Any, Any, Metrics]:
    """Differentiate the total loss of a global batch.

    Args:
        run: the network and the loss options.
        state: the parameters.
        batch: ``images``, ``labels``, ``part_maps``, ``visibility``.

    Returns:
        The gradients, the new batch statistics, and every loss term by name (``total`` among them).
    """
    weights = run.config.loss

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
        outputs, updates = run.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["images"],
            batch["part_maps"],
            batch["visibility"],
            train=True,
            mutable=["batch_stats"],
        )
        scale = kd_scale(state.step / run.steps_per_epoch, weights)
        total, terms = total_loss(outputs, batch, weights, kd_scale=scale)
        return total, (updates["batch_stats"], terms)

    gradients, (batch_stats, terms) = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, batch_stats, terms


def make_train_step(run: Run, mesh: Mesh) -> TrainStep:
    """Compile the step for a mesh.

    The batch is split over the mesh and the state replicated. Since the function is written over
    the global batch, BatchNorm statistics and triplet mining are global whatever the mesh. The
    state's buffers are donated.

    Returns:
        ``train_step(state, batch) -> (state, metrics)``. The metrics, the loss terms and
        ``gradient_norm``, are scalars that stay on the device until somebody asks.
    """

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gradients, batch_stats, terms = loss_and_gradients(run, state, batch)
        updates, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, terms | {"gradient_norm": optax.tree.norm(gradients)}

    shardings = state_shardings(run.abstract_state(), mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
