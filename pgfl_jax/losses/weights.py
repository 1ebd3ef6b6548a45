"""The weights and settings of the losses, and the warm-up of the distillation."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

InteractionVariant = Literal["off", "cross_classifier", "cross_triplet", "shared_classifier"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the losses add up. The defaults stand in configs/default.py; here there are none.

    Attributes:
        identity: weight of the identity loss of each branch.
        triplet: weight of the triplet loss of each branch.
        alignment: weight of the foreground alignment.
        semantic: weight of the channel-group semantic loss.
        feature_kd: weight of the feature distillation from each of the two teachers.
        logit_kd: weight of the logit distillation from each of the two teachers.
        interaction: weight of the interaction between branches.
        smoothing: label smoothing of the identity losses, in [0, 1).
        margin: margin of the triplet losses.
        soft_margin: whether the soft margin, log(1 + exp(dp - dn)), takes its place.
        temperature: temperature of the logit distillation, above 0.
        alignment_variant: ``energy`` (-log of the energy's share on the foreground) or ``cosine``
            (1 - cosine between MB's embedding and FEB's, which gets no gradient).
        interaction_variant: one of `pgfl_jax.losses.INTERACTION_VARIANTS`.
        kd_start: epoch at which distillation starts.
        kd_ramp: epochs over which its weight then rises linearly; 0 means at once.
    """

    identity: float
    triplet: float
    alignment: float
    semantic: float
    feature_kd: float
    logit_kd: float
    interaction: float
    smoothing: float
    margin: float
    soft_margin: bool
    temperature: float
    alignment_variant: Literal["energy", "cosine"]
    interaction_variant: InteractionVariant
    kd_start: float
    kd_ramp: float

    @property
    def triplet_margin(self) -> float | None:
        """The margin as `losses.batch_hard_triplet` takes it: None for the soft one."""
        return None if self.soft_margin else self.margin


def kd_scale(epoch: float | Float[Array, ""], weights: LossConfig) -> Float[Array, ""]:
    """Share of the distillation's weight, in [0, 1], of the default float type.

    It is 0 before ``kd_start`` and rises linearly to 1 at ``kd_start + kd_ramp``; with a ramp of 0
    it is 1 from ``kd_start`` on. Safe under jit.

    Args:
        epoch: epochs trained so far; may be fractional.
        weights: what holds ``kd_start`` and ``kd_ramp``.

    Reference: docs/method.md, loss 5 (the warm-up).
    """
    since_start = jnp.asarray(epoch, float) - weights.kd_start
    if weights.kd_ramp == 0:
        return (since_start >= 0).astype(since_start.dtype)
    return jnp.clip(since_start / weights.kd_ramp, 0.0, 1.0)
