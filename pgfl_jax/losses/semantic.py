"""Channel groups that attend to body parts (docs/method.md, loss 4).

The C channels split into G equal, consecutive groups, one per part. With the normalised part map
p̂_g = p_g / Σ p_g and the group's normalised energy a_g = Σ_{c in g} F_c² / Σ_cells Σ_{c in g} F_c²,
a part costs KL(p̂_g ‖ a_g) = Σ_cells p̂_g·(log p̂_g - log a_g). Logarithms are taken of max(x, EPS).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import masked_mean, safe_log, spatial_distribution
from pgfl_jax.precision import upcast


def channel_group_semantic(
    features: Float[Array, "batch height width channels"],
    part_maps: Float[Array, "batch height width parts"],
    visibility: Float[Array, "batch parts"],
) -> Float[Array, ""]:
    """Mean divergence of the channel groups' energy from their parts' maps.

    Both parts cover the first of two cells. The first group spreads over both cells, which costs
    log 2; the second keeps to its part, which costs nothing.

    >>> features = jnp.array([[[[1.0, 2.0], [1.0, 0.0]]]])
    >>> part_maps = jnp.array([[[[1.0, 1.0], [0.0, 0.0]]]])
    >>> round(float(channel_group_semantic(features, part_maps, jnp.ones((1, 2)))), 4)  # log(2) / 2
    0.3466

    Args:
        features: feature map; the number of channels is a multiple of the number of parts.
        part_maps: one map in [0, 1] per part.
        visibility: in [0, 1]; the weight of each part of each image. A part whose map is empty
            counts as invisible.

    Returns:
        The mean in nats over all parts of all images, weighted by visibility; exactly 0 when
        nothing is visible.

    Raises:
        ValueError: the channels do not divide evenly among the parts.

    Reference: docs/method.md, loss 4.
    """
    channels, parts = features.shape[-1], part_maps.shape[-1]
    if channels % parts:
        raise ValueError(f"{channels} channels do not split into {parts} equal groups")
    groups = upcast(features).reshape(*features.shape[:-1], parts, channels // parts)
    energy = spatial_distribution(jnp.sum(jnp.square(groups), axis=-1))
    target = spatial_distribution(upcast(part_maps))
    divergence = jnp.sum(target * (safe_log(target) - safe_log(energy)), axis=(1, 2))
    drawn = jnp.any(part_maps > 0, axis=(1, 2))
    return masked_mean(divergence, jnp.where(drawn, visibility, 0))
