"""Foreground alignment (docs/method.md, loss 3).

With the energy e = Σ_c F_c², its share per cell a = e / Σ_cells e and the foreground map m, an
image costs -log Σ_cells m·a: 0 when all energy lies where m = 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import masked_mean, safe_log, spatial_distribution, upcast


def foreground_alignment(
    features: Float[Array, "batch height width channels"],
    foreground: Float[Array, "batch height width"],
    has_pose: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean -log share of the spatial energy that falls on the foreground.

    Args:
        features: the main branch's feature map.
        foreground: foreground map in [0, 1] (max over part maps).
        has_pose: 1 where the image has a pose annotation, else 0.

    Returns:
        The masked mean in nats, in [0, 13.8]; exactly 0 when no image has a pose.

    Reference: docs/method.md, loss 3.
    """
    energy = spatial_distribution(jnp.sum(jnp.square(upcast(features)), axis=-1))
    inside = jnp.sum(energy * foreground, axis=(1, 2))
    return masked_mean(-safe_log(inside), has_pose)
