"""The BNNeck: BatchNorm without bias between the pooled feature and the classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BNNeck(nn.Module):
    """BatchNorm over the unmasked rows of the batch, with a scale and no bias.

    With row weights w (1 or 0), μ = Σ w x / Σ w and σ² = Σ w (x − μ)² / Σ w; the output is
    (x − μ) / √(σ² + ε) · scale. The running averages, r ← m r + (1 − m) s, use the biased variance
    and do not change when every row is masked. Under ``jit`` the batch is the global one, so the
    statistics do not depend on the number of devices.

    Attributes:
        momentum: m, in [0, 1].
        epsilon: ε.

    Reference: H. Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-Identification", CVPRW 2019; the mask is ours (docs/method.md, "Branches").
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch channels"],
        mask: Float[Array, " batch"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch channels"]:
        """Normalise (B, D).

        Args:
            x: pooled features.
            mask: (B,), 0 for rows to leave out of the statistics; None: every row counts.
            train: use the batch's statistics and update the running ones, or use the running ones.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = running_mean.value, running_var.value
        if train:
            weights = jnp.ones_like(x[:, :1]) if mask is None else mask[:, None]
            count = jnp.sum(weights)
            mean = jnp.sum(weights * x, axis=0) / jnp.maximum(count, 1)
            var = jnp.sum(weights * jnp.square(x - mean[None]), axis=0) / jnp.maximum(count, 1)
            if not self.is_initializing():
                momentum = jnp.where(count > 0, self.momentum, 1.0)
                running_mean.value = momentum * running_mean.value + (1 - momentum) * mean
                running_var.value = momentum * running_var.value + (1 - momentum) * var
        return (x - mean[None]) * (jax.lax.rsqrt(var + self.epsilon) * scale)[None]
