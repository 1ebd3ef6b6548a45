"""Swin transformers: attention in windows of 7x7 cells, which every other block shifts by 3.

Module names follow timm (``layers_0_blocks_0/attn/qkv``, ``layers_1_downsample``, ``norm``), so
weights convert by name. Maps that windows do not divide are padded with zeros below and to the
right, after LayerNorm and before the shift, as in torchvision, SOLIDER and the authors' code for
detection. (timm pads after the shift.) An axis that one window covers is not shifted.

Reference: Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
ICCV 2021.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pgfl_jax.models.backbones.resnet import divided, recomputing
from pgfl_jax.models.backbones.vit import (
    EPSILON,
    Images,
    Map,
    Mlp,
    PatchEmbedding,
    Tokens,
    attention,
    drop_path_scales,
    layer_norm,
    normal_init,
    scaled,
)

PATCH = 4
Grid = tuple[int, int]


def relative_positions(window: int) -> Int[np.ndarray, "cells cells"]:
    """For each pair of a window's cells, the row of its offset in the table of biases.

    >>> relative_positions(2)[0].tolist()
    [4, 3, 1, 0]
    """
    cells = np.indices((window, window)).reshape(2, -1)
    rows, columns = cells[:, :, None] - cells[:, None, :] + window - 1
    return rows * (2 * window - 1) + columns


def shift_mask(grid: Grid, window: int, shifts: Grid) -> Float[np.ndarray, "windows cells cells"]:
    """-100 for cells of a shifted window that are not neighbours in the map, else 0.

    Args:
        grid: rows and columns of the padded map.
        window: side of a window.
        shifts: of rows and columns, by which the map was rolled up and to the left.
    """
    parts = []
    for length, shift in zip(grid, shifts, strict=True):
        part = np.zeros(length, int)
        if shift:
            part[-window:-shift], part[-shift:] = 1, 2
        parts.append(part)
    label = 3 * parts[0][:, None] + parts[1]
    label = label.reshape(grid[0] // window, window, grid[1] // window, window)
    label = label.swapaxes(1, 2).reshape(-1, window * window)
    return np.where(label[:, :, None] == label[:, None, :], 0.0, -100.0)


class _WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for each offset between cells."""

    heads: int
    window: int
    shift: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Map) -> Map:
        batch, rows, columns, width = x.shape
        side = self.window
        x = jnp.pad(x, ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
        grid = x.shape[1], x.shape[2]
        shifts = tuple(self.shift if length > side else 0 for length in grid)
        x = _rolled(x, (-shifts[0], -shifts[1]))
        x = x.reshape(batch, grid[0] // side, side, grid[1] // side, side, width)
        x = x.swapaxes(2, 3).reshape(batch, grid[0] * grid[1], width)
        qkv = nn.Dense(3 * width, kernel_init=normal_init, dtype=self.dtype, name="qkv")(x)
        qkv = checkpoint_name(qkv, "convolution")
        windows = grid[0] * grid[1] // side**2
        by_head = batch, windows, side * side, self.heads, width // self.heads
        query, key, value = (
            jax.lax.slice_in_dim(qkv, i * width, (i + 1) * width, axis=2).reshape(by_head)
            for i in range(3)
        )
        y = attention(query, key, value, self._bias(grid, shifts)).reshape(x.shape)
        y = nn.Dense(width, kernel_init=normal_init, dtype=self.dtype, name="proj")(y)
        y = checkpoint_name(y, "convolution")
        y = y.reshape(batch, grid[0] // side, grid[1] // side, side, side, width)
        y = _rolled(y.swapaxes(2, 3).reshape(batch, *grid, width), shifts)
        return jax.lax.slice(y, (0, 0, 0, 0), (batch, rows, columns, width))

    def _bias(self, grid: Grid, shifts: Any) -> Float[Array, "1 windows heads cells cells"]:
        shape = (2 * self.window - 1) ** 2, self.heads
        table = self.param("relative_position_bias_table", normal_init, shape, jnp.float32)
        bias = jnp.asarray(table)[relative_positions(self.window)].transpose(2, 0, 1)[None, None]
        if not any(shifts):
            return bias
        mask = shift_mask(grid, self.window, shifts)[None, :, None]
        return bias + jnp.asarray(mask, bias.dtype)


def _rolled(x: Map, shifts: Any) -> Map:
    return jnp.roll(x, shifts, (1, 2)) if any(shifts) else x


class SwinBlock(nn.Module):
    """Attention in windows and MLP, each after a LayerNorm and beside a shortcut.

    Attributes:
        grid: rows and columns of the map.
        heads: of the attention.
        window: side of a window.
        shift: cells by which windows are shifted.
        dtype: as that of :class:`Swin`.
    """

    grid: Grid
    heads: int
    window: int
    shift: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Tokens, scales: Float[Array, "two batch"] | None) -> Tokens:
        """``scales``: of the residuals, by picture; None: 1."""
        of_attention, of_mlp = (None, None) if scales is None else (scales[0], scales[1])
        y = layer_norm(EPSILON, self.dtype, "norm1")(x).reshape(x.shape[0], *self.grid, x.shape[2])
        options = self.heads, self.window, self.shift, self.dtype
        y = _WindowAttention(*options, name="attn")(y).reshape(x.shape)
        x = x + scaled(y, of_attention)
        y = layer_norm(EPSILON, self.dtype, "norm2")(x)
        return x + scaled(Mlp(False, self.dtype, name="mlp")(y), of_mlp)


class Merging(nn.Module):
    """A dense layer on each cell and its neighbours below and to the right, 2x2 cells in all."""

    stride: int
    use_bias: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Map) -> Float[Array, "batch out_tokens out_channels"]:
        """Map (B, h, w, C) to (B, h / stride · w / stride, 2 · C)."""
        batch, height, width, channels = x.shape
        if self.stride == 1:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        cells = [
            jax.lax.slice(
                x,
                (0, i, j, 0),
                (batch, i + height - self.stride + 1, j + width - self.stride + 1, channels),
                (1, self.stride, self.stride, 1),
            )
            for j in range(2)
            for i in range(2)
        ]
        count = cells[0].shape[1] * cells[0].shape[2]
        x = jnp.concatenate(cells, axis=-1).reshape(batch, count, 4 * channels)
        x = layer_norm(EPSILON, self.dtype, "norm")(x)
        options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype}
        x = nn.Dense(2 * channels, kernel_init=normal_init, name="reduction", **options)(x)
        return checkpoint_name(x, "convolution")


class Swin(nn.Module):
    """A Swin transformer without its classifier.

    Attributes:
        width: channels of the first stage; each stage has twice as many as the one before it.
        stage_sizes: blocks in each stage.
        strides: stride of each stage, after the patches of 4x4 pixels; the first one's is 1. With 1
            elsewhere, the 2x2 cells that are merged overlap.
        head_width: channels of each head of the attention.
        window: side of a window, in cells.
        solider: with a bias after each merging, which takes up SOLIDER's semantic layers.
        drop_path: the last block's share of pictures without its residual, in training. It rises
            linearly from 0 at the first block. Above 0, training needs a key ``drop_path``.
        dtype: precision of products and tokens; None means that of the parameters. Parameters, and
            the statistics of LayerNorm, keep their own.
        remat: what the backward pass recomputes: a name in `REMAT_POLICIES`, or ``none``.
    """

    width: int
    stage_sizes: tuple[int, ...]
    strides: tuple[int, ...] = (1, 2, 2, 1)
    head_width: int = 32
    window: int = 7
    solider: bool = False
    drop_path: float = 0.0
    dtype: DTypeLike | None = None
    remat: str = "none"

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.width * 2 ** (len(self.stage_sizes) - 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules after the embedding, in order."""
        names = []
        for i, size in enumerate(self.stage_sizes):
            names += [f"layers_{i}_downsample"] if i else []
            names += [f"layers_{i}_blocks_{j}" for j in range(size)]
        return (*names, "norm")

    def map_shape(self, height: int, width: int) -> Grid:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> Swin(96, (2, 2, 6, 2)).map_shape(256, 128)
        (16, 8)

        Raises:
            ValueError: the height or width is not a multiple of the stride.
        """
        return divided(height, width, PATCH * math.prod(self.strides))

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Map:
        """Map images (B, H, W, 3) to features (B, h, w, channels)."""
        x = PatchEmbedding(self.width, PATCH, PATCH, True, self.dtype, name="patch_embed")(images)
        batch, rows, columns, _ = x.shape
        x = x.reshape(batch, rows * columns, self.width)
        x = layer_norm(EPSILON, self.dtype, "patch_embed_norm")(x)
        block = recomputing(SwinBlock, self.remat)
        depth = sum(self.stage_sizes)
        scales = drop_path_scales(self, self.drop_path, depth, batch) if train else None
        number = 0
        for i, (size, stride) in enumerate(zip(self.stage_sizes, self.strides, strict=True)):
            if i:
                x = x.reshape(batch, rows, columns, x.shape[2])
                name = f"layers_{i}_downsample"
                x = Merging(stride, self.solider, self.dtype, name=name)(x)
                rows, columns = rows // stride, columns // stride
            heads = x.shape[-1] // self.head_width
            for j in range(size):
                shift = j % 2 * (self.window // 2)
                options = (rows, columns), heads, self.window, shift, self.dtype
                layer = block(*options, name=f"layers_{i}_blocks_{j}")
                x = layer(x, None if scales is None else scales[number])
                number += 1
        x = layer_norm(EPSILON, self.dtype, "norm")(x)
        return x.reshape(batch, rows, columns, self.channels)
