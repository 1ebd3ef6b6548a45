"""The pooling of each branch: which part of the feature map it sees.

Reference for all: docs/method.md, "Branches".
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

NUM_PARTS = 8
# ``maps[..., PART_FLIP]`` swaps left and right parts, as input_pipeline.keypoints does.
PART_FLIP = 0, 1, 3, 2, 5, 4, 7, 6
EPSILON = 1e-6


def pose_mask(visibility: Float[Array, "batch parts"]) -> Float[Array, " batch"]:
    """1 where an image has a usable pose, else 0, (B,); the only definition of ``has_pose``.

    A pose that draws no part (all joints hidden, erased or outside the image) does not count, since
    it leaves no foreground to pool over.
    """
    return (jnp.max(visibility, axis=-1) > 0).astype(visibility.dtype)


class Pooled(NamedTuple):
    """The output of MB's pooling.

    Attributes:
        embedding: (B, C).
        seen: (B, P) in [0, 1], predicted visibility of the person or of each part; it weights P
            equal groups of channels. None unless the pooling predicts maps.
        map_logits: (B, h, w, P) logits of the predicted maps, likewise.
        features: (B, h, w, C) the map that was pooled, if it is not the trunk's.
    """

    embedding: Float[Array, "batch channels"]
    seen: Float[Array, "batch maps"] | None = None
    map_logits: Float[Array, "batch height width maps"] | None = None
    features: Float[Array, "batch height width channels"] | None = None


class AveragePooling(nn.Module):
    """MB's pooling in the paper's form: the mean over the map."""

    def __call__(self, features: Float[Array, "batch height width channels"]) -> Pooled:
        """Pool (B, h, w, C) to (B, C)."""
        return Pooled(jnp.mean(features, axis=(1, 2)))


class ClassToken(nn.Module):
    """MB's vector is the class token of a vision transformer; nothing is pooled."""

    def __call__(self, token: Float[Array, "batch channels"]) -> Pooled:
        """Take (B, C) as it is."""
        return Pooled(token)


class ContextPooling(nn.Module):
    """MB's pooling by a plain mean, of features that have seen their neighbourhood.

    With h (B, h, w, 64) as in :class:`PredictedPooling`, w = sigmoid(U h + b) and w̄ its mean over
    an image's cells and channels, g = GAP(w / w̄ ⊙ F): a cell suppresses or strengthens its channels
    by what is around it. U and b start at 0, so the pooling starts as the mean of F. Without w̄ a
    training can end with all features at 0, which is where a batch-hard triplet leads at first.

    Attributes:
        dtype: of the 3×3 convolution; None: the parameters' dtype.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "batch height width channels"]) -> Pooled:
        """Pool (B, h, w, C) to (B, C)."""
        gate = _from_zero(features.shape[-1], "gate")
        weight = nn.sigmoid(gate(nn.relu(_around(self.dtype)(features))))
        mean = jnp.mean(weight, axis=(1, 2, 3), keepdims=True)
        own = features * (weight / jnp.maximum(mean, EPSILON))
        return Pooled(jnp.mean(own, axis=(1, 2)), features=own)


class GeneralizedMeanPooling(nn.Module):
    """MB's alternative: (mean over the map of F^p)^(1/p), with a learned p that starts at 3.

    Reference: F. Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019.
    """

    @nn.compact
    def __call__(self, features: Float[Array, "batch height width channels"]) -> Pooled:
        """Pool (B, h, w, C) to (B, C)."""
        power = self.param("power", nn.initializers.constant(3.0), ())
        mean = jnp.mean(jnp.maximum(features, EPSILON) ** power, axis=(1, 2))
        return Pooled(mean ** (1 / power))


def part_pooling(
    features: Float[Array, "batch height width channels"],
    part_maps: Float[Array, "batch height width parts"],
) -> Float[Array, "batch channels"]:
    """Average each of G equal groups of channels over its part; (B, C).

    s_g = Σ p_g·F_g / (Σ p_g + ε) for the channel group F_g, and s = concat_g s_g. SAB has a map per
    part; FEB has one map, the foreground, for all channels.
    """
    # Not as a product of matrices, for which matrix units would round to bfloat16 or TF32.
    weights = jnp.repeat(part_maps, features.shape[-1] // part_maps.shape[-1], axis=-1)
    total = jnp.sum(features * weights, axis=(1, 2))
    return total / (jnp.sum(weights, axis=(1, 2)) + EPSILON)


class PredictedPooling(nn.Module):
    """MB's pooling by maps that it predicts from its own features: SAB without a pose.

    A 3×3 convolution with ReLU to h (B, h, w, 64), which sees the neighbouring cells, and a 1×1
    convolution give the maps p̂_g = sigmoid(w_g·h + b_g). Each averages its group of channels.
    max p̂_g is the part's visibility. w and b start at 0, so the pooling starts as a plain mean.

    Attributes:
        maps: number of maps, one per part. With 1 it is the foreground's and pools all channels.
        dtype: of the 3×3 convolution; None: the parameters' dtype.
    """

    maps: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "batch height width channels"]) -> Pooled:
        """Pool (B, h, w, C) to (B, C)."""
        logits = _from_zero(self.maps, "maps")(nn.relu(_around(self.dtype)(features)))
        maps = nn.sigmoid(logits)
        return Pooled(part_pooling(features, maps), jnp.max(maps, axis=(1, 2)), logits)


def _around(dtype: DTypeLike | None) -> nn.Conv:
    """The 3×3 convolution to 64 channels by which a cell sees its neighbours."""
    fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(64, (3, 3), kernel_init=fan_out, dtype=dtype, name="hidden")


def _from_zero(channels: int, name: str) -> nn.Dense:
    """A 1×1 convolution that starts at 0, in full precision on any device."""
    return nn.Dense(
        channels, kernel_init=nn.initializers.zeros, precision=jax.lax.Precision.HIGHEST, name=name
    )
