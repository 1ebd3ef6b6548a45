"""Everything that training carries from one step to the next."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Average:
    """Running averages over the steps.

    Attributes:
        params: averages of the parameters.
        batch_stats: averages of the BatchNorms' running statistics, which belong to the parameters.
    """

    params: Any
    batch_stats: Any


@flax.struct.dataclass
class TrainState:
    """A pytree that is saved, restored and donated as a whole.

    Its leaves are arrays; or their abstract shapes, or their shardings, when it says what to
    restore.

    Attributes:
        step: () int32, steps taken so far.
        params: parameters of all branches.
        batch_stats: running statistics of the BatchNorms.
        opt_state: state of the optimizer.
        average: exponential moving average of parameters and statistics; None unless
            ``optim.ema_decay`` is set.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any

    def averaged(self) -> "TrainState":
        """This state with the averages in place of parameters and statistics."""
        if self.average is None:
            raise ValueError("no average is kept: config.optim.ema_decay is 0")
        return dataclasses.replace(
            self, params=self.average.params, batch_stats=self.average.batch_stats
        )


def update_average(
    average: Average, params: Any, batch_stats: Any, *, step: jax.Array, decay: float
) -> Average:
    """One step of the exponential moving average, a ← d·a + (1 − d)·x.

    At step t, counted from 0, d = min(decay, (1 + t) / (10 + t)), so that the initial values soon
    lose their weight: after 90 steps d has risen to 0.91, after 9,000 to 0.999.
    """
    count = jnp.asarray(step, float)  # JAX would divide integers in float32, even in x64 mode
    rate = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(
        lambda old, new: rate * old + (1 - rate) * new, average, Average(params, batch_stats)
    )
