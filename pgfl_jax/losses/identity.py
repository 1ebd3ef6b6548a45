"""Identity classification with label smoothing (docs/method.md, loss 1).

With N identities, smoothing ε and p = softmax(logits), an image of identity y costs
-(1 - ε)·log p_y - (ε / N)·Σ_k log p_k = log Σ_k exp(l_k) - (1 - ε)·l_y - ε·mean_k l_k.

Columns with a logit of -inf are padding and do not count towards N. All sums run over the columns,
so the columns can be split over devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pgfl_jax.losses.masking import masked_mean
from pgfl_jax.precision import upcast


def identity_loss(
    logits: Float[Array, "batch identities"],
    labels: Int[Array, " batch"],
    *,
    smoothing: float,
    mask: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy with smoothed labels.

    Probabilities of 3/4 and 1/4: -log(3/4) without smoothing, and more with it.

    >>> logits, labels = jnp.log(jnp.array([[3.0, 1.0]])), jnp.array([0])
    >>> [round(float(identity_loss(logits, labels, smoothing=e)), 4) for e in (0.0, 0.1)]
    [0.2877, 0.3426]

    Args:
        logits: identity logits of one branch; -inf in padding columns.
        labels: identity indices in [0, identities).
        smoothing: ε in [0, 1), the share of the target spread over all identities.
        mask: 1 for images that count; None means all.

    Returns:
        The masked mean in nats, at least 0; exactly 0 for an empty mask.

    Reference: docs/method.md, loss 1; C. Szegedy et al., "Rethinking the Inception Architecture",
    CVPR 2016, section 7.
    """
    logits = upcast(logits)
    real = logits > -jnp.inf
    # take_along_axis would gather the columns of all devices.
    own = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    target = jnp.sum(jnp.where(own, logits, 0), axis=-1)
    mean = jnp.sum(jnp.where(real, logits, 0), axis=-1) / jnp.sum(real, axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - (1 - smoothing) * target - smoothing * mean
    return masked_mean(losses, mask)
