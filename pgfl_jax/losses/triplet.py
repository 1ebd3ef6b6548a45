"""Batch-hard triplet loss (docs/method.md, loss 2).

For an anchor a, let dp be the Euclidean distance to the farthest other image of its identity and dn
the distance to the nearest image of another identity. The anchor costs max(0, margin + dp - dn), or
log(1 + exp(dp - dn)) with the soft margin.

Mining compares distances by the Gram matrix, so no array of size (B, B, D) ever exists. The
distances of the B hardest positives and B hardest negatives are then computed from the differences,
without the Gram matrix's cancellation: identical embeddings are at distance 0, not at the square
root of a rounding error.
"""

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
    mask: Float[Array, " batch"] | None = None,
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
        mask: 1 for images that take part, as anchors and as candidates; None means all.
    """
    count = labels.shape[0]
    taking_part = jnp.ones(count, bool) if mask is None else mask > 0
    both = taking_part[:, None] & taking_part[None, :]
    same = labels[:, None] == labels[None, :]
    positives = both & same & ~jnp.eye(count, dtype=bool)
    negatives = both & ~same
    distances = _squared_distances(upcast(anchors), upcast(candidates))
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
    mask: Float[Array, " batch"] | None = None,
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
        mask: 1 for images that take part, as anchors, positives and negatives; None means all.

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
    mask: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Batch-hard triplet loss with positives and negatives from another set of features.

    Args:
        anchors: one feature per image.
        candidates: the features to choose positives and negatives from; row i is image i.
        labels: identity of each image.
        margin: as in `batch_hard_triplet`.
        mask: as in `batch_hard_triplet`.

    Returns:
        As `batch_hard_triplet`.

    Reference: docs/method.md, losses 2 and 6.
    """
    # On a mesh each device compares its own rows with all rows, gathered once.
    anchors = constrain(upcast(anchors), AXES, None)
    candidates = constrain(upcast(candidates), None, None)
    hardest = mine_hardest(anchors, candidates, labels, mask)
    gap = _distances(anchors, candidates[hardest.positive]) - _distances(
        anchors, candidates[hardest.negative]
    )
    losses = jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)
    return masked_mean(losses, hardest.valid)


def _squared_distances(
    left: Float[Array, "left channels"], right: Float[Array, "right channels"]
) -> Float[Array, "left right"]:
    """‖l‖² + ‖r‖² - 2·l·r in full precision, even on matrix units that round; no gradient."""
    left, right = jax.lax.stop_gradient(left), jax.lax.stop_gradient(right)
    products = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(left), 1)[:, None] + jnp.sum(jnp.square(right), 1)[None, :]
    return squares - 2 * products


def _distances(
    left: Float[Array, "batch channels"], right: Float[Array, "batch channels"]
) -> Float[Array, " batch"]:
    """Euclidean distance row by row; the gradient at distance 0 is 0."""
    return optax.safe_norm(left - right, 0.0, axis=-1)
