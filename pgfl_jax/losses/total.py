"""The weighted sum of all losses (docs/method.md, "Losses"); the only place that knows the weights.

total = Σ_terms weight · term. The warm-up scales the distillation terms as well.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.config import LossConfig
from pgfl_jax.losses.alignment import foreground_alignment
from pgfl_jax.losses.cross_branch import interaction
from pgfl_jax.losses.feature_kd import feature_distillation
from pgfl_jax.losses.identity import identity_loss
from pgfl_jax.losses.logit_kd import logit_distillation
from pgfl_jax.losses.map_prediction import map_prediction
from pgfl_jax.losses.semantic import channel_group_semantic
from pgfl_jax.losses.triplet import batch_hard_triplet
from pgfl_jax.models.branches import pose_mask
from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs

Scalar = Float[Array, ""]


def kd_scale(epoch: float | Scalar, config: LossConfig) -> Scalar:
    """Share of the distillation's weight, in [0, 1], of the default float type.

    It is 0 before ``kd_start`` and rises linearly to 1 at ``kd_start + kd_ramp``; with a ramp of 0
    it is 1 from ``kd_start`` on. Works under jit.

    >>> float(kd_scale(2.5, LossConfig(kd_start=2.0, kd_ramp=1.0)))
    0.5

    Args:
        epoch: epochs trained so far; may be fractional.
        config: gives ``kd_start`` and ``kd_ramp``.

    Reference: docs/method.md, loss 5 (the warm-up).
    """
    since_start = jnp.asarray(epoch, float) - config.kd_start
    if config.kd_ramp == 0:
        return (since_start >= 0).astype(since_start.dtype)
    return jnp.clip(since_start / config.kd_ramp, 0.0, 1.0)


def total_loss(
    outputs: PGFLOutputs,
    batch: Mapping[str, Array],
    config: LossConfig,
    *,
    kd_scale: float | Scalar = 1.0,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Adds up the losses of one global batch.

    A term of weight 0 is neither computed nor reported. Without the pose branches only the main
    branch's terms exist. An image without a pose counts only in the main branch's terms.

    Args:
        outputs: what the model returns with ``train=True``.
        batch: ``labels`` (B,) and, with pose branches, ``part_maps`` (B, h, w, G) and
            ``visibility`` (B, G), both in [0, 1].
        config: weights and settings.
        kd_scale: share of the distillation's weight in [0, 1], from :func:`kd_scale`.

    Returns:
        The total, and every term by name, unweighted and unscaled: ``id_main``,
        ``id_foreground``, ``id_parts``, ``triplet_main``, ``triplet_foreground``,
        ``triplet_parts``, ``alignment``, ``semantic``, ``kd_feature_foreground``,
        ``kd_feature_parts``, ``kd_logit_foreground``, ``kd_logit_parts``, ``interaction``,
        ``maps``; and ``total``, the weighted sum.

    Raises:
        ValueError: the outputs have no logits.
    """
    labels = batch["labels"]
    wanted = _branch("main", outputs.main, labels, None, config)
    if outputs.foreground is not None and outputs.parts is not None:
        wanted |= _pose_guided(outputs, outputs.foreground, batch, config)
        has_pose = pose_mask(batch["visibility"])
        wanted |= _branch("foreground", outputs.foreground, labels, has_pose, config)
        wanted |= _branch("parts", outputs.parts, labels, batch["visibility"], config)
        for name in ("foreground", "parts") if config.teachers == "both" else (config.teachers,):
            teacher = getattr(outputs, name)
            wanted |= _distillation(name, outputs.main, teacher, has_pose, config, kd_scale)
    total, terms = jnp.zeros(()), {}
    for name, term in wanted.items():
        if term.weight:
            terms[name] = term.loss()
            total = total + term.weight * term.scale * terms[name]
    return total, terms | {"total": total}


class _Term(NamedTuple):
    """A loss that is computed when it is called, its weight and its share of the weight."""

    weight: float
    loss: Callable[[], Scalar]
    scale: float | Scalar = 1.0


def _branch(
    name: str, branch: BranchOutputs, labels: Array, mask: Array | None, config: LossConfig
) -> dict[str, _Term]:
    """Identity and triplet loss; ``mask`` (B,) chooses images, (B, G) channel groups as well."""
    rows = mask if mask is None or mask.ndim == 1 else pose_mask(mask)
    identity = partial(
        identity_loss, _logits(branch), labels, smoothing=config.smoothing, mask=rows
    )
    triplet = partial(
        batch_hard_triplet, branch.embedding, labels, margin=config.triplet_margin, mask=mask
    )
    return {
        f"id_{name}": _Term(config.identity, identity),
        f"triplet_{name}": _Term(config.triplet, triplet),
    }


def _pose_guided(
    outputs: PGFLOutputs,
    foreground: BranchOutputs,
    batch: Mapping[str, Array],
    config: LossConfig,
) -> dict[str, _Term]:
    """Alignment, semantics, predicted maps and interaction."""
    part_maps, visibility = batch["part_maps"], batch["visibility"]
    has_pose = pose_mask(visibility)
    if config.alignment_variant == "cosine":
        main = outputs.main.embedding
        align = partial(feature_distillation, main, foreground.embedding, has_pose)
    else:
        own = outputs.features if outputs.main_features is None else outputs.main_features
        align = partial(foreground_alignment, own, jnp.max(part_maps, axis=-1), has_pose)
    terms = {
        "alignment": _Term(config.alignment, align),
        "semantic": _Term(
            config.semantic,
            partial(channel_group_semantic, outputs.features, part_maps, visibility),
        ),
    }
    if (logits := outputs.map_logits) is not None:
        maps = partial(map_prediction, logits, part_maps, has_pose)
        terms["maps"] = _Term(config.maps, maps)
    between = partial(
        interaction, outputs, batch["labels"], has_pose,
        variant=config.interaction_variant,
        margin=config.triplet_margin, smoothing=config.smoothing,
    )  # fmt: skip
    return terms | {"interaction": _Term(config.interaction, between)}


def _distillation(
    name: str,
    main: BranchOutputs,
    teacher: BranchOutputs,
    has_pose: Array,
    config: LossConfig,
    scale: float | Scalar,
) -> dict[str, _Term]:
    """What a teacher's embeddings and logits teach the main branch."""
    feature = partial(feature_distillation, main.neck, teacher.neck, has_pose)
    logit = partial(
        logit_distillation, _logits(main), _logits(teacher), has_pose,
        temperature=config.temperature,
    )  # fmt: skip
    return {
        f"kd_feature_{name}": _Term(config.feature_kd, feature, scale),
        f"kd_logit_{name}": _Term(config.logit_kd, logit, scale),
    }


def _logits(branch: BranchOutputs) -> Float[Array, "batch identities"]:
    """The branch's logits, which exist only in training."""
    if branch.logits is None:
        raise ValueError("the losses need logits: run the model with train=True")
    return branch.logits
