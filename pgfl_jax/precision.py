"""The precision of sums."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def upcast(values: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Casts to float32; float64 stays float64.

    >>> str(upcast(jnp.ones(2, jnp.bfloat16)).dtype)
    'float32'
    """
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
