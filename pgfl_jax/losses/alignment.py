"""Foreground alignment (docs/method.md, loss 3).

Let e = Σ_c F_c² be the energy, a = e / Σ_cells e its share per cell, and m the foreground map. An
image costs -log Σ_cells m·a, which is 0 when all energy falls where m = 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import masked_mean, safe_log, spatial_distribution
from pgfl_jax.precision import upcast


def foreground_alignment(
    features: Float[Array, "batch height width channels"],
    foreground: Float[Array, "batch height width"],
    has_pose: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean -log share of the spatial energy that falls on the foreground.

    Two cells have energies 1 and 4, and the person covers the second: -log(4 / 5).

    >>> features = jnp.array([[[[1.0], [2.0]]]])
    >>> foreground = jnp.array([[[0.0, 1.0]]])
    >>> round(float(foreground_alignment(features, foreground, jnp.ones(1))), 4)
    0.2231

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
