"""Prediction of the pose's maps (docs/method.md, loss 7).

With the predicted p̂ = sigmoid(logit) and the pose's map p, a cell costs the cross-entropy
-p·log p̂ - (1 - p)·log(1 - p̂).
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import masked_mean
from pgfl_jax.precision import upcast


def map_prediction(
    logits: Float[Array, "batch height width maps"],
    part_maps: Float[Array, "batch height width parts"],
    has_pose: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean cross-entropy of predicted maps over cells and maps.

    An undecided map costs log 2 wherever the person is.

    >>> logits, part_maps = jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [0.0]]]])
    >>> round(float(map_prediction(logits, part_maps, jnp.ones(1))), 4)
    0.6931

    Args:
        logits: what the main branch predicts: a map for each part, or one for the foreground.
        part_maps: the pose's, in [0, 1].
        has_pose: 1 where the image has a pose annotation, else 0.

    Returns:
        The masked mean in nats, at least 0; exactly 0 when no image has a pose.

    Reference: docs/method.md, loss 7.
    """
    target = upcast(part_maps)
    if logits.shape[-1] == 1:
        target = jnp.max(target, axis=-1, keepdims=True)
    losses = optax.sigmoid_binary_cross_entropy(upcast(logits), target)
    return masked_mean(jnp.mean(losses, axis=(1, 2, 3)), has_pose)
