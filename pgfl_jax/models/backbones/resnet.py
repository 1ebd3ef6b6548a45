"""Residual networks in torchvision's v1.5 layout (stride on the 3x3), last stride 1.

Module names follow torchvision (``conv1``, ``layer1_0/conv1``, ``downsample_conv``), so weights
convert by name. Reference: K. He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016; last stride 1 after H. Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
Re-Identification", CVPRW 2019; IBN-a after X. Pan et al., "Two at Once: Enhancing Learning and
Generalization Capacities via IBN-Net", ECCV 2018.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.batch_norm import BatchNorm
from pgfl_jax.models.convolution import Kernel, convolve, patches
from pgfl_jax.models.pooling import max_pool

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]


# What the backward pass keeps of a block's forward pass; it recomputes the rest.
REMAT_POLICIES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        # The convolutions' results; normalisation and ReLU are recomputed.
        "convolutions": jax.checkpoint_policies.save_only_these_names("convolution"),
        # Only the block's input.
        "blocks": jax.checkpoint_policies.nothing_saveable,
    }
)


def recomputing(block: Any, remat: str, *, static_argnums: tuple[int, ...] = ()) -> Any:
    """A module class whose backward pass recomputes what ``remat`` says.

    Args:
        block: the class.
        remat: a name in `REMAT_POLICIES`, or ``none``.
        static_argnums: arguments of its call that are no arrays; the module itself is number 0.
    """
    if remat == "none":
        return block
    return nn.remat(block, policy=REMAT_POLICIES[remat], static_argnums=static_argnums)


def divided(height: int, width: int, stride: int) -> tuple[int, int]:
    """(height / stride, width / stride).

    Raises:
        ValueError: the height or width is not a multiple of the stride.
    """
    if height % stride or width % stride:
        raise ValueError(f"must be a multiple of the stride, {stride}")
    return height // stride, width // stride


class InstanceBatchNorm(nn.Module):
    """IBN-a: normalises half of the channels per image and the rest over the batch."""

    use_running_average: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Normalise (B, h, w, C)."""
        half = x.shape[-1] // 2
        by_image = nn.InstanceNorm(
            epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="IN"
        )
        over_batch = BatchNorm(x.shape[-1] - half, self.use_running_average, self.dtype, name="BN")
        halves = (
            by_image(jax.lax.slice_in_dim(x, 0, half, axis=3)),
            over_batch(jax.lax.slice_in_dim(x, half, x.shape[3], axis=3)),
        )
        return jnp.concatenate(halves, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Makes convolutions with BatchNorm inside the block that calls it."""

    train: bool
    dtype: DTypeLike | None

    def norm(self, features: int, name: str) -> BatchNorm:
        return BatchNorm(features, not self.train, self.dtype, name=name)

    def __call__(
        self,
        x: Array,
        features: int,
        size: int,
        names: tuple[str, str],
        stride: int = 1,
        shortcut: Array | None = None,
        *,
        relu: bool = True,
    ) -> Array:
        """act(BatchNorm(x * kernel) + shortcut)."""
        kernel = Kernel(features, size, name=names[0])(x.shape[-1])
        return self.norm(features, names[1]).after(x, kernel, stride, shortcut, relu=relu)

    def shortcut(self, x: Array, features: int, stride: int) -> Array:
        """``x`` itself, or brought to the block's shape."""
        if x.shape[-1] == features and stride == 1:
            return x
        return self(x, features, 1, ("downsample_conv", "downsample_bn"), stride, relu=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18/34."""

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None
    expansion = 1

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h / stride, w / stride, width)."""
        layer = _Layers(train, self.dtype)
        shortcut = layer.shortcut(x, self.width, self.stride)
        y = layer(x, self.width, 3, ("conv1", "bn1"), self.stride)
        return layer(y, self.width, 3, ("conv2", "bn2"), shortcut=shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; ResNet-50.

    With ``ibn``, the first convolution is followed by :class:`InstanceBatchNorm`.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None
    ibn: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h / stride, w / stride, 4 · width)."""
        layer = _Layers(train, self.dtype)
        outputs = self.width * self.expansion
        shortcut = layer.shortcut(x, outputs, self.stride)
        if self.ibn:
            kernel = Kernel(self.width, 1, name="conv1")(x.shape[-1])
            dtype = self.dtype or kernel.dtype
            y = convolve(x.astype(dtype), kernel.astype(dtype), 1)
            y = checkpoint_name(y, "convolution")
            y = nn.relu(InstanceBatchNorm(not train, self.dtype, name="bn1")(y))
        else:
            y = layer(x, self.width, 1, ("conv1", "bn1"))
        y = layer(y, self.width, 3, ("conv2", "bn2"), self.stride)
        return layer(y, outputs, 1, ("conv3", "bn3"), shortcut=shortcut)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        stage_sizes: blocks in each stage.
        widths: width of each stage (a bottleneck outputs four times as many channels).
        strides: stride of each stage.
        patch_stem: embed 4x4 patches by one matrix product instead of the 7x7 convolution and
            max-pooling; far cheaper on small images and CPUs.
        ibn_stages: how many stages, from the first, use :class:`InstanceBatchNorm`.
        dtype: precision of convolutions and normalised values; None means that of the parameters.
            Parameters and statistics keep their own.
        remat: what the backward pass recomputes: a name in `REMAT_POLICIES`, or ``none``.
    """

    block: type[BasicBlock] | type[Bottleneck]
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    patch_stem: bool = False
    ibn_stages: int = 0
    dtype: DTypeLike | None = None
    remat: str = "none"

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.widths[-1] * self.block.expansion

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the blocks, in order."""
        sizes = enumerate(self.stage_sizes, start=1)
        return tuple(f"layer{i}_{j}" for i, size in sizes for j in range(size))

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> ResNet(Bottleneck, (3, 4, 6, 3)).map_shape(256, 128)
        (16, 8)

        Raises:
            ValueError: the height or width is not a multiple of the stride.
        """
        return divided(height, width, 4 * math.prod(self.strides))

    @nn.compact
    def __call__(self, images: Features, *, train: bool) -> Output:
        """Map images (B, H, W, 3) to features (B, H / stride, W / stride, channels)."""
        layer = _Layers(train, self.dtype)
        if self.patch_stem:
            x = layer(patches(images, 4), self.widths[0], 1, ("conv1", "bn1"))
        else:
            x = layer(images, 64, 7, ("conv1", "bn1"), 2)
            x = max_pool(x)
        block = recomputing(self.block, self.remat, static_argnums=(2,))  # train
        stages = zip(self.stage_sizes, self.widths, self.strides, strict=True)
        for i, (size, width, stride) in enumerate(stages, start=1):
            make = functools.partial(block, ibn=True) if i <= self.ibn_stages else block
            for j in range(size):
                name = f"layer{i}_{j}"
                x = make(width, stride if j == 0 else 1, self.dtype, name=name)(x, train)
        return x
