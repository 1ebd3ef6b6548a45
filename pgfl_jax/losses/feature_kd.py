"""Feature distillation (docs/method.md, loss 5).

With the unit vectors ŝ of the student and t̂ of the teacher, an image costs 1 - ŝ·t̂. The squared
error Σ (ŝ - t̂)² is exactly twice this, so it needs no variant of its own.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import EPS, masked_mean
from pgfl_jax.precision import upcast


def feature_distillation(
    student: Float[Array, "batch channels"],
    teacher: Float[Array, "batch channels"],
    has_pose: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean 1 - cosine between student and teacher; no gradient reaches the teacher.

    An angle of 45° costs 1 - √½, whatever the lengths.

    >>> student, teacher = jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 1.0]])
    >>> round(float(feature_distillation(student, teacher, jnp.ones(1))), 4)
    0.2929

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
    """Scales vectors to length 1, except those shorter than EPS, whose gradients would explode."""
    vectors = upcast(vectors)
    norms = optax.safe_norm(vectors, EPS, axis=-1)
    return vectors / jnp.where(norms > EPS, norms, 1)[:, None]
