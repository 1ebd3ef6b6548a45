"""Residual networks in torchvision's v1.5 layout (stride on the 3x3), last stride 1.

Module names follow torchvision (``conv1``, ``layer1_0/conv1``, ``downsample_conv``), so that
weights convert by name. Reference: K. He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016; last stride 1 after H. Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
Re-Identification", CVPRW 2019.
"""

import functools
from collections.abc import Callable
from types import MappingProxyType

import flax.linen as nn
from jaxtyping import Array, Float

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]

_he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
    """Bias-free convolution with PyTorch's symmetric padding."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_he_init,
        name=name,
    )


class Conv1x1(nn.Module):
    """A 1x1 convolution as a matrix product, several times faster than XLA's convolution on CPU."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Features) -> Output:
        """Map (B, h, w, C) to (B, ceil(h / stride), ceil(w / stride), features)."""
        x = x[:, :: self.stride, :: self.stride]
        return nn.DenseGeneral(self.features, use_bias=False, kernel_init=_he_init, name="dense")(x)


# The exact variance: E[x²] − E[x]² loses digits that a parity study needs.
_BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18/34."""

    width: int
    stride: int = 1
    expansion = 1

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h / stride, w / stride, width)."""
        norm = functools.partial(_BatchNorm, use_running_average=not train)
        y = nn.relu(norm(name="bn1")(_conv(self.width, 3, self.stride, "conv1")(x)))
        y = norm(name="bn2")(_conv(self.width, 3, 1, "conv2")(y))
        return nn.relu(y + _shortcut(x, y, self.stride, norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; ResNet-50."""

    width: int
    stride: int = 1
    expansion = 4

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Output:
        """Map (B, h, w, C) to (B, h / stride, w / stride, 4 · width)."""
        norm = functools.partial(_BatchNorm, use_running_average=not train)
        y = nn.relu(norm(name="bn1")(Conv1x1(self.width, name="conv1")(x)))
        y = nn.relu(norm(name="bn2")(_conv(self.width, 3, self.stride, "conv2")(y)))
        y = norm(name="bn3")(Conv1x1(self.width * self.expansion, name="conv3")(y))
        return nn.relu(y + _shortcut(x, y, self.stride, norm))


def _shortcut(x: Features, y: Output, stride: int, norm: Callable[..., nn.Module]) -> Output:
    if x.shape == y.shape:
        return x
    x = Conv1x1(y.shape[-1], stride, name="downsample_conv")(x)
    return norm(name="downsample_bn")(x)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        stage_sizes: blocks in each stage.
        widths: width of each stage (a bottleneck puts out four times as much).
        strides: stride of each stage.
        patch_stem: embed 4x4 patches by one matrix product in place of the 7x7 convolution and
            max-pooling; far cheaper on small images and CPUs.
    """

    block: type[BasicBlock] | type[Bottleneck]
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    patch_stem: bool = False

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return self.widths[-1] * self.block.expansion

    @property
    def stride(self) -> int:
        """Input pixels per cell of the feature map, in each direction."""
        return 4 * functools.reduce(lambda a, b: a * b, self.strides)

    @nn.compact
    def __call__(self, images: Features, *, train: bool) -> Output:
        """Map images (B, H, W, 3) to features (B, H / stride, W / stride, channels)."""
        x = self._patches(images) if self.patch_stem else _conv(64, 7, 2, "conv1")(images)
        x = nn.relu(_BatchNorm(use_running_average=not train, name="bn1")(x))
        if not self.patch_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        stages = zip(self.stage_sizes, self.widths, self.strides, strict=True)
        for i, (size, width, stride) in enumerate(stages, start=1):
            for j in range(size):
                name = f"layer{i}_{j}"
                x = self.block(width, stride if j == 0 else 1, name=name)(x, train=train)
        return x

    def _patches(self, images: Features) -> Output:
        batch, height, width, _ = images.shape
        x = images.reshape(batch, height // 4, 4, width // 4, 4, 3).swapaxes(2, 3)
        x = x.reshape(batch, height // 4, width // 4, 48)
        return Conv1x1(self.widths[0], name="conv1")(x)


BACKBONES = MappingProxyType(
    {
        # For small images on two CPU cores: 128x64 gives the same 16x8 map as ResNet-50 at 256x128.
        "resnet8": ResNet(BasicBlock, (1, 1, 1), (48, 96, 192), (1, 2, 1), patch_stem=True),
        "resnet18": ResNet(BasicBlock, (2, 2, 2, 2)),
        "resnet34": ResNet(BasicBlock, (3, 4, 6, 3)),
        "resnet50": ResNet(Bottleneck, (3, 4, 6, 3)),
    }
)
