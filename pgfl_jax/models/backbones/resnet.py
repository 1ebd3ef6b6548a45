"""Residual networks in torchvision's v1.5 layout (stride on the 3x3), last stride 1.

Module names follow torchvision (``conv1``, ``layer1_0/conv1``, ``downsample_conv``), so weights
convert by name. Reference: K. He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016; last stride 1 after H. Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
Re-Identification", CVPRW 2019; IBN-a after X. Pan et al., "Two at Once: Enhancing Learning and
Generalization Capacities via IBN-Net", ECCV 2018.
"""

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

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]

_he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


# What the backward pass keeps of a block's forward pass; it recomputes the rest.
REMAT_POLICIES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        # The convolutions' results; normalisation and ReLU are recomputed.
        "convolutions": jax.checkpoint_policies.save_only_these_names("convolution"),
        # Only the block's input.
        "blocks": jax.checkpoint_policies.nothing_saveable,
    }
)


def _conv(
    features: int, size: int, stride: int, name: str, dtype: DTypeLike | None = None
) -> nn.Conv:
    """Bias-free convolution with PyTorch's symmetric padding."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_he_init,
        dtype=dtype,
        name=name,
    )


class Conv1x1(nn.Module):
    """A 1x1 convolution as a matrix product, several times faster than XLA's convolution on CPU."""

    features: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Features) -> Output:
        """Map (B, h, w, C) to (B, ceil(h / stride), ceil(w / stride), features)."""
        if self.stride > 1:
            # Without the barrier XLA's GPU compiler fuses the slice into the product, and aborts
            # where a basic block adds its shortcut ("subdim_size_accumulator", jaxlib 0.10.2 and
            # 0.11.2).
            steps = 1, self.stride, self.stride, 1
            x = jax.lax.optimization_barrier(jax.lax.slice(x, (0, 0, 0, 0), x.shape, steps))
        return nn.DenseGeneral(
            self.features, use_bias=False, kernel_init=_he_init, dtype=self.dtype, name="dense"
        )(x)


# The exact variance: E[x²] − E[x]² loses digits that the comparison with PyTorch needs.
_BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)


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
        over_batch = _BatchNorm(
            use_running_average=self.use_running_average, dtype=self.dtype, name="BN"
        )
        halves = (
            by_image(jax.lax.slice_in_dim(x, 0, half, axis=3)),
            over_batch(jax.lax.slice_in_dim(x, half, x.shape[3], axis=3)),
        )
        return jnp.concatenate(halves, axis=-1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18/34."""

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None
    expansion = 1

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h / stride, w / stride, width)."""
        norm = functools.partial(_BatchNorm, use_running_average=not train, dtype=self.dtype)
        y = _kept(_conv(self.width, 3, self.stride, "conv1", self.dtype)(x))
        y = _kept(_conv(self.width, 3, 1, "conv2", self.dtype)(nn.relu(norm(name="bn1")(y))))
        return nn.relu(norm(name="bn2")(y) + _shortcut(x, y.shape, self.stride, norm))


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
        norm = functools.partial(_BatchNorm, use_running_average=not train, dtype=self.dtype)
        y = _kept(Conv1x1(self.width, dtype=self.dtype, name="conv1")(x))
        first = (
            InstanceBatchNorm(not train, self.dtype, name="bn1") if self.ibn else norm(name="bn1")
        )
        y = nn.relu(first(y))
        y = _kept(_conv(self.width, 3, self.stride, "conv2", self.dtype)(y))
        y = nn.relu(norm(name="bn2")(y))
        y = _kept(Conv1x1(self.width * self.expansion, dtype=self.dtype, name="conv3")(y))
        return nn.relu(norm(name="bn3")(y) + _shortcut(x, y.shape, self.stride, norm))


def _kept(x: Output) -> Output:
    """Name the result of a convolution for `REMAT_POLICIES`."""
    return checkpoint_name(x, "convolution")


def _shortcut(x: Features, shape: tuple[Any, ...], stride: int, norm: functools.partial) -> Output:
    if x.shape == shape:
        return x
    conv = Conv1x1(shape[-1], stride, norm.keywords["dtype"], name="downsample_conv")
    return norm(name="downsample_bn")(_kept(conv(x)))


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

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> ResNet(Bottleneck, (3, 4, 6, 3)).map_shape(256, 128)
        (16, 8)

        Raises:
            ValueError: the height or width is not a multiple of the stride.
        """
        stride = 4 * math.prod(self.strides)
        if height % stride or width % stride:
            raise ValueError(f"must be a multiple of the stride, {stride}")
        return height // stride, width // stride

    @nn.compact
    def __call__(self, images: Features, *, train: bool) -> Output:
        """Map images (B, H, W, 3) to features (B, H / stride, W / stride, channels)."""
        if self.patch_stem:
            x = self._patches(images)
        else:
            x = _conv(64, 7, 2, "conv1", self.dtype)(images)
        x = nn.relu(_BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn1")(x))
        if not self.patch_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block: Any = self.block
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            block = nn.remat(block, policy=policy, static_argnums=(2,))  # train
        stages = zip(self.stage_sizes, self.widths, self.strides, strict=True)
        for i, (size, width, stride) in enumerate(stages, start=1):
            make = functools.partial(block, ibn=True) if i <= self.ibn_stages else block
            for j in range(size):
                name = f"layer{i}_{j}"
                x = make(width, stride if j == 0 else 1, self.dtype, name=name)(x, train)
        return x

    def _patches(self, images: Features) -> Output:
        batch, height, width, _ = images.shape
        x = images.reshape(batch, height // 4, 4, width // 4, 4, 3).swapaxes(2, 3)
        x = x.reshape(batch, height // 4, width // 4, 48)
        return Conv1x1(self.widths[0], dtype=self.dtype, name="conv1")(x)
