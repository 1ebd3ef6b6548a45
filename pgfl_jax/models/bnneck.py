"""The BNNeck: BatchNorm without bias between the pooled feature and the classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BNNeck(nn.Module):
    """BatchNorm weighted by a mask, with a scale and no bias.

    For each channel, with weights w of the rows in [0, 1], μ = Σ w x / Σ w and σ² = Σ w (x − μ)² /
    Σ w. The output is w · (x − μ) / √(σ² + ε) · scale, so masked values become 0, the mean of the
    others. The running averages, r ← m r + (1 − m) s, use the biased variance. Those of a channel
    do not change when all its rows are masked. Under ``jit`` the batch is the global one, so the
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
        mask: Float[Array, "batch ..."] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch channels"]:
        """Normalise (B, D).

        Args:
            x: pooled features.
            mask: (B,) or (B, G) in [0, 1], how much each row counts, or each of its G equal groups
                of channels; 0: its values mean nothing. None: everything counts.
            train: use the batch's statistics and update the running ones, or use the running ones.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = running_mean.value, running_var.value
        if mask is None:
            weights = jnp.ones_like(x[:, :1])
        else:
            groups = mask[:, None] if mask.ndim == 1 else mask
            weights = jnp.repeat(groups, x.shape[-1] // groups.shape[-1], axis=-1)
        if train:
            count = jnp.sum(weights, axis=0)
            divisor = jnp.where(count > 0, count, 1)
            mean = jnp.sum(weights * x, axis=0) / divisor
            var = jnp.sum(weights * jnp.square(x - mean[None]), axis=0) / divisor
            if not self.is_initializing():
                momentum = jnp.where(count > 0, self.momentum, 1.0)
                running_mean.value = momentum * running_mean.value + (1 - momentum) * mean
                running_var.value = momentum * running_var.value + (1 - momentum) * var
        normalised = (x - mean[None]) * (jax.lax.rsqrt(var + self.epsilon) * scale)[None]
        return normalised if mask is None else weights * normalised
