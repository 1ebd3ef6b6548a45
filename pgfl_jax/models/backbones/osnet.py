"""OSNet: blocks that see four sizes of neighbourhood, with a gate for each channel.

Module names follow torchreid (``conv2_0/conv2a``), so weights convert by name; only ``bn`` after a
depthwise convolution is ``norm`` here. The dense layer between torchreid's pooling and classifier
is left out: the BNNeck takes its place.

Reference: K. Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.backbones.resnet import Features, Output, divided, recomputing
from pgfl_jax.models.batch_norm import BatchNorm
from pgfl_jax.models.convolution import Kernel, convolve
from pgfl_jax.models.pooling import max_pool

STRIDE = 16


class _ConvNorm(nn.Module):
    """A convolution with BatchNorm: act(BatchNorm(x * kernel) + shortcut)."""

    features: int
    dtype: DTypeLike | None
    size: int = 1
    stride: int = 1
    relu: bool = True

    @nn.compact
    def __call__(self, x: Features, train: bool, shortcut: Output | None = None) -> Output:
        kernel = Kernel(self.features, self.size, name="conv")(x.shape[-1])
        norm = BatchNorm(self.features, not train, self.dtype, name="bn")
        return norm.after(x, kernel, self.stride, shortcut, relu=self.relu)


class _LightConv(nn.Module):
    """A 1x1 convolution, then a 3x3 one of each channel by itself, BatchNorm and ReLU."""

    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        channels = x.shape[-1]
        mixing = Kernel(channels, 1, name="conv1")(channels)
        kernel = Kernel(channels, 3, name="conv2")(1)
        dtype = self.dtype or kernel.dtype
        y = convolve(x.astype(dtype), mixing.astype(dtype))
        y = jax.lax.conv_general_dilated(
            y,
            kernel.astype(dtype),
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        y = checkpoint_name(y, "convolution")
        return BatchNorm(channels, not train, self.dtype, name="norm")(y, relu=True)


class _Gate(nn.Module):
    """Scales each channel by a number in [0, 1] that the map's means decide."""

    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        means = x.mean((1, 2))
        hidden = nn.relu(nn.Dense(channels // 16, dtype=self.dtype, name="fc1")(means))
        gate = nn.sigmoid(nn.Dense(channels, dtype=self.dtype, name="fc2")(hidden))
        return x * gate.astype(x.dtype)[:, None, None]


class OSBlock(nn.Module):
    """The sum of one to four light convolutions in a row, each gated, beside a shortcut."""

    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h, w, width)."""
        y = _ConvNorm(self.width // 4, self.dtype, name="conv1")(x, train)
        gate, streams = _Gate(self.dtype, name="gate"), []
        for depth, stream in enumerate("abcd", start=1):
            z = y
            for i in range(depth):
                name = f"conv2{stream}" if depth == 1 else f"conv2{stream}_{i}"
                z = _LightConv(self.dtype, name=name)(z, train)
            streams.append(gate(z))
        if x.shape[-1] != self.width:
            x = _ConvNorm(self.width, self.dtype, relu=False, name="downsample")(x, train)
        last = _ConvNorm(self.width, self.dtype, name="conv3")
        return last(sum(streams[1:], streams[0]), train, x)


class OSNet(nn.Module):
    """An OSNet without its dense layer and classifier.

    Attributes:
        widths: channels of the stem and of each stage, of two blocks each.
        dtype: precision of convolutions and normalised values; None means that of the parameters.
            Parameters and statistics keep their own.
        remat: what the backward pass recomputes: a name in `REMAT_POLICIES`, or ``none``.
    """

    widths: tuple[int, int, int, int] = (64, 256, 384, 512)
    dtype: DTypeLike | None = None
    remat: str = "none"

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.widths[-1]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules after the stem, in order."""
        stages = ("conv2_0", "conv2_1", "conv2_2_0", "conv3_0", "conv3_1", "conv3_2_0")
        return (*stages, "conv4_0", "conv4_1", "conv5")

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        >>> OSNet().map_shape(256, 128)
        (16, 8)

        Raises:
            ValueError: the height or width is not a multiple of 16.
        """
        return divided(height, width, STRIDE)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch image_height image_width 3"], *, train: bool
    ) -> Output:
        """Map images (B, H, W, 3) to features (B, H / 16, W / 16, channels)."""
        block = recomputing(OSBlock, self.remat, static_argnums=(2,))  # train
        x = _ConvNorm(self.widths[0], self.dtype, 7, 2, name="conv1")(images, train)
        x = max_pool(x)
        for i, width in enumerate(self.widths[1:], start=2):
            for j in range(2):
                x = block(width, self.dtype, name=f"conv{i}_{j}")(x, train)
            if i < 4:
                x = _ConvNorm(width, self.dtype, name=f"conv{i}_2_0")(x, train)
                x = _halved(x)
        return _ConvNorm(self.channels, self.dtype, name="conv5")(x, train)


def _halved(x: Features) -> Output:
    """The means of 2x2 cells."""
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(cells, (2, 4))
