"""The pooling of each branch: which part of the feature map it sees.

Reference for all: docs/method.md, "Branches".
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6
# Matrix units would round the factors of these products to bfloat16 or TF32.
_sum_of_products = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def pose_mask(visibility: Float[Array, "batch parts"]) -> Float[Array, " batch"]:
    """1 where an image has a usable pose, else 0, (B,); the only definition of ``has_pose``.

    A pose that draws no part (all joints hidden, erased or outside the image) does not count, since
    it leaves no foreground to pool over.
    """
    return (jnp.max(visibility, axis=-1) > 0).astype(visibility.dtype)


def average_pooling(
    features: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels"]:
    """MB: the mean over the map, (B, C)."""
    return jnp.mean(features, axis=(1, 2))


class GeneralizedMeanPooling(nn.Module):
    """MB's alternative: (mean over the map of F^p)^(1/p), with a learned p that starts at 3.

    Reference: F. Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019.
    """

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch channels"]:
        """Pool (B, h, w, C) to (B, C)."""
        power = self.param("power", nn.initializers.constant(3.0), ())
        return average_pooling(jnp.maximum(features, EPSILON) ** power) ** (1 / power)


def foreground_pooling(
    features: Float[Array, "batch height width channels"],
    foreground: Float[Array, "batch height width"],
) -> Float[Array, "batch channels"]:
    """FEB: f = Σ m·F / (Σ m + ε), the mean over the visible body, (B, C)."""
    total = _sum_of_products("bhwc,bhw->bc", features, foreground)
    return total / (jnp.sum(foreground, axis=(1, 2)) + EPSILON)[:, None]


def part_pooling(
    features: Float[Array, "batch height width channels"],
    part_maps: Float[Array, "batch height width parts"],
    visibility: Float[Array, "batch parts"],
) -> Float[Array, "batch channels"]:
    """SAB: s_g = v_g · Σ p_g·F_g / (Σ p_g + ε) for channel group F_g; s = concat_g s_g, (B, C)."""
    batch, height, width, channels = features.shape
    parts = part_maps.shape[-1]
    groups = features.reshape(batch, height, width, parts, channels // parts)
    total = _sum_of_products("bhwgc,bhwg->bgc", groups, part_maps)
    weight = visibility / (jnp.sum(part_maps, axis=(1, 2)) + EPSILON)
    return (total * weight[:, :, None]).reshape(batch, channels)
