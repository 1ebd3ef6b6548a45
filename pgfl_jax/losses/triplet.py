"""Batch-hard triplet loss (docs/method.md, loss 2).

For an anchor a, let dp be the Euclidean distance to the farthest other image of its identity and dn
the distance to the nearest image of another identity. The anchor costs max(0, margin + dp - dn), or
log(1 + exp(dp - dn)) with the soft margin.

Mining compares distances by the Gram matrix, so no array of size (B, B, D) ever exists. The
distances of the B hardest positives and B hardest negatives are then computed from the differences,
without the Gram matrix's cancellation: identical embeddings are at distance 0, not at the square
root of a rounding error.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pgfl_jax.distributed.sharding import AXES, constrain
from pgfl_jax.losses.masking import masked_mean
from pgfl_jax.precision import upcast


class HardestPairs(NamedTuple):
    """What batch-hard mining finds for each anchor.

    Attributes:
        positive: (B,) index of the farthest candidate of the same identity.
        negative: (B,) index of the nearest candidate of another identity.
        valid: (B,) whether the anchor has both; where False, ignore the indices.
    """

    positive: Int[Array, " batch"]
    negative: Int[Array, " batch"]
    valid: Bool[Array, " batch"]


def mine_hardest(
    anchors: Float[Array, "batch channels"],
    candidates: Float[Array, "batch channels"],
    labels: Int[Array, " batch"],
    mask: Float[Array, "batch ..."] | None = None,
) -> HardestPairs:
    """Finds the hardest positive and negative of each anchor over the whole global batch.

    An image is never its own positive, even where anchors and candidates are different features of
    the same images. Ties go to the lower index. No gradient flows through the choice.

    On a line, identity 0 is at 0 and 1, identity 1 at 3 and 7.

    >>> points, labels = jnp.array([[0.0], [1.0], [3.0], [7.0]]), jnp.array([0, 0, 1, 1])
    >>> pairs = mine_hardest(points, points, labels)
    >>> pairs.positive.tolist(), pairs.negative.tolist()
    ([1, 0, 3, 2], [2, 2, 1, 1])

    Args:
        anchors: one feature per image.
        candidates: the features to choose positives and negatives from; row i is image i.
        labels: identity of each image.
        mask: as in `cross_triplet`.
    """
    count = labels.shape[0]
    anchors, candidates = upcast(anchors), upcast(candidates)
    present = _presence(anchors, mask)
    distances, common = _squared_distances(anchors, candidates, present)
    both, same = common > 0, labels[:, None] == labels[None, :]
    positives = both & same & ~jnp.eye(count, dtype=bool)
    negatives = both & ~same
    return HardestPairs(
        positive=jnp.argmax(jnp.where(positives, distances, -jnp.inf), axis=1),
        negative=jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1),
        valid=jnp.any(positives, axis=1) & jnp.any(negatives, axis=1),
    )


def batch_hard_triplet(
    embeddings: Float[Array, "batch channels"],
    labels: Int[Array, " batch"],
    *,
    margin: float | None,
    mask: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """Mean batch-hard triplet loss within one set of embeddings.

    The points of `mine_hardest` have dp - dn = 1 - 3, 1 - 2, 4 - 2 and 4 - 6. With margin 1.5 the
    anchors cost 0, 0.5, 3.5 and 0.

    >>> points, labels = jnp.array([[0.0], [1.0], [3.0], [7.0]]), jnp.array([0, 0, 1, 1])
    >>> float(batch_hard_triplet(points, labels, margin=1.5))
    1.0

    Args:
        embeddings: pooled features before the BNNeck.
        labels: identity of each image.
        margin: the margin in units of distance; None means the soft margin.
        mask: as in `cross_triplet`.

    Returns:
        The mean over anchors with a positive and a negative; exactly 0 when there are none.

    Reference: docs/method.md, loss 2; A. Hermans, L. Beyer, B. Leibe, "In Defense of the Triplet
    Loss for Person Re-Identification", arXiv 1703.07737, equation 5.
    """
    return cross_triplet(embeddings, embeddings, labels, margin=margin, mask=mask)


def cross_triplet(
    anchors: Float[Array, "batch channels"],
    candidates: Float[Array, "batch channels"],
    labels: Int[Array, " batch"],
    *,
    margin: float | None,
    mask: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """Batch-hard triplet loss with positives and negatives from another set of features.

    Where a mask (B, G) leaves out some of G equal groups of channels, two images are compared in
    the groups that both have, and the mean square over those stands for all: with presence v,
    d² = G · Σ_g v_ig v_jg ‖a_ig − c_jg‖² / Σ_g v_ig v_jg. Without a common group they are no pair.

    Args:
        anchors: one feature per image.
        candidates: the features to choose positives and negatives from; row i is image i.
        labels: identity of each image.
        margin: as in `batch_hard_triplet`.
        mask: (B,), 1 for images that take part, as anchors and as candidates; or (B, G), 1 for the
            groups of channels that an image has. None means all.

    Returns:
        As `batch_hard_triplet`.

    Reference: docs/method.md, losses 2 and 6.
    """
    # On a mesh each device compares its own rows with all rows, gathered once.
    anchors = constrain(upcast(anchors), AXES, None)
    candidates = constrain(upcast(candidates), None, None)
    hardest = mine_hardest(anchors, candidates, labels, mask)
    present = constrain(_presence(anchors, mask), None, None)

    def distance(other: Int[Array, " batch"]) -> Float[Array, " batch"]:
        return _distances(anchors, candidates[other], present * present[other])

    gap = distance(hardest.positive) - distance(hardest.negative)
    losses = jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)
    return masked_mean(losses, hardest.valid)


def _presence(
    features: Float[Array, "batch channels"], mask: Float[Array, "batch ..."] | None
) -> Float[Array, "batch groups"]:
    """1 for the groups of channels that an image has, else 0; one group unless the mask has G."""
    if mask is None:
        return jnp.ones((len(features), 1), features.dtype)
    groups = mask[:, None] if mask.ndim == 1 else mask
    return (groups > 0).astype(features.dtype)


def _grouped(
    features: Float[Array, "batch channels"], groups: int
) -> Float[Array, "batch groups group_channels"]:
    """Each group of channels on an axis of its own."""
    return features.reshape(len(features), groups, -1)


def _squared_distances(
    left: Float[Array, "batch channels"],
    right: Float[Array, "batch channels"],
    present: Float[Array, "batch groups"],
) -> tuple[Float[Array, "batch batch"], Float[Array, "batch batch"]]:
    """The squared distances of all pairs, and the number of groups that each pair has in common.

    Σ_g v_ig v_jg (‖l_ig‖² + ‖r_jg‖² − 2·l_ig·r_jg) is three products of matrices, in full precision
    even on matrix units that round. No gradient flows through them.
    """
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def kept(features: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
        groups = _grouped(jax.lax.stop_gradient(features), present.shape[-1])
        return (groups * present[..., None]).reshape(features.shape)

    def squares(features: Float[Array, "batch channels"]) -> Float[Array, "batch groups"]:
        return jnp.sum(jnp.square(_grouped(features, present.shape[-1])), axis=-1)

    left, right, common = kept(left), kept(right), product(present, present.T)
    total = product(squares(left), present.T) + product(present, squares(right).T)
    scale = present.shape[-1] / jnp.maximum(common, 1)
    return scale * (total - 2 * product(left, right.T)), common


def _distances(
    left: Float[Array, "batch channels"],
    right: Float[Array, "batch channels"],
    common: Float[Array, "batch groups"],
) -> Float[Array, " batch"]:
    """Euclidean distance row by row, over common groups; the gradient at distance 0 is 0."""
    groups = common.shape[-1]
    scale = jnp.sqrt(groups / jnp.maximum(jnp.sum(common, axis=-1), 1))
    difference = (_grouped(left - right, groups) * common[..., None]).reshape(left.shape)
    return scale * optax.safe_norm(difference, 0.0, axis=-1)
