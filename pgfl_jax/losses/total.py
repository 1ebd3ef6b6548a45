"""The weighted sum of all losses (docs/method.md, "Losses"); the only place that knows weights.

total = Σ_terms weight · term, where the distillation terms are also scaled by their warm-up.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.losses.alignment import foreground_alignment
from pgfl_jax.losses.cross_branch import interaction
from pgfl_jax.losses.feature_kd import feature_distillation
from pgfl_jax.losses.identity import identity_loss
from pgfl_jax.losses.logit_kd import logit_distillation
from pgfl_jax.losses.semantic import channel_group_semantic
from pgfl_jax.losses.triplet import batch_hard_triplet
from pgfl_jax.losses.weights import LossConfig
from pgfl_jax.models.branches import pose_mask
from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs

Scale = float | Float[Array, ""]


class _Term(NamedTuple):
    """A loss that is computed only if its weight is not 0."""

    weight: float
    compute: Callable[[], Float[Array, ""]]
    scale: Scale = 1.0


def total_loss(
    outputs: PGFLOutputs,
    batch: Mapping[str, Array],
    weights: LossConfig,
    *,
    kd_scale: Scale = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Adds up the losses of one global batch.

    A term of weight 0 is not computed and not reported. Without the pose branches only the main
    branch's terms exist. An image without a pose takes part in the main branch's terms alone.

    Args:
        outputs: what the model gave with ``train=True``.
        batch: ``labels`` (B,) and, with pose branches, ``part_maps`` (B, h, w, G) and
            ``visibility`` (B, G), both in [0, 1].
        weights: weights and settings.
        kd_scale: share of the distillation's weight in [0, 1], from `losses.kd_scale`.

    Returns:
        The total, and every term by name, not yet weighted nor scaled: ``id_main``,
        ``id_foreground``, ``id_parts``, ``triplet_main``, ``triplet_foreground``,
        ``triplet_parts``, ``alignment``, ``semantic``, ``kd_feature_foreground``,
        ``kd_feature_parts``, ``kd_logit_foreground``, ``kd_logit_parts``, ``interaction``; and
        ``total``, the weighted sum.

    Raises:
        ValueError: outputs without logits.
    """
    terms = _branch_terms("main", outputs.main, batch["labels"], None, weights)
    if outputs.foreground is not None and outputs.parts is not None:
        terms |= _pose_terms(outputs, outputs.foreground, outputs.parts, batch, weights, kd_scale)
    used = {name: term for name, term in terms.items() if term.weight != 0}
    values = {name: term.compute() for name, term in used.items()}
    total = jnp.zeros(())
    for name, term in used.items():
        total = total + term.weight * term.scale * values[name]
    return total, values | {"total": total}


def _branch_terms(
    name: str,
    branch: BranchOutputs,
    labels: Array,
    mask: Array | None,
    weights: LossConfig,
) -> dict[str, _Term]:
    """Identity and triplet loss of one branch."""
    identity = partial(
        identity_loss, _logits(branch), labels, smoothing=weights.smoothing, mask=mask
    )
    triplet = partial(
        batch_hard_triplet, branch.embedding, labels, margin=weights.triplet_margin, mask=mask
    )
    return {
        f"id_{name}": _Term(weights.identity, identity),
        f"triplet_{name}": _Term(weights.triplet, triplet),
    }


def _pose_terms(
    outputs: PGFLOutputs,
    foreground: BranchOutputs,
    parts: BranchOutputs,
    batch: Mapping[str, Array],
    weights: LossConfig,
    kd_scale: Scale,
) -> dict[str, _Term]:
    """Every term that needs poses; all are exactly 0 in a batch without any."""
    labels, visibility = batch["labels"], batch["visibility"]
    has_pose = pose_mask(visibility)
    semantic = partial(channel_group_semantic, outputs.features, batch["part_maps"], visibility)
    between = partial(
        interaction,
        outputs,
        labels,
        has_pose,
        variant=weights.interaction_variant,
        margin=weights.triplet_margin,
        smoothing=weights.smoothing,
    )
    terms = {
        "alignment": _alignment_term(outputs, foreground, batch["part_maps"], has_pose, weights),
        "semantic": _Term(weights.semantic, semantic),
        "interaction": _Term(weights.interaction, between),
    }
    for name, branch in {"foreground": foreground, "parts": parts}.items():
        terms |= _branch_terms(name, branch, labels, has_pose, weights)
        terms |= _distillation_terms(name, outputs.main, branch, has_pose, weights, kd_scale)
    return terms


def _alignment_term(
    outputs: PGFLOutputs,
    foreground: BranchOutputs,
    part_maps: Array,
    has_pose: Array,
    weights: LossConfig,
) -> _Term:
    """Foreground alignment in the variant that the weights name."""
    if weights.alignment_variant == "cosine":
        compute = partial(
            feature_distillation, outputs.main.embedding, foreground.embedding, has_pose
        )
    else:
        inside = jnp.max(part_maps, axis=-1)
        compute = partial(foreground_alignment, outputs.features, inside, has_pose)
    return _Term(weights.alignment, compute)


def _distillation_terms(
    name: str,
    student: BranchOutputs,
    teacher: BranchOutputs,
    has_pose: Array,
    weights: LossConfig,
    kd_scale: Scale,
) -> dict[str, _Term]:
    """Feature and logit distillation from one teacher."""
    feature = partial(feature_distillation, student.neck, teacher.neck, has_pose)
    logit = partial(
        logit_distillation,
        _logits(student),
        _logits(teacher),
        has_pose,
        temperature=weights.temperature,
    )
    return {
        f"kd_feature_{name}": _Term(weights.feature_kd, feature, kd_scale),
        f"kd_logit_{name}": _Term(weights.logit_kd, logit, kd_scale),
    }


def _logits(branch: BranchOutputs) -> Float[Array, "batch identities"]:
    """The branch's logits, which only a training pass has."""
    if branch.logits is None:
        raise ValueError("the losses need logits: run the model with train=True")
    return branch.logits
