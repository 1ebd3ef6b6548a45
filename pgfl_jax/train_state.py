"""Everything that training carries from one step to the next."""

from typing import Any

import flax.struct
import optax


@flax.struct.dataclass
class TrainState:
    """A pytree: the whole of it is saved, restored and donated.

    Its leaves are arrays, or their abstract shapes where a checkpoint is restored.

    Attributes:
        step: () int32, steps taken so far.
        params: parameters of all branches.
        batch_stats: running statistics of the BatchNorms.
        opt_state: state of the optimizer.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
