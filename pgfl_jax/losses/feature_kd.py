"""Feature distillation (docs/method.md, loss 5).

With unit vectors ŝ and t̂ of student and teacher, an image costs 1 - ŝ·t̂. The mean squared error in
its usual form, Σ (ŝ - t̂)², is exactly twice this, so one of the two is enough.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import EPS, masked_mean, upcast


def feature_distillation(
    student: Float[Array, "batch channels"],
    teacher: Float[Array, "batch channels"],
    has_pose: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean 1 - cosine between student and teacher; no gradient reaches the teacher.

    Args:
        student: the main branch's features.
        teacher: a pose branch's features.
        has_pose: 1 where the teacher saw a pose, else 0.

    Returns:
        The masked mean in [0, 2]; exactly 0 when no image has a pose.

    Reference: docs/method.md, loss 5.
    """
    cosine = jnp.sum(_unit(student) * _unit(jax.lax.stop_gradient(teacher)), axis=-1)
    return masked_mean(1 - cosine, has_pose)


def _unit(vectors: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
    """Vectors of length 1; one shorter than EPS stays as it is, so its gradient stays small."""
    vectors = upcast(vectors)
    norms = optax.safe_norm(vectors, EPS, axis=-1)
    return vectors / jnp.where(norms > EPS, norms, 1)[:, None]
