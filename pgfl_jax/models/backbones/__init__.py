"""Backbones: images (B, H, W, 3) to a feature map (B, h, w, C)."""

from pgfl_jax.models.backbones.resnet import BACKBONES, REMAT_POLICIES, ResNet

__all__ = ["BACKBONES", "REMAT_POLICIES", "ResNet"]
