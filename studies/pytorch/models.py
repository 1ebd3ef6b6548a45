"""The network in PyTorch: residual trunk, main branch and the two pose-guided branches.

Written from docs/method.md in PyTorch's own style; pgfl_jax/models has it in Flax. Parameters below
``trunk.`` are named as in torchvision. Inputs have the pipeline's layout, channels last; inside,
channels come second.
"""

import functools
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6

Features = Float[Tensor, "batch channels height width"]
Outputs = Float[Tensor, "batch out_channels out_height out_width"]
Vectors = Float[Tensor, "batch channels"]
Mask = Float[Tensor, " batch"]


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose running variance averages the biased batch variance, as Flax's does.

    Both frameworks normalise by the biased variance v of n values. PyTorch's running variance
    averages v·n/(n − 1), Flax's v itself. PyTorch's momentum of 0.1 is Flax's 0.9. Both take the
    statistics of bfloat16 values in float32.
    """

    def forward(self, x: Features) -> Features:
        """Normalise over all axes but the second."""
        before = self.running_var.clone()
        y = super().forward(x)
        if self.training:
            added = self.running_var - (1 - self.momentum) * before
            # Not in place: the backward pass still needs the old tensor.
            self.running_var = self.running_var - added / (x.numel() / x.shape[1])
        return y


class InstanceBatchNorm(nn.Module):
    """IBN-a: normalises half of the channels per image and the rest over the batch."""

    def __init__(self, channels: int):
        """Split ``channels``; submodules are named as in the authors' code."""
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = BatchNorm(channels - self.half)

    def forward(self, x: Features) -> Features:
        """Normalise ``x``."""
        return torch.cat([self.IN(x[:, : self.half]), self.BN(x[:, self.half :])], 1)


class BNNeck(nn.Module):
    """BatchNorm without bias whose statistics leave out masked rows.

    With row weights w (1 or 0), μ = Σ w x / Σ w and σ² = Σ w (x − μ)² / Σ w. The running averages
    do not change when every row is masked.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        """``momentum`` is the weight of a new batch in the running averages."""
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Vectors, mask: Mask | None = None) -> Vectors:
        """Normalise all rows; those with a ``mask`` of 0 do not count in the statistics."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            weights = x.new_ones(len(x), 1) if mask is None else mask[:, None]
            count = weights.sum()
            mean = (weights * x).sum(0) / count.clamp(min=1)
            var = (weights * (x - mean) ** 2).sum(0) / count.clamp(min=1)
            # An `if` would have to wait for the GPU.
            weight = self.momentum * (count > 0).to(x.dtype)
            with torch.no_grad():
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(var, weight)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ResNet-18/34."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        """Map ``inputs`` channels to ``width``."""
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = BatchNorm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = BatchNorm(width)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Features) -> Outputs:
        """Map (B, C, h, w) to (B, width, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; ResNet-50."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, ibn: bool = False):
        """Map ``inputs`` channels to four times ``width``."""
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = InstanceBatchNorm(width) if ibn else BatchNorm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = BatchNorm(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = BatchNorm(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Features) -> Outputs:
        """Map (B, C, h, w) to (B, 4 · width, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), BatchNorm(outputs))


class ResNet(nn.Module):
    """A residual network in torchvision's v1.5 layout, without its classifier.

    A patch stem embeds 4x4 patches instead of the 7x7 convolution and max-pooling.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        sizes: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 1),
        *,
        patch_stem: bool = False,
        ibn_stages: int = 0,
    ):
        """``sizes`` are the numbers of blocks; the first ``ibn_stages`` stages use IBN-a."""
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 4, 4, bias=False) if patch_stem else _conv(3, 64, 7, 2)
        self.conv1, self.bn1 = stem, BatchNorm(stem.out_channels)
        self.maxpool = nn.Identity() if patch_stem else nn.MaxPool2d(3, 2, 1)
        channels = stem.out_channels
        for i, (size, width, stride) in enumerate(zip(sizes, widths, strides, strict=True), 1):
            make = functools.partial(block, ibn=True) if i <= ibn_stages else block
            blocks = []
            for j in range(size):
                blocks.append(make(channels, width, stride if j == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.num_stages, self.channels = len(sizes), channels

    def forward(self, x: Float[Tensor, "batch 3 image_height image_width"]) -> Features:
        """Map images to the feature map."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.num_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


BACKBONES = MappingProxyType[str, Callable[[], ResNet]](
    {
        "resnet8": lambda: ResNet(BasicBlock, (1, 1, 1), (48, 96, 192), (1, 2, 1), patch_stem=True),
        "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
        "resnet34": lambda: ResNet(BasicBlock, (3, 4, 6, 3)),
        "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
        "resnet50_ibn_a": lambda: ResNet(Bottleneck, (3, 4, 6, 3), ibn_stages=3),
    }
)


class AveragePooling(nn.Module):
    """The mean over the map."""

    def forward(self, features: Features) -> Vectors:
        """Pool a feature map."""
        return features.mean((2, 3))


class GeneralizedMeanPooling(nn.Module):
    """(Mean over the map of F^p)^(1/p), with a learned p that starts at 3."""

    def __init__(self) -> None:
        """One parameter for all channels."""
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Features) -> Vectors:
        """Pool a feature map."""
        return (features.clamp(min=EPSILON) ** self.power).mean((2, 3)) ** (1 / self.power)


def foreground_pooling(
    features: Features, foreground: Float[Tensor, "batch height width"]
) -> Vectors:
    """Σ m·F / (Σ m + ε), with the features F and the foreground map m."""
    masked = features * foreground[:, None]
    return masked.sum((2, 3)) / (foreground.sum((1, 2)) + EPSILON)[:, None]


def part_pooling(
    features: Features,
    part_maps: Float[Tensor, "batch parts height width"],
    visibility: Float[Tensor, "batch parts"],
) -> Vectors:
    """v_g · Σ p_g·F_g / (Σ p_g + ε) for each of the G channel groups, concatenated."""
    groups = features.unflatten(1, (part_maps.shape[1], -1))  # (B, G, C / G, h, w)
    pooled = (groups * part_maps[:, :, None]).sum((3, 4))
    weights = visibility / (part_maps.sum((2, 3)) + EPSILON)
    return (pooled * weights[:, :, None]).flatten(1)


class Classifier(nn.Linear):
    """Bias-free logits. Factors may be rounded to a lower precision; sums are float32 at least."""

    def __init__(self, channels: int, num_identities: int, dtype: torch.dtype | None):
        """``dtype`` is the precision of the factors; None does not round them."""
        super().__init__(channels, num_identities, bias=False)
        self.dtype = dtype

    def forward(self, x: Vectors) -> Float[Tensor, "batch identities"]:
        """Classify embeddings."""
        if self.dtype is None:
            return super().forward(x)
        return F.linear(x.to(self.dtype).to(x.dtype), self.weight.to(self.dtype).to(x.dtype))


class BranchOutputs(NamedTuple):
    """One branch: pooled features, the same after the BNNeck, and logits (None in evaluation)."""

    embedding: Vectors
    neck: Vectors
    logits: Float[Tensor, "batch identities"] | None


class PGFLOutputs(NamedTuple):
    """The feature map and all branches; None where a branch or option is off."""

    features: Features
    main: BranchOutputs
    foreground: BranchOutputs | None
    parts: BranchOutputs | None
    cross_logits: tuple[Tensor, Tensor] | None


class PGFL(nn.Module):
    """One trunk, a main branch for test time and two pose-guided teachers for training.

    Args:
        num_identities: number of classes.
        backbone: a name in :data:`BACKBONES`.
        pooling: of the main branch, ``gap`` or ``gem``.
        pose_branches: False for the main branch only.
        interaction: ``shared_classifier`` gives all branches one classifier; ``cross_classifier``
            also applies the teachers' classifiers to the main branch.
        dtype: precision of trunk and classifiers; None means that of the parameters.
    """

    def __init__(
        self,
        num_identities: int,
        backbone: str,
        *,
        pooling: str = "gap",
        pose_branches: bool = True,
        interaction: str = "off",
        dtype: torch.dtype | None = None,
    ):
        """Build and initialise."""
        super().__init__()
        self.pose_branches, self.interaction, self.dtype = pose_branches, interaction, dtype
        self.trunk = BACKBONES[backbone]()
        channels = self.trunk.channels
        self.main_pooling = GeneralizedMeanPooling() if pooling == "gem" else AveragePooling()
        self.main_neck = BNNeck(channels)
        self.main_classifier = Classifier(channels, num_identities, dtype)
        if pose_branches:
            self.foreground_neck, self.parts_neck = BNNeck(channels), BNNeck(channels)
            if interaction != "shared_classifier":
                self.foreground_classifier = Classifier(channels, num_identities, dtype)
                self.parts_classifier = Classifier(channels, num_identities, dtype)
        initialise(self)

    def forward(
        self,
        images: Float[Tensor, "batch image_height image_width 3"],
        part_maps: Float[Tensor, "batch height width parts"] | None = None,
        visibility: Float[Tensor, "batch parts"] | None = None,
    ) -> PGFLOutputs:
        """Run the branches.

        Args:
            images: normalised.
            part_maps: in [0, 1]; None runs only the main branch.
            visibility: in [0, 1].
        """
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            # Contiguous: on channels-last maps PyTorch's BatchNorm sums the values one by one,
            # which loses one or two digits.
            features = self.trunk(images.permute(0, 3, 1, 2).contiguous())
        pooled = features.to(images.dtype)
        main = self._branch(self.main_pooling(pooled), self.main_neck, "main", None)
        if part_maps is None or visibility is None or not self.pose_branches:
            return PGFLOutputs(features, main, None, None, None)
        has_pose = pose_mask(visibility)
        part_maps = part_maps.permute(0, 3, 1, 2)
        foreground = foreground_pooling(pooled, part_maps.amax(1))
        parts = part_pooling(pooled, part_maps, visibility)
        cross_logits = None
        if self.training and self.interaction == "cross_classifier":
            cross_logits = self.foreground_classifier(main.neck), self.parts_classifier(main.neck)
        return PGFLOutputs(
            features,
            main,
            self._branch(foreground, self.foreground_neck, "foreground", has_pose),
            self._branch(parts, self.parts_neck, "parts", has_pose),
            cross_logits,
        )

    def _branch(
        self, embedding: Vectors, neck: BNNeck, name: str, mask: Mask | None
    ) -> BranchOutputs:
        normalised = neck(embedding, mask)
        if not self.training:
            return BranchOutputs(embedding, normalised, None)
        shared = self.interaction == "shared_classifier"
        classifier = getattr(self, f"{'main' if shared else name}_classifier")
        return BranchOutputs(embedding, normalised, classifier(normalised))


def pose_mask(visibility: Float[Tensor, "batch parts"]) -> Mask:
    """1 where any part of an image is visible, else 0."""
    return (visibility.amax(1) > 0).to(visibility.dtype)


def initialise(model: PGFL) -> None:
    """Draw weights from the Flax network's distributions, which are not PyTorch's defaults.

    Convolutions: N(0, 2 / fan-out); classifiers: N(0, 0.001²); normalisation layers keep 1 and 0.
    The fan-out of a k x k convolution is k²·outputs. The patch stem, which is a matrix product in
    Flax, has a fan-out of its outputs alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            patches = module.stride == module.kernel_size
            fan_out = module.out_channels * (1 if patches else math.prod(module.kernel_size))
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, Classifier):
            nn.init.normal_(module.weight, std=0.001)
