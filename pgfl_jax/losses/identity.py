"""Identity classification with label smoothing (docs/method.md, loss 1).

With N identities, smoothing ε and p = softmax(logits), an image of identity y costs
-(1 - ε)·log p_y - (ε / N)·Σ_k log p_k.
"""

import jax
import optax
from jaxtyping import Array, Float, Int

from pgfl_jax.losses.masking import masked_mean, upcast


def identity_loss(
    logits: Float[Array, "batch identities"],
    labels: Int[Array, " batch"],
    *,
    smoothing: float,
    mask: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy with smoothed labels.

    Args:
        logits: identity logits of one branch.
        labels: identity indices in [0, identities).
        smoothing: ε in [0, 1), the share of the target spread over all identities.
        mask: 1 for images that count; None means all.

    Returns:
        The masked mean in nats, at least 0; exactly 0 for an empty mask.

    Reference: docs/method.md, loss 1; C. Szegedy et al., "Rethinking the Inception Architecture",
    CVPR 2016, section 7.
    """
    logits = upcast(logits)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(one_hot, smoothing)
    return masked_mean(optax.softmax_cross_entropy(logits, targets), mask)
