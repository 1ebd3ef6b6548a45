"""The identity classifier, whose identities may be split over the mesh's ``model`` axis."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.distributed.sharding import constrain

CLASS_MULTIPLE = 128
"""The column count is a multiple of this, so that 2, 4, … 128 devices can share the columns."""


class Classifier(nn.Module):
    """Bias-free logits x·W of N identities, padded to a multiple of `CLASS_MULTIPLE` columns.

    The padding columns have logits of -inf, hence probability 0: they contribute to no loss and
    receive no gradient, so the result does not depend on the amount of padding. ``init`` marks W as
    split by column over the mesh's ``model`` axis. Each device then computes the logits of its own
    rows and columns. Neither W nor the logits are ever gathered; only the features are, among the
    devices that share the columns.

    Attributes:
        num_identities: N.
        dtype: of the factors; None takes the features' dtype. Sums are at least float32.
    """

    num_identities: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "batch channels"]) -> Float[Array, "batch columns"]:
        """Classify (B, D): float32 logits (B, N rounded up), -inf beyond N."""
        columns = -(-self.num_identities // CLASS_MULTIPLE) * CLASS_MULTIPLE

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            drawn = nn.initializers.normal(0.001)(key, (shape[0], self.num_identities))
            return jnp.pad(drawn, ((0, 0), (0, shape[1] - self.num_identities)))

        split: Callable[..., Any] = nn.with_partitioning(init, (None, "model"))
        kernel = self.param("kernel", split, (features.shape[-1], columns))
        dtype = self.dtype or features.dtype
        logits = jnp.matmul(
            constrain(features.astype(dtype), "data", None),
            kernel.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        real = jnp.arange(columns) < self.num_identities
        return jnp.where(real[None], constrain(logits, "data", "model"), -jnp.inf)
