"""Backbones by name. Each maps images (B, H, W, 3) to a feature map (B, h, w, C)."""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float

from pgfl_jax.models.backbones.convnext import ConvNeXt
from pgfl_jax.models.backbones.osnet import OSNet
from pgfl_jax.models.backbones.resnet import REMAT_POLICIES, BasicBlock, Bottleneck, ResNet
from pgfl_jax.models.backbones.swin import Swin
from pgfl_jax.models.backbones.vit import ViT

__all__ = ["BACKBONES", "REMAT_POLICIES", "Backbone", "ConvNeXt", "OSNet", "ResNet", "Swin", "ViT"]


class Backbone(Protocol):
    """A Linen module that also knows the shape of its feature map.

    Its attributes, which ``copy`` sets, include ``dtype`` (the precision it computes in; None means
    that of the parameters) and ``remat`` (a name in `REMAT_POLICIES`, or ``none``). One whose
    residuals can be dropped also has ``drop_path``, a share in [0, 1). One with a class token also
    has the method ``with_class_token``, which takes what a call takes and returns the map and the
    token (B, C).
    """

    @property
    def channels(self) -> int:
        """Channels of the feature map, C."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules after the stem or embedding, from input to output."""
        ...

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the feature map of an image of (height, width) pixels.

        Raises:
            ValueError: the backbone cannot take such a height or width; it can always take 0.
        """
        ...

    def copy(self, **attributes: Any) -> "Backbone":
        """A copy of the backbone with these attributes changed."""
        ...

    def __call__(
        self, images: Float[Array, "batch image_height image_width 3"], *, train: bool
    ) -> Float[Array, "batch height width channels"]:
        """The feature map; batch statistics in training, running statistics otherwise."""
        ...


BACKBONES: Mapping[str, Backbone] = {
    # For small images on CPUs: at 128x64 its map is 16x8, as ResNet-50's is at 256x128.
    "resnet8": ResNet(BasicBlock, (1, 1, 1), (48, 96, 192), (1, 2, 1), patch_stem=True),
    "resnet18": ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNet(Bottleneck, (3, 4, 23, 3)),
    "resnet50_ibn_a": ResNet(Bottleneck, (3, 4, 6, 3), ibn_stages=3),
    "vit_tiny": ViT(192, 12, 3),
    "vit_small": ViT(384, 12, 6),
    "vit_base": ViT(768, 12, 12),
    # Overlapping patches, as in TransReID.
    "vit_small_overlap": ViT(384, 12, 6, stride=12),
    "vit_base_overlap": ViT(768, 12, 12, stride=12),
    "vit_base_clip": ViT(768, 12, 12, clip=True),
    "swin_tiny": Swin(96, (2, 2, 6, 2)),
    "swin_small": Swin(96, (2, 2, 18, 2)),
    "swin_base": Swin(128, (2, 2, 18, 2)),
    "swin_tiny_solider": Swin(96, (2, 2, 6, 2), solider=True),
    "swin_small_solider": Swin(96, (2, 2, 18, 2), solider=True),
    "swin_base_solider": Swin(128, (2, 2, 18, 2), solider=True),
    "convnext_tiny": ConvNeXt(96, (3, 3, 9, 3)),
    "osnet_x1_0": OSNet(),
}
