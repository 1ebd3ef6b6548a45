"""What all losses share: masked means and safe logarithms (docs/method.md, "Losses").

All losses follow two rules. They compute in float32 at least, whatever the network's precision. And
a masked item adds exactly nothing to the value or to any gradient, so a batch without poses gives
pose terms of exactly 0 rather than 0 / 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

EPS = 1e-6
"""The smallest probability passed to a logarithm, and the smallest norm used as a divisor."""

TINY = 1e-12
"""The smallest sum used as a divisor of a map; its inverse square is still finite in float32."""


def masked_mean(
    values: Float[Array, "*shape"],
    mask: Float[Array, "*shape"] | Bool[Array, "*shape"] | None = None,
) -> Float[Array, ""]:
    """Σ mask·values / Σ mask, over all axes.

    >>> float(masked_mean(jnp.array([1.0, 2.0, 30.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    >>> float(masked_mean(jnp.array([1.0, 2.0]), jnp.zeros(2)))
    0.0

    Args:
        values: what to average; must be finite wherever its gradient is taken.
        mask: weights in [0, 1]; None means all ones.

    Returns:
        The weighted mean; exactly 0, with zero gradients, when the mask is empty.
    """
    if mask is None:
        return jnp.mean(values)
    weights = mask.astype(values.dtype)
    total = jnp.sum(weights)
    # where(), since 0·NaN is NaN: a masked NaN must not count.
    kept = jnp.where(weights > 0, values, 0) * weights
    return jnp.sum(kept) / jnp.where(total > 0, total, 1)


def spatial_distribution(
    maps: Float[Array, "batch height width *parts"],
) -> Float[Array, "batch height width *parts"]:
    """Divides each map by its sum over height and width.

    >>> spatial_distribution(jnp.array([[[1.0, 3.0]]])).tolist()
    [[[0.25, 0.75]]]

    Args:
        maps: non-negative.

    Returns:
        Maps that sum to 1; an all-zero map stays zero, with finite gradients.
    """
    return maps / jnp.maximum(jnp.sum(maps, axis=(1, 2), keepdims=True), TINY)


def safe_log(probabilities: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Log of max(p, EPS): at least -13.8, with gradient 0 below EPS.

    >>> [round(x, 1) for x in safe_log(jnp.array([0.0, 1.0])).tolist()]
    [-13.8, 0.0]
    """
    return jnp.log(jnp.maximum(probabilities, EPS))
