"""The losses: pure functions of shapes and masks, one file each; `total_loss` adds them up."""

from pgfl_jax.losses.alignment import foreground_alignment
from pgfl_jax.losses.cross_branch import INTERACTION_VARIANTS, interaction
from pgfl_jax.losses.feature_kd import feature_distillation
from pgfl_jax.losses.identity import identity_loss
from pgfl_jax.losses.logit_kd import logit_distillation
from pgfl_jax.losses.map_prediction import map_prediction
from pgfl_jax.losses.masking import masked_mean, spatial_distribution
from pgfl_jax.losses.semantic import channel_group_semantic
from pgfl_jax.losses.total import kd_scale, total_loss
from pgfl_jax.losses.triplet import (
    HardestPairs,
    batch_hard_triplet,
    cross_triplet,
    mine_hardest,
)

__all__ = [
    "INTERACTION_VARIANTS",
    "HardestPairs",
    "batch_hard_triplet",
    "channel_group_semantic",
    "cross_triplet",
    "feature_distillation",
    "foreground_alignment",
    "identity_loss",
    "interaction",
    "kd_scale",
    "logit_distillation",
    "map_prediction",
    "masked_mean",
    "mine_hardest",
    "spatial_distribution",
    "total_loss",
]
