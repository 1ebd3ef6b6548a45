"""Interaction: the branches train through one another (docs/method.md, loss 6).

The paper mentions "interaction-based training" but does not define it. The variants are ours.
"""

import typing

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgfl_jax.config import InteractionVariant
from pgfl_jax.losses.identity import identity_loss
from pgfl_jax.losses.triplet import cross_triplet
from pgfl_jax.models.outputs import PGFLOutputs

INTERACTION_VARIANTS = typing.get_args(InteractionVariant)


def interaction(
    outputs: PGFLOutputs,
    labels: Int[Array, " batch"],
    has_pose: Float[Array, " batch"],
    *,
    variant: str,
    margin: float | None,
    smoothing: float,
) -> Float[Array, ""]:
    """Loss between the branches, in one of four variants.

    - ``off``: exactly 0.
    - ``cross_classifier``: the classifiers of FEB and SAB classify MB's features; the mean of the
      two identity losses.
    - ``cross_triplet``: anchors from MB, positives and negatives from FEB and, separately, SAB; the
      mean of the two batch-hard triplet losses. An image is never its own positive.
    - ``shared_classifier``: the branches share one classifier. The network does this, so the loss
      is exactly 0.

    Args:
        outputs: all branches, with the pose branches present.
        labels: identity of each image.
        has_pose: 1 where the image has a pose annotation, else 0.
        variant: one of `INTERACTION_VARIANTS`.
        margin: the triplet's margin; None means the soft margin.
        smoothing: label smoothing of the identity losses.

    Returns:
        The loss, at least 0; exactly 0 when no image has a pose.

    Raises:
        ValueError: the variant is unknown, or the outputs lack what it needs.

    Reference: docs/method.md, loss 6.
    """
    if variant in ("off", "shared_classifier"):
        return jnp.zeros(())
    if variant == "cross_classifier":
        if outputs.cross_logits is None:
            raise ValueError("interaction 'cross_classifier' needs outputs with cross_logits")
        first, second = (
            identity_loss(logits, labels, smoothing=smoothing, mask=has_pose)
            for logits in outputs.cross_logits
        )
    elif variant == "cross_triplet":
        if outputs.foreground is None or outputs.parts is None:
            raise ValueError("interaction 'cross_triplet' needs the pose branches")
        first, second = (
            cross_triplet(
                outputs.main.embedding, branch.embedding, labels, margin=margin, mask=has_pose
            )
            for branch in (outputs.foreground, outputs.parts)
        )
    else:
        known = ", ".join(INTERACTION_VARIANTS)
        raise ValueError(f"unknown interaction variant '{variant}'; choose from {known}")
    return (first + second) / 2
