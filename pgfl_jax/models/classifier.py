"""The identity classifier, whose identities may be split over the mesh's ``model`` axis."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.distributed.sharding import constrain

CLASS_MULTIPLE = 128
"""Columns come in multiples of this, so that any power of two of devices up to it shares them."""


class Classifier(nn.Module):
    """Bias-free logits x·W of N identities, filled up to a multiple of `CLASS_MULTIPLE` columns.

    The filling columns have logits of -inf, that is probability 0: they take no part in any loss
    and get no gradient, so that N identities cost and learn the same whatever they are filled up
    to. On a mesh each device computes its rows' logits of its own columns of W. Neither W nor the
    logits are ever gathered; only the features are, among the devices that share the columns.

    Attributes:
        num_identities: N.
        dtype: of the factors; None: that of the features. Sums are float32 at least.
    """

    num_identities: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "batch channels"]) -> Float[Array, "batch columns"]:
        """Classify (B, D): float32 logits (B, N, rounded up), -inf beyond N."""
        columns = -(-self.num_identities // CLASS_MULTIPLE) * CLASS_MULTIPLE

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            drawn = nn.initializers.normal(0.001)(key, (shape[0], self.num_identities))
            return jnp.pad(drawn, ((0, 0), (0, shape[1] - self.num_identities)))

        kernel = self.param("kernel", init, (features.shape[-1], columns))
        dtype = self.dtype or features.dtype
        logits = jnp.matmul(
            constrain(features.astype(dtype), "data", None),
            kernel.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        real = jnp.arange(columns) < self.num_identities
        return jnp.where(real[None], constrain(logits, "data", "model"), -jnp.inf)
