"""The test-time network in PyTorch: pictures to embeddings, without poses and without classifiers.

This file needs PyTorch alone. It is the ``model.py`` of an exported artifact, where :func:`load`
reads the weights beside it. Parameters of the trunk are named as in torchvision and timm.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_PARTS = 8
EPSILON = 1e-6


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose running variance averages the biased batch variance, as Flax's does.

    Both frameworks normalise by the biased variance v of n values. PyTorch's running variance
    averages v·n/(n − 1), Flax's v itself. PyTorch's momentum of 0.1 is Flax's 0.9. Both take the
    statistics of bfloat16 values in float32.
    """

    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w) over all axes but the second."""
        if not self.training:
            return super().forward(x)
        before = self.running_var.clone()
        y = super().forward(x)
        added = self.running_var - (1 - self.momentum) * before
        # Not in place: the backward pass still needs the old tensor.
        self.running_var = self.running_var - added / (x.numel() / x.shape[1])
        return y


class InstanceBatchNorm(nn.Module):
    """IBN-a: normalises half of the channels per image and the rest over the batch."""

    def __init__(self, channels: int):
        """Split ``channels``; submodules are named as in the authors' code."""
        super().__init__()
        self.split = channels // 2
        self.IN = nn.InstanceNorm2d(self.split, affine=True)
        self.BN = BatchNorm(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w)."""
        return torch.cat([self.IN(x[:, : self.split]), self.BN(x[:, self.split :])], 1)


class BNNeck(nn.Module):
    """BatchNorm without bias over what a mask leaves of the batch; what is masked leaves as 0.

    For each channel, with weights w of the rows in [0, 1], μ = Σ w x / Σ w and
    σ² = Σ w (x − μ)² / Σ w; the output is w · (x − μ) / √(σ² + ε) · scale. The running averages of
    a channel do not change when all its rows are masked.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        """``momentum`` is the weight of a new batch in the running averages."""
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (N, C); ``mask`` (N,), or (N, G) for G equal groups of channels."""
        mean, var = self.running_mean, self.running_var
        weights = None
        if mask is not None:
            groups = mask[:, None] if mask.ndim == 1 else mask
            weights = groups.repeat_interleave(x.shape[1] // groups.shape[1], 1)
        if self.training:
            weighted = torch.ones_like(x) if weights is None else weights
            count = weighted.sum(0)
            divisor = torch.where(count > 0, count, 1)
            mean = (weighted * x).sum(0) / divisor
            var = (weighted * (x - mean) ** 2).sum(0) / divisor
            # An `if` would have to wait for the GPU.
            weight = self.momentum * (count > 0).to(x.dtype)
            with torch.no_grad():
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(var, weight)
        normalised = (x - mean) / torch.sqrt(var + self.eps) * self.weight
        return normalised if weights is None else weights * normalised


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

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, width, h / stride, w / stride)."""
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

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, 4 · width, h / stride, w / stride)."""
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
            make: Callable[..., nn.Module] = block
            if i <= ibn_stages:
                make = functools.partial(make, ibn=True)
            blocks = []
            for j in range(size):
                blocks.append(make(channels, width, stride if j == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.num_stages, self.channels = len(sizes), channels

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the feature map (N, C, h, w)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.num_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        """Of tokens with ``width`` channels."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, width) to the same shape."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind())
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two dense layers, the first four times as wide; GELU, or CLIP's x · sigmoid(1.702 x)."""

    def __init__(self, width: int, quick: bool):
        """``quick`` is CLIP's activation."""
        super().__init__()
        self.quick = quick
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, width) to the same shape."""
        y = self.fc1(x)
        return self.fc2(y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, clip: bool, eps: float):
        """``eps`` is that of LayerNorm."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, clip)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, width) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """A convolution of patches without padding."""

    def __init__(self, width: int, patch: int, stride: int, *, bias: bool = True, norm: bool):
        """Map colours to ``width`` channels."""
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride, bias=bias)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to (N, h, w, width)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ViT(nn.Module):
    """A vision transformer in timm's layout, without its classifier; for pictures of one size."""

    def __init__(
        self,
        size: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        *,
        stride: int = 16,
        clip: bool = False,
    ):
        """``size`` is (H, W); ``clip`` makes the visual tower of CLIP."""
        super().__init__()
        eps = 1e-5 if clip else 1e-6
        self.patch_embed = PatchEmbedding(width, 16, stride, bias=not clip, norm=False)
        count = math.prod((side - 16) // stride + 1 for side in size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + count, width))
        self.norm_pre = nn.LayerNorm(width, eps) if clip else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, heads, clip, eps) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps)
        self.channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the feature map (N, C, h, w): the patches' tokens."""
        return self.with_class_token(x)[0]

    def with_class_token(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same features, and the class token (N, C)."""
        cells = self.patch_embed(x)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, cells.flatten(1, 2)], 1) + self.pos_embed
        x = self.norm(self.blocks(self.norm_pre(x)))
        return x[:, 1:].transpose(1, 2).unflatten(2, cells.shape[1:3]), x[:, 0]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for each offset between cells.

    Args:
        grid: rows and columns of the map.
        width: channels.
        heads: of the attention.
        window: side of a window, in cells.
        shift: cells by which windows are shifted, along axes with more than one of them.
    """

    places: Tensor
    mask: Tensor

    def __init__(self, grid: tuple[int, int], width: int, heads: int, window: int, shift: int):
        """Build with PyTorch's initial weights."""
        super().__init__()
        self.heads, self.window = heads, window
        self.below, self.right = (-length % window for length in grid)
        padded = grid[0] + self.below, grid[1] + self.right
        self.shifts = [shift if length > window else 0 for length in padded]
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        table = 0.02 * torch.randn((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(table)
        cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = cells[:, None] - cells[None] + window - 1
        places = offsets[..., 0] * (2 * window - 1) + offsets[..., 1]
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("mask", self._mask(padded), persistent=False)

    def _mask(self, grid: tuple[int, int]) -> Tensor:
        """-100 for cells of a window that are not neighbours in the map, (windows, 1, T, T)."""
        labels = torch.zeros(grid)
        for axis, shift in enumerate(self.shifts):
            if shift:
                label = labels.transpose(0, axis)
                label[-self.window : -shift] += 3**axis
                label[-shift:] += 2 * 3**axis
        label = self._windows(labels[None, ..., None])[0, :, :, 0]
        return -100.0 * (label[:, None, :, None] != label[:, None, None, :])

    def _windows(self, x: Tensor) -> Tensor:
        """Map (N, h, w, C) to (N, windows, T, C)."""
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, C) to the same shape."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, self.right, 0, self.below))
        x = torch.roll(x, [-shift for shift in self.shifts], (1, 2))
        rows, columns = (length // self.window for length in x.shape[1:3])
        parts = self.qkv(self._windows(x)).unflatten(3, (3, self.heads, -1))
        bias = self.relative_position_bias_table[self.places].permute(2, 0, 1) + self.mask
        query, key, value = parts.permute(3, 0, 1, 4, 2, 5).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, bias[None].to(query.dtype))
        x = self.proj(mixed.transpose(2, 3).flatten(3))
        x = x.unflatten(2, (self.window, self.window)).unflatten(1, (rows, columns))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return torch.roll(x, self.shifts, (1, 2))[:, :height, :width]


class SwinBlock(nn.Module):
    """Attention in windows and MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, window: int, shift: int):
        """As :class:`WindowAttention`."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(grid, width, heads, window, shift)
        self.mlp = Mlp(width, quick=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, C) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """A dense layer on each cell and its neighbours below and to the right, 2x2 cells in all."""

    def __init__(self, width: int, stride: int, bias: bool):
        """Map ``width`` channels to twice as many."""
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, C) to (N, h / stride, w / stride, 2 · C)."""
        step, ends = self.stride, [length - self.stride + 1 for length in x.shape[1:3]]
        if step == 1:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        cells = [
            x[:, i : i + ends[0] : step, j : j + ends[1] : step] for j in (0, 1) for i in (0, 1)
        ]
        return self.reduction(self.norm(torch.cat(cells, 3)))


class SwinStage(nn.Module):
    """The blocks of a stage, after merging cells in all but the first."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[SwinBlock]):
        """Submodules are named as in timm."""
        super().__init__()
        self.downsample, self.blocks = downsample, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, h, w, C) to (N, h / stride, w / stride, C')."""
        return self.blocks(self.downsample(x))


class Swin(nn.Module):
    """A Swin transformer in timm's layout, without its classifier; for pictures of one size."""

    def __init__(
        self,
        size: tuple[int, int],
        width: int,
        stage_sizes: Sequence[int],
        strides: Sequence[int] = (1, 2, 2, 1),
        *,
        head_width: int = 32,
        window: int = 7,
        solider: bool = False,
    ):
        """``size`` is (H, W); ``solider`` gives merging layers a bias."""
        super().__init__()
        self.patch_embed = PatchEmbedding(width, 4, 4, norm=True)
        grid, stages = (size[0] // 4, size[1] // 4), []
        for i, (count, stride) in enumerate(zip(stage_sizes, strides, strict=True)):
            downsample = Merging(width, stride, solider) if i else nn.Identity()
            width *= 2 if i else 1
            grid = grid[0] // stride, grid[1] // stride
            options = width, width // head_width, window
            blocks = [SwinBlock(grid, *options, j % 2 * (window // 2)) for j in range(count)]
            stages.append(SwinStage(downsample, blocks))
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the feature map (N, C, h, w)."""
        return self.norm(self.layers(self.patch_embed(x))).permute(0, 3, 1, 2)


BACKBONES = MappingProxyType[str, Callable[[tuple[int, int]], ResNet | ViT | Swin]](
    {
        "resnet8": lambda _: ResNet(
            BasicBlock, (1, 1, 1), (48, 96, 192), (1, 2, 1), patch_stem=True
        ),
        "resnet18": lambda _: ResNet(BasicBlock, (2, 2, 2, 2)),
        "resnet34": lambda _: ResNet(BasicBlock, (3, 4, 6, 3)),
        "resnet50": lambda _: ResNet(Bottleneck, (3, 4, 6, 3)),
        "resnet101": lambda _: ResNet(Bottleneck, (3, 4, 23, 3)),
        "resnet50_ibn_a": lambda _: ResNet(Bottleneck, (3, 4, 6, 3), ibn_stages=3),
        "vit_tiny": lambda size: ViT(size, 192, 12, 3),
        "vit_small": lambda size: ViT(size, 384, 12, 6),
        "vit_base": lambda size: ViT(size, 768, 12, 12),
        "vit_small_overlap": lambda size: ViT(size, 384, 12, 6, stride=12),
        "vit_base_overlap": lambda size: ViT(size, 768, 12, 12, stride=12),
        "vit_base_clip": lambda size: ViT(size, 768, 12, 12, clip=True),
        "swin_tiny": lambda size: Swin(size, 96, (2, 2, 6, 2)),
        "swin_small": lambda size: Swin(size, 96, (2, 2, 18, 2)),
        "swin_base": lambda size: Swin(size, 128, (2, 2, 18, 2)),
        "swin_tiny_solider": lambda size: Swin(size, 96, (2, 2, 6, 2), solider=True),
        "swin_small_solider": lambda size: Swin(size, 96, (2, 2, 18, 2), solider=True),
        "swin_base_solider": lambda size: Swin(size, 128, (2, 2, 18, 2), solider=True),
    }
)
"""The trunk by name, for pictures of a height and width."""


class Pooled(NamedTuple):
    """(N, C) pooled features; and, of predicted maps, how much is seen (N, P) and their logits.

    ``features`` (N, C, h, w) is the map that was pooled, if it is not the trunk's.
    """

    embedding: Tensor
    seen: Tensor | None = None
    map_logits: Tensor | None = None
    features: Tensor | None = None


class AveragePooling(nn.Module):
    """The mean over the map."""

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, C, h, w) to (N, C)."""
        return Pooled(features.mean((2, 3)))


class ClassToken(nn.Module):
    """The class token of a vision transformer; nothing is pooled."""

    def forward(self, token: Tensor) -> Pooled:
        """Take (N, C) as it is."""
        return Pooled(token)


class GeneralizedMeanPooling(nn.Module):
    """(Mean over the map of F^p)^(1/p), with a learned p that starts at 3."""

    def __init__(self) -> None:
        """One parameter for all channels."""
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, C, h, w) to (N, C)."""
        mean = (features.clamp(min=EPSILON) ** self.power).mean((2, 3))
        return Pooled(mean ** (1 / self.power))


class Around(nn.Conv2d):
    """The 3x3 convolution to 64 channels by which a cell sees its neighbours, and a ReLU.

    Args:
        channels: of the features.
        dtype: precision of the convolution; None means the precision of the parameters.
    """

    def __init__(self, channels: int, dtype: torch.dtype | None):
        """Build with PyTorch's initial weights."""
        super().__init__(channels, 64, 3, padding=1)
        self.precision = dtype

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, 64, h, w)."""
        if self.precision is None:
            return super().forward(features).relu()
        with torch.autocast(features.device.type, self.precision):
            around = super().forward(features)
        return around.relu().to(features.dtype)


class ContextPooling(nn.Module):
    """The mean over the map of features that have seen their neighbourhood."""

    def __init__(self, channels: int, dtype: torch.dtype | None):
        """``channels`` of the features; ``dtype`` as in :class:`Around`."""
        super().__init__()
        self.hidden = Around(channels, dtype)
        self.gate = nn.Conv2d(64, channels, 1)

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, C, h, w) to (N, C)."""
        weight = self.gate(self.hidden(features)).sigmoid()
        own = features * (weight / weight.mean((1, 2, 3), keepdim=True).clamp_min(EPSILON))
        return Pooled(own.mean((2, 3)), features=own)


class PredictedPooling(nn.Module):
    """The mean of each channel group, weighted by a map that the features predict.

    Args:
        channels: of the features.
        maps: their number; one per part, or 1 for the foreground.
        dtype: as in :class:`Around`.
    """

    def __init__(self, channels: int, maps: int, dtype: torch.dtype | None):
        """A 3x3 and a 1x1 convolution predict the maps."""
        super().__init__()
        self.hidden = Around(channels, dtype)
        self.maps = nn.Conv2d(64, maps, 1)

    def forward(self, features: Tensor) -> Pooled:
        """Pool (N, C, h, w) to (N, C)."""
        logits = self.maps(self.hidden(features))
        maps = logits.sigmoid()
        return Pooled(part_pooling(features, maps), maps.amax((2, 3)), logits)


def part_pooling(features: Tensor, part_maps: Tensor) -> Tensor:
    """Σ p_g·F_g / (Σ p_g + ε) for each of G channel groups, concatenated.

    Args:
        features: F (N, C, h, w).
        part_maps: p (N, G, h, w) in [0, 1].
    """
    groups = features.unflatten(1, (part_maps.shape[1], -1))  # (N, G, C / G, h, w)
    pooled = (groups * part_maps[:, :, None]).sum((3, 4))
    return (pooled / (part_maps.sum((2, 3)) + EPSILON)[:, :, None]).flatten(1)


class MainBranch(nn.Module):
    """Trunk, pooling and BNNeck: what images alone need at test time.

    Args:
        backbone: a name in :data:`BACKBONES`.
        size: (H, W) of the pictures.
        pooling: ``gap``, ``gem``, ``context``, or by predicted maps, ``foreground`` or ``parts``;
            or ``cls``, the trunk's class token instead.
        dtype: precision of the trunk; None means the precision of the parameters.
    """

    def __init__(
        self,
        backbone: str,
        size: tuple[int, int],
        *,
        pooling: str = "gap",
        dtype: torch.dtype | None = None,
    ):
        """Build with PyTorch's initial weights."""
        super().__init__()
        self.dtype = dtype
        self.trunk = BACKBONES[backbone](size)
        channels = self.trunk.channels
        poolings: dict[str, Callable[[], nn.Module]] = {
            "gap": AveragePooling,
            "gem": GeneralizedMeanPooling,
            "context": functools.partial(ContextPooling, channels, dtype),
            "foreground": functools.partial(PredictedPooling, channels, 1, dtype),
            "parts": functools.partial(PredictedPooling, channels, NUM_PARTS, dtype),
            "cls": ClassToken,
        }
        self.main_pooling = poolings[pooling]()
        self.main_neck = BNNeck(channels)

    def pooled(self, images: Tensor) -> tuple[Tensor, Pooled]:
        """The feature map (N, C, h, w) of normalised images (N, 3, H, W), and its pooling.

        The pooling is in the precision of the images.
        """
        # Contiguous: on channels-last maps PyTorch's BatchNorm sums the values one by one, which
        # loses one or two digits.
        features, token = self._features(images.contiguous())
        of_main = features if token is None else token
        return features, self.main_pooling(of_main.to(images.dtype))

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.dtype is None:
            return self._trunk(images)
        with torch.autocast(images.device.type, self.dtype):
            return self._trunk(images)

    def _trunk(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.main_pooling, ClassToken) and isinstance(self.trunk, ViT):
            return self.trunk.with_class_token(images)
        return self.trunk(images), None


class Embedder(MainBranch):
    """A batch of RGB pictures of the network's size to embeddings of unit length.

    Args:
        backbone: a name in :data:`BACKBONES`.
        pooling: as in :class:`MainBranch`.
        precision: of the trunk, ``float32`` or ``bfloat16``.
        height: of the pictures.
        width: of the pictures.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        dtype: of the pictures, ``uint8`` or ``float32``.
        channels_first: whether pictures are (N, 3, H, W) instead of (N, H, W, 3).
        normalised: whether the caller normalises; otherwise values are in [0, 255].
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        *,
        backbone: str,
        pooling: str,
        precision: str,
        height: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: str,
        channels_first: bool,
        normalised: bool,
    ):
        """Build with PyTorch's initial weights."""
        autocast = None if precision == "float32" else getattr(torch, precision)
        super().__init__(backbone, (height, width), pooling=pooling, dtype=autocast)
        self.row_shape = (3, height, width) if channels_first else (height, width, 3)
        self.input_dtype = getattr(torch, dtype)
        self.channels_first, self.normalised = channels_first, normalised
        if not normalised:
            centre, spread = (
                torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (mean, std)
            )
            # Not persistent: the weights' file has torchvision's names alone.
            self.register_buffer("scale", (1 / (255 * spread)).float(), persistent=False)
            self.register_buffer("offset", (-centre / spread).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed pictures; (N, D) float32.

        Raises:
            TypeError: ``images`` is not a tensor, or of another type than the artifact takes.
            ValueError: its layout or size is another.
        """
        self._check(images)
        # The conversion, even from float32, makes torch.export check the type.
        pictures = (images if self.channels_first else images.permute(0, 3, 1, 2)).float()
        if not self.normalised:
            pictures = pictures * self.scale + self.offset
        _, pooled = self.pooled(pictures)
        neck = self.main_neck(pooled.embedding, pooled.seen)
        return neck / torch.linalg.vector_norm(neck, dim=1, keepdim=True).clamp(min=EPSILON)

    def _check(self, images: Tensor) -> None:
        wanted = f"must be a tensor (N, {', '.join(map(str, self.row_shape))}) {self.input_dtype}"
        if not isinstance(images, Tensor):
            raise TypeError(f"images: {wanted}, not {type(images).__name__}")
        if images.dtype != self.input_dtype:
            raise TypeError(f"images: {wanted}, not {images.dtype}")
        if images.ndim != 4 or images.shape[1:] != self.row_shape:
            raise ValueError(f"images: {wanted}, not {tuple(images.shape)}")


def load(folder: str | os.PathLike) -> Embedder:
    """The network of an artifact, for inference.

    Args:
        folder: holds ``model.safetensors``.

    Returns:
        The network on the CPU, in evaluation mode; ``.to("cuda")`` moves it.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    tensors, about = read_safetensors(Path(folder) / "model.safetensors")
    network = Embedder(**json.loads(about["embedder"]))
    trunk = {name: value for name, value in tensors.items() if not name.startswith("main_")}
    others = {name: value for name, value in tensors.items() if name.startswith("main_")}
    network.load_state_dict({f"trunk.{name}": value for name, value in trunk.items()} | others)
    return network.eval().requires_grad_(False)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata, as the package safetensors reads them.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        entries = json.loads(content[8:start])
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file") from error
    about = entries.pop("__metadata__", {})
    if len(content) != start + max(entry["data_offsets"][1] for entry in entries.values()):
        raise ValueError(f"{path}: damaged; its length is not what its header says")
    types = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        values = torch.frombuffer(
            content[start + first : start + last], dtype=types[entry["dtype"]]
        )
        tensors[name] = values.reshape(entry["shape"])
    return tensors, about
