"""The network in PyTorch: the main branch of exported artifacts and the two pose-guided branches.

Written from docs/method.md in PyTorch's own style; pgfl_jax/models has it in Flax. Inputs have the
pipeline's layout, channels last; inside, channels come second.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pgfl_jax.export.torch_model import (
    BNNeck,
    MainBranch,
    Swin,
    ViT,
    part_pooling,
)

Features = Float[Tensor, "batch channels height width"]
Vectors = Float[Tensor, "batch channels"]
Mask = Float[Tensor, " batch"]


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
    map_logits: Float[Tensor, "batch maps height width"] | None = None
    main_features: Features | None = None


class PGFL(MainBranch):
    """One trunk, a main branch for test time and two pose-guided teachers for training.

    Args:
        num_identities: number of classes.
        backbone: a name in :data:`pgfl_jax.export.torch_model.BACKBONES`.
        size: (H, W) of the pictures.
        pooling: of the main branch, as in :class:`pgfl_jax.export.torch_model.MainBranch`.
        pose_branches: False for the main branch only.
        interaction: ``shared_classifier`` gives all branches one classifier; ``cross_classifier``
            also applies the teachers' classifiers to the main branch.
        dtype: precision of trunk and classifiers; None means that of the parameters.
    """

    def __init__(
        self,
        num_identities: int,
        backbone: str,
        size: tuple[int, int],
        *,
        pooling: str = "gap",
        pose_branches: bool = True,
        interaction: str = "off",
        dtype: torch.dtype | None = None,
    ):
        """Build and initialise."""
        super().__init__(backbone, size, pooling=pooling, dtype=dtype)
        self.pose_branches, self.interaction = pose_branches, interaction
        channels = self.trunk.channels
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
        features, (embedding, seen, map_logits, own) = self.pooled(images.permute(0, 3, 1, 2))
        pooled = features.to(images.dtype)
        main = self._branch(embedding, self.main_neck, "main", seen)
        if part_maps is None or visibility is None or not self.pose_branches:
            return PGFLOutputs(features, main, None, None, None, map_logits, own)
        has_pose = pose_mask(visibility)
        part_maps = part_maps.permute(0, 3, 1, 2)
        foreground = part_pooling(pooled, part_maps.amax(1, keepdim=True))
        parts = part_pooling(pooled, part_maps)
        visible = (visibility > 0).to(visibility.dtype)
        cross_logits = None
        if self.training and self.interaction == "cross_classifier":
            cross_logits = self.foreground_classifier(main.neck), self.parts_classifier(main.neck)
        return PGFLOutputs(
            features,
            main,
            self._branch(foreground, self.foreground_neck, "foreground", has_pose),
            self._branch(parts, self.parts_neck, "parts", visible),
            cross_logits,
            map_logits,
            own,
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

    Convolutions: N(0, 2 / fan-out), but 0 in the last layer of MB's pooling, and biases 0;
    classifiers: N(0, 0.001²); all else in a transformer: N(0, 0.02²), and biases 0; normalisation
    layers keep 1 and 0.
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
    for name, parameter in model.main_pooling.named_parameters():
        if name.startswith(("maps.", "change.")) or name.endswith(".bias"):
            nn.init.zeros_(parameter)
    if isinstance(model.trunk, ViT | Swin):
        for module in model.trunk.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
