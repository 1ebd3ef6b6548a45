"""ConvNeXt: 7x7 depthwise convolutions, each followed by an MLP on every cell.

Module names follow timm (``stem_0``, ``stages_0_blocks_0/conv_dw``), so weights convert by name.
The LayerNorm between the published networks' pooling and classifier is left out: the BNNeck takes
its place.

Reference: Z. Liu et al., "A ConvNet for the 2020s", CVPR 2022.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.backbones.resnet import divided, recomputing
from pgfl_jax.models.backbones.vit import (
    Images,
    Map,
    Mlp,
    PatchEmbedding,
    drop_path_scales,
    layer_norm,
    normal_init,
    scaled,
)

PATCH = 4
EPSILON = 1e-6


class _Depthwise(nn.Module):
    """A 7x7 convolution of each channel by itself."""

    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        channels = x.shape[-1]
        kernel = self.param("kernel", normal_init, (7, 7, 1, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        kernel = jnp.asarray(kernel, self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            (1, 1),
            ((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return checkpoint_name(y, "convolution") + jnp.asarray(bias, y.dtype).reshape(1, 1, 1, -1)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, LayerNorm and MLP beside a shortcut."""

    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Map, scales: Float[Array, " batch"] | None) -> Map:
        """``scales``: of the residual, by picture; None: 1."""
        y = _Depthwise(self.dtype, name="conv_dw")(x)
        y = layer_norm(EPSILON, self.dtype, "norm")(y)
        y = Mlp(False, self.dtype, name="mlp")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), x.shape[-1:], jnp.float32)
        return x + scaled(y * jnp.asarray(gamma, y.dtype).reshape(1, 1, 1, -1), scales)


class ConvNeXt(nn.Module):
    """A ConvNeXt without its classifier.

    Attributes:
        width: channels of the first stage; each stage has twice as many as the one before it.
        stage_sizes: blocks in each stage.
        strides: stride of each stage, after the patches of 4x4 pixels; the first one's is 1. With 1
            elsewhere, the 2x2 cells that a stage begins with overlap.
        drop_path: the last block's share of pictures without its residual, in training. It rises
            linearly from 0 at the first block. Above 0, training needs a key ``drop_path``.
        dtype: precision of convolutions and products; None means that of the parameters.
            Parameters, and the statistics of LayerNorm, keep their own.
        remat: what the backward pass recomputes: a name in `REMAT_POLICIES`, or ``none``.
    """

    width: int
    stage_sizes: tuple[int, ...]
    strides: tuple[int, ...] = (1, 2, 2, 1)
    drop_path: float = 0.0
    dtype: DTypeLike | None = None
    remat: str = "none"

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.width * 2 ** (len(self.stage_sizes) - 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules after the stem, in order."""
        names = []
        for i, size in enumerate(self.stage_sizes):
            names += [f"stages_{i}_downsample_{j}" for j in range(2)] if i else []
            names += [f"stages_{i}_blocks_{j}" for j in range(size)]
        return tuple(names)

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> ConvNeXt(96, (3, 3, 9, 3)).map_shape(256, 128)
        (16, 8)

        Raises:
            ValueError: the height or width is not a multiple of the stride.
        """
        return divided(height, width, PATCH * math.prod(self.strides))

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Map:
        """Map images (B, H, W, 3) to features (B, h, w, channels)."""
        x = PatchEmbedding(self.width, PATCH, PATCH, True, self.dtype, name="stem_0")(images)
        x = layer_norm(EPSILON, self.dtype, "stem_1")(x)
        block = recomputing(ConvNeXtBlock, self.remat)
        depth, batch = sum(self.stage_sizes), x.shape[0]
        scales = drop_path_scales(self, self.drop_path, depth, batch) if train else None
        number = 0
        for i, (size, stride) in enumerate(zip(self.stage_sizes, self.strides, strict=True)):
            if i:
                name = f"stages_{i}_downsample"
                x = layer_norm(EPSILON, self.dtype, f"{name}_0")(x)
                if stride == 1:
                    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
                options = self.width * 2**i, 2, stride, True, self.dtype
                x = checkpoint_name(PatchEmbedding(*options, name=f"{name}_1")(x), "convolution")
            for j in range(size):
                layer = block(self.dtype, name=f"stages_{i}_blocks_{j}")
                x = layer(x, None if scales is None else scales[number, 0])
                number += 1
        return x
