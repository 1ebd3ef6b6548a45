"""The losses in PyTorch, written from docs/method.md; pgfl_jax/losses has them in JAX.

They compute in float32 at least. A masked image adds exactly nothing to a value or a gradient, and
a mean over no images is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from studies.pytorch.models import BranchOutputs, PGFLOutputs, pose_mask

if TYPE_CHECKING:
    from pgfl_jax.config import LossConfig

EPSILON = 1e-6

Scalar = Float[Tensor, ""]
Labels = Int64[Tensor, " batch"]
Mask = Float[Tensor, " batch"]
Groups = Float[Tensor, "batch ..."]
Vectors = Float[Tensor, "batch channels"]
Logits = Float[Tensor, "batch identities"]


def masked_mean(
    values: Float[Tensor, "*shape"], mask: Float[Tensor, "*shape"] | None = None
) -> Scalar:
    """Σ mask·values / Σ mask, exactly 0 for an empty mask; None means all."""
    if mask is None:
        return values.mean()
    kept = torch.where(mask > 0, values, 0) * mask
    total = mask.sum()
    return kept.sum() / torch.where(total > 0, total, 1)


def identity_loss(
    logits: Logits, labels: Labels, *, smoothing: float, mask: Mask | None = None
) -> Scalar:
    """Mean cross-entropy, with a share ``smoothing`` of the target spread over all identities."""
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return masked_mean(losses, mask)


class HardestPairs(NamedTuple):
    """For each anchor the farthest positive, the nearest negative, and whether it has both."""

    positive: Int64[Tensor, " batch"]
    negative: Int64[Tensor, " batch"]
    valid: Bool[Tensor, " batch"]


def common_groups(labels: Labels, mask: Groups | None) -> Float[Tensor, "batch batch groups"]:
    """1 for the groups of channels that both images of a pair have; one group without a mask."""
    everyone = torch.ones(len(labels), device=labels.device) if mask is None else mask
    present = everyone.reshape(len(labels), -1)
    return ((present[:, None] > 0) & (present[None] > 0)).to(torch.float64)


@torch.no_grad()
def mine_hardest(
    anchors: Vectors, candidates: Vectors, labels: Labels, mask: Groups | None = None
) -> HardestPairs:
    """Batch-hard mining, from the distances of all anchors to all candidates.

    An image is never its own positive. Images without a common group of channels are no pair.
    """
    common = common_groups(labels, mask)
    distances, both = _distances(anchors, candidates, common), common.sum(2) > 0
    same = labels[:, None] == labels[None, :]
    positives = both & same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negatives = both & ~same
    return HardestPairs(
        positive=distances.masked_fill(~positives, -torch.inf).argmax(1),
        negative=distances.masked_fill(~negatives, torch.inf).argmin(1),
        valid=positives.any(1) & negatives.any(1),
    )


def _distances(
    anchors: Vectors, candidates: Vectors, common: Float[Tensor, "batch batch groups"]
) -> Float[Tensor, "batch batch"]:
    """Euclidean distances from the differences, which avoids the Gram matrix's cancellation.

    The root of G times the mean square over the groups that both images have.
    """
    groups = common.shape[2]
    pairs = zip(anchors.chunk(groups, 1), candidates.chunk(groups, 1), strict=True)
    exact = "donot_use_mm_for_euclid_dist"
    squares = torch.stack([torch.cdist(*pair, compute_mode=exact) ** 2 for pair in pairs], 2)
    return ((squares * common).sum(2) * groups / common.sum(2).clamp(min=1)).sqrt()


def triplet_loss(
    anchors: Vectors,
    candidates: Vectors,
    labels: Labels,
    *,
    margin: float | None,
    mask: Groups | None = None,
) -> Scalar:
    """Mean of max(0, margin + dp - dn), or of log(1 + exp(dp - dn)) with ``margin=None``.

    Positives and negatives are rows of ``candidates``. With the anchors as candidates, this is the
    usual loss. ``mask`` (B,) says which images take part, or (B, G) which groups of channels each
    of them has; a pair is compared in those that both have.
    """
    pairs = mine_hardest(anchors, candidates, labels, mask)
    common = common_groups(labels, mask).to(anchors)
    rows = torch.arange(len(labels), device=labels.device)
    far, near = (
        _distance(anchors - candidates[others], common[rows, others])
        for others in (pairs.positive, pairs.negative)
    )
    gap = far - near
    losses = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return masked_mean(losses, pairs.valid.to(losses.dtype))


def _distance(difference: Vectors, common: Float[Tensor, "batch groups"]) -> Mask:
    groups = common.shape[1]
    kept = difference.unflatten(1, (groups, -1)) * common[:, :, None]
    scale = (groups / common.sum(1).clamp(min=1)).sqrt()
    return scale * torch.linalg.vector_norm(kept.flatten(1), dim=1)


def _shares(maps: Float[Tensor, "*maps height width"]) -> Float[Tensor, "*maps height width"]:
    """Divides each map by its sum."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def _log(probabilities: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return probabilities.clamp(min=EPSILON).log()


def alignment_loss(
    features: Float[Tensor, "batch channels height width"],
    foreground: Float[Tensor, "batch height width"],
    has_pose: Mask,
) -> Scalar:
    """Mean -log share of the features' energy that falls on the foreground."""
    energy = _shares(features.square().sum(1))
    return masked_mean(-_log((energy * foreground).sum((1, 2))), has_pose)


def semantic_loss(
    features: Float[Tensor, "batch channels height width"],
    part_maps: Float[Tensor, "batch parts height width"],
    visibility: Float[Tensor, "batch parts"],
) -> Scalar:
    """Mean KL of the channel groups' energy from the part maps, over visible parts."""
    groups = features.unflatten(1, (part_maps.shape[1], -1))
    energy, target = _shares(groups.square().sum(2)), _shares(part_maps)
    divergence = (target * (_log(target) - _log(energy))).sum((2, 3))
    return masked_mean(divergence, visibility * (part_maps > 0).any(3).any(2))


def feature_kd(student: Vectors, teacher: Vectors, has_pose: Mask) -> Scalar:
    """Mean 1 - cosine; the teacher gets no gradient."""
    cosine = F.cosine_similarity(student, teacher.detach(), eps=EPSILON)
    return masked_mean(1 - cosine, has_pose)


def map_loss(
    logits: Float[Tensor, "batch maps height width"],
    part_maps: Float[Tensor, "batch parts height width"],
    has_pose: Mask,
) -> Scalar:
    """Mean cross-entropy of predicted maps: the parts' or, if it is one, the foreground's."""
    target = part_maps.amax(1, keepdim=True) if logits.shape[1] == 1 else part_maps
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return masked_mean(losses.mean((1, 2, 3)), has_pose)


def logit_kd(student: Logits, teacher: Logits, has_pose: Mask, *, temperature: float) -> Scalar:
    """Mean T²·KL(teacher ‖ student) of softened logits; the teacher gets no gradient."""
    student = F.log_softmax(student / temperature, 1)
    teacher = F.log_softmax(teacher.detach() / temperature, 1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return masked_mean(temperature**2 * divergence, has_pose)


def interaction_loss(
    outputs: PGFLOutputs, labels: Labels, has_pose: Mask, config: LossConfig
) -> Scalar:
    """Loss between the branches; 0 for ``off`` and ``shared_classifier``."""
    if config.interaction_variant == "cross_classifier":
        first, second = (
            identity_loss(logits, labels, smoothing=config.smoothing, mask=has_pose)
            for logits in outputs.cross_logits
        )
    elif config.interaction_variant == "cross_triplet":
        anchors, margin = outputs.main.embedding, config.triplet_margin
        first, second = (
            triplet_loss(anchors, branch.embedding, labels, margin=margin, mask=has_pose)
            for branch in (outputs.foreground, outputs.parts)
        )
    else:
        return torch.zeros((), device=labels.device)
    return (first + second) / 2


def kd_scale(epoch: float, config: LossConfig) -> float:
    """Share of the distillation's weight: 0 before ``kd_start``, 1 ``kd_ramp`` epochs later."""
    since_start = epoch - config.kd_start
    if config.kd_ramp == 0:
        return float(since_start >= 0)
    return min(max(since_start / config.kd_ramp, 0.0), 1.0)


def total_loss(
    outputs: PGFLOutputs, batch: Mapping[str, Tensor], config: LossConfig, *, epoch: float
) -> tuple[Scalar, dict[str, Scalar]]:
    """The weighted sum, and every term by name, unweighted. Terms of weight 0 are left out.

    ``batch`` holds ``labels`` (B,), ``part_maps`` (B, h, w, G) and ``visibility`` (B, G).
    """
    labels, scale = batch["labels"], kd_scale(epoch, config)
    weights: dict[str, float] = {}
    terms: dict[str, Scalar] = {}

    def add(name: str, weight: float, value: Callable[[], Scalar], scale: float = 1.0) -> None:
        if weight:
            weights[name], terms[name] = weight * scale, value()

    def add_branch(
        name: str, branch: BranchOutputs, mask: Mask | None, groups: Tensor | None = None
    ) -> None:
        smoothing, margin = config.smoothing, config.triplet_margin
        embedding, logits = branch.embedding, branch.logits
        identity = partial(identity_loss, logits, labels, smoothing=smoothing, mask=mask)
        add(f"id_{name}", config.identity, identity)
        compared = mask if groups is None else groups
        triplet = partial(triplet_loss, embedding, embedding, labels, margin=margin, mask=compared)
        add(f"triplet_{name}", config.triplet, triplet)

    main = outputs.main
    add_branch("main", main, None)
    if outputs.foreground is not None and outputs.parts is not None:
        part_maps, visibility = batch["part_maps"].permute(0, 3, 1, 2), batch["visibility"]
        has_pose = pose_mask(visibility)
        features = outputs.features.to(main.embedding.dtype)
        if config.alignment_variant == "cosine":
            foreground = outputs.foreground.embedding
            alignment = partial(feature_kd, main.embedding, foreground, has_pose)
        else:
            own = features if outputs.main_features is None else outputs.main_features
            alignment = partial(alignment_loss, own, part_maps.amax(1), has_pose)
        add("alignment", config.alignment, alignment)
        add("semantic", config.semantic, partial(semantic_loss, features, part_maps, visibility))
        if outputs.map_logits is not None:
            add("maps", config.maps, partial(map_loss, outputs.map_logits, part_maps, has_pose))
        between = partial(interaction_loss, outputs, labels, has_pose, config)
        add("interaction", config.interaction, between)
        add_branch("foreground", outputs.foreground, has_pose)
        add_branch("parts", outputs.parts, has_pose, visibility)
        for name, teacher in (("foreground", outputs.foreground), ("parts", outputs.parts)):
            if config.teachers not in ("both", name):
                continue
            feature = partial(feature_kd, main.neck, teacher.neck, has_pose)
            add(f"kd_feature_{name}", config.feature_kd, feature, scale)
            logit = partial(
                logit_kd, main.logits, teacher.logits, has_pose, temperature=config.temperature
            )
            add(f"kd_logit_{name}", config.logit_kd, logit, scale)
    total = sum(weights[name] * value for name, value in terms.items())
    return total, terms | {"total": total}
