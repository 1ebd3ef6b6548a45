"""Vision transformers: patches of 16x16, a class token, pre-norm blocks.

Module names follow timm (``patch_embed``, ``blocks_0/attn/qkv``, ``norm``), so weights convert by
name. The feature map holds the patches' tokens after the last LayerNorm. The class token takes part
in the attention; ``with_class_token`` returns it beside the map. Reference: A. Dosovitskiy et al.,
"An Image is Worth 16x16 Words", ICLR 2021; overlapping patches after S. He et al., "TransReID:
Transformer-based Object Re-Identification", ICCV 2021.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.backbones.resnet import recomputing
from pgfl_jax.models.convolution import patches

PATCH = 16
EPSILON = 1e-5  # of LayerNorm; 1e-6 in plain vision transformers
Images = Float[Array, "batch image_height image_width 3"]
Map = Float[Array, "batch height width channels"]
Tokens = Float[Array, "batch tokens channels"]
Cells = Float[Array, "batch *cells channels"]
Heads = Float[Array, "*batch tokens heads channels_per_head"]
Scales = Float[Array, "depth two batch"]

normal_init = nn.initializers.normal(0.02)


def residual_scales(key: Array, rates: Sequence[float], batch: int) -> Scales:
    """Drop-path's factors for the two residuals of each block: 0, or 1 / (1 - rate).

    They depend on the key and a picture's place in the global batch alone, so neither on the mesh
    nor on the precision. Zeros have the probability ``rate``.

    Reference: G. Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """
    dropped = jnp.asarray(rates, jnp.float32).reshape(-1, 1, 1)
    kept = jax.random.uniform(key, (len(rates), 2, batch), jnp.float32) >= dropped
    return kept / (1 - dropped)


def drop_path_scales(net: nn.Module, rate: float, depth: int, batch: int) -> Scales | None:
    """The factors of a network's blocks in a training step; None where nothing is dropped.

    The rate rises linearly from 0 at the first block to ``rate`` at the last one.
    """
    if not rate or net.is_initializing():
        return None
    rates = [rate * i / max(depth - 1, 1) for i in range(depth)]
    return residual_scales(net.make_rng("drop_path"), rates, batch)


def scaled(residual: Array, scales: Float[Array, " batch"] | None) -> Array:
    """A residual times its factor for each picture."""
    if scales is None:
        return residual
    return residual * scales.reshape(-1, *[1] * (residual.ndim - 1)).astype(residual.dtype)


class PatchEmbedding(nn.Module):
    """A convolution of square patches with a stride and without padding."""

    width: int
    patch: int
    stride: int
    use_bias: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch rows columns out_channels"]:
        """Map (B, H, W, C) to (B, h, w, width)."""
        size, inputs = self.patch, x.shape[-1]
        shape = size * size * inputs, self.width
        kernel = jnp.asarray(self.param("kernel", normal_init, shape, jnp.float32), self.dtype)
        x = x.astype(kernel.dtype)
        if self.stride == size:  # as a product of matrices, which is faster on CPUs
            x = patches(x, size) @ kernel
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel.reshape(size, size, inputs, self.width),
                (self.stride, self.stride),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        return x + jnp.asarray(bias, x.dtype).reshape(1, 1, 1, -1)


def attention(query: Heads, key: Heads, value: Heads, bias: Array | None = None) -> Heads:
    """softmax(q kᵀ / √channels + bias) v, with the softmax in float32 at least.

    That of ``jax.nn.dot_product_attention`` is in float32 even in double precision, where results
    would agree with PyTorch's to 1e-8 only.
    """
    query, key, value = (x.swapaxes(-3, -2) for x in (query, key, value))
    precision = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key.swapaxes(-2, -1), preferred_element_type=precision)
    scores = scores / math.sqrt(query.shape[-1])
    weights = nn.softmax(scores if bias is None else scores + bias.astype(precision))
    return jnp.matmul(weights.astype(value.dtype), value).swapaxes(-3, -2)


class _Attention(nn.Module):
    """Multi-head self-attention."""

    heads: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        batch, count, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=normal_init, dtype=self.dtype, name="qkv")(x)
        qkv = checkpoint_name(qkv, "convolution")
        by_head = batch, count, self.heads, width // self.heads
        parts = (jax.lax.slice_in_dim(qkv, i * width, (i + 1) * width, axis=2) for i in range(3))
        y = attention(*(part.reshape(by_head) for part in parts)).reshape(x.shape)
        y = nn.Dense(width, kernel_init=normal_init, dtype=self.dtype, name="proj")(y)
        return checkpoint_name(y, "convolution")


class Mlp(nn.Module):
    """Two dense layers, the first four times as wide; GELU, or CLIP's x · sigmoid(1.702 x)."""

    quick: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Cells) -> Cells:
        """Map (B, …, C) to the same shape."""
        width = x.shape[-1]
        y = nn.Dense(4 * width, kernel_init=normal_init, dtype=self.dtype, name="fc1")(x)
        y = checkpoint_name(y, "convolution")
        y = y * nn.sigmoid(1.702 * y) if self.quick else nn.gelu(y, approximate=False)
        y = nn.Dense(width, kernel_init=normal_init, dtype=self.dtype, name="fc2")(y)
        return checkpoint_name(y, "convolution")


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    heads: int
    clip: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Tokens, scales: Float[Array, "two batch"] | None) -> Tokens:
        """``scales``: of the residuals, by picture; None: 1."""
        residuals = (
            _Attention(self.heads, self.dtype, name="attn"),
            Mlp(self.clip, self.dtype, name="mlp"),
        )
        for number, residual in enumerate(residuals):
            norm = layer_norm(_epsilon(self.clip), self.dtype, f"norm{number + 1}")
            x = x + scaled(residual(norm(x)), None if scales is None else scales[number])
        return x


def layer_norm(epsilon: float, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    """In two passes, which keep more digits than one."""
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


def _epsilon(clip: bool) -> float:
    return EPSILON if clip else 1e-6


class ViT(nn.Module):
    """A vision transformer without its classifier.

    Position embeddings are parameters of the picture's size; :mod:`pgfl_jax.pretrained` resamples
    those of a file.

    Attributes:
        width: channels of a token.
        depth: number of blocks.
        heads: of the attention.
        stride: pixels from one patch to the next; below 16 they overlap.
        clip: the visual tower of CLIP: a LayerNorm before the blocks, x · sigmoid(1.702 x) as
            activation, ε = 1e-5, no bias on patches.
        drop_path: the last block's share of pictures without its residual, in training. It rises
            linearly from 0 at the first block. Above 0, training needs a key ``drop_path``.
        dtype: precision of products and tokens; None means that of the parameters. Parameters, and
            the statistics of LayerNorm, keep their own.
        remat: what the backward pass recomputes: a name in `REMAT_POLICIES`, or ``none``.
    """

    width: int
    depth: int
    heads: int
    stride: int = PATCH
    clip: bool = False
    drop_path: float = 0.0
    dtype: DTypeLike | None = None
    remat: str = "none"

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.width

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules after the embedding, in order."""
        return (*(f"blocks_{i}" for i in range(self.depth)), "norm")

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> ViT(192, 12, 3).map_shape(256, 128)
        (16, 8)
        >>> ViT(192, 12, 3, stride=12).map_shape(256, 128)
        (21, 10)

        Raises:
            ValueError: a side is below 16 pixels; or patches do not overlap and a side is not a
                multiple of 16.
        """
        for side in (height, width):
            if self.stride == PATCH and side % PATCH:
                raise ValueError(f"must be a multiple of the patches' size, {PATCH}")
            if 0 < side < PATCH:
                raise ValueError(f"must be at least {PATCH}, the patches' size")
        rows, columns = (max(0, 1 + (side - PATCH) // self.stride) for side in (height, width))
        return rows, columns

    def __call__(self, images: Images, *, train: bool) -> Map:
        """Map images (B, H, W, 3) to features (B, h, w, width)."""
        return self._map(self._tokens(images, train), images)

    def with_class_token(
        self, images: Images, *, train: bool
    ) -> tuple[Map, Float[Array, "batch channels"]]:
        """The same features, and the class token (B, width) after the last LayerNorm."""
        x = self._tokens(images, train)
        token = jax.lax.slice_in_dim(x, 0, 1, axis=1)
        return self._map(x, images), token.reshape(x.shape[0], self.width)

    def _map(self, x: Tokens, images: Images) -> Map:
        patches_alone = jax.lax.slice_in_dim(x, 1, x.shape[1], axis=1)
        return patches_alone.reshape(x.shape[0], *self.map_shape(*images.shape[1:3]), self.width)

    @nn.compact
    def _tokens(self, images: Images, train: bool) -> Tokens:
        options = self.width, PATCH, self.stride, not self.clip, self.dtype
        x = PatchEmbedding(*options, name="patch_embed")(images)
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0))) + self._offsets(rows * columns).astype(x.dtype)
        if self.clip:
            x = layer_norm(EPSILON, self.dtype, "norm_pre")(x)
        block = recomputing(Block, self.remat)
        scales = drop_path_scales(self, self.drop_path, self.depth, batch) if train else None
        for i in range(self.depth):
            layer = block(self.heads, self.clip, self.dtype, name=f"blocks_{i}")
            x = layer(x, None if scales is None else scales[i])
        return layer_norm(_epsilon(self.clip), self.dtype, "norm")(x)

    def _offsets(self, count: int) -> Float[Array, "1 tokens channels"]:
        """What is added to each token, the class token at the head of them included."""
        token = self.param("cls_token", normal_init, (1, 1, self.width), jnp.float32)
        positions = self.param("pos_embed", normal_init, (1, 1 + count, self.width), jnp.float32)
        return jnp.asarray(positions) + jnp.pad(jnp.asarray(token), ((0, 0), (0, count), (0, 0)))
