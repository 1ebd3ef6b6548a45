"""What every loss shares: precision, masked means and safe logarithms (docs/method.md, "Losses").

Two rules hold for all losses. The arithmetic runs in float32 at least, whatever the network
computes in. And an item that a mask leaves out adds exactly nothing to the value or to a gradient,
so that a batch without any pose gives pose terms of exactly 0 instead of 0 / 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

EPS = 1e-6
"""The least probability that a logarithm sees, and the least norm that is divided by."""

TINY = 1e-12
"""The least sum that a map is divided by; its inverse square is still finite in float32."""


def upcast(values: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Brings values to float32; float64 stays as it is."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def masked_mean(
    values: Float[Array, "*shape"],
    mask: Float[Array, "*shape"] | Bool[Array, "*shape"] | None = None,
) -> Float[Array, ""]:
    """Σ mask·values / Σ mask, over all axes.

    Args:
        values: what is averaged; must be finite wherever its gradient is taken.
        mask: weights in [0, 1]; None means all ones.

    Returns:
        The weighted mean; exactly 0, with zero gradients, when the mask is empty.
    """
    if mask is None:
        return jnp.mean(values)
    weights = mask.astype(values.dtype)
    total = jnp.sum(weights)
    # where() and not only a product: a NaN that is masked out stays out.
    kept = jnp.where(weights > 0, values, 0) * weights
    return jnp.sum(kept) / jnp.where(total > 0, total, 1)


def spatial_distribution(
    maps: Float[Array, "batch height width *parts"],
) -> Float[Array, "batch height width *parts"]:
    """Each map over its sum over height and width.

    Args:
        maps: non-negative.

    Returns:
        Maps that sum to 1; an all-zero map stays zero, with finite gradients.
    """
    return maps / jnp.maximum(jnp.sum(maps, axis=(1, 2), keepdims=True), TINY)


def safe_log(probabilities: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Log of max(p, EPS): at least -13.8, with gradient 0 below EPS."""
    return jnp.log(jnp.maximum(probabilities, EPS))
