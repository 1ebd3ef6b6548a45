"""Logit distillation (docs/method.md, loss 5).

At temperature T, let p = softmax(teacher / T) and q = softmax(student / T). An image costs
T²·KL(p ‖ q). The factor T² makes the size of the gradients independent of the temperature.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pgfl_jax.losses.masking import masked_mean
from pgfl_jax.precision import upcast


def logit_distillation(
    student_logits: Float[Array, "batch identities"],
    teacher_logits: Float[Array, "batch identities"],
    has_pose: Float[Array, " batch"],
    *,
    temperature: float,
) -> Float[Array, ""]:
    """Mean T²·KL(teacher ‖ student) at a temperature; no gradient reaches the teacher.

    The teacher gives 3/4 and 1/4, the student is undecided: 3/4·log(3/2) + 1/4·log(1/2).

    >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
    >>> round(float(logit_distillation(student, teacher, jnp.ones(1), temperature=1.0)), 4)
    0.1308

    Args:
        student_logits: the main branch's identity logits; -inf in padding columns.
        teacher_logits: a pose branch's identity logits.
        has_pose: 1 where the teacher saw a pose, else 0.
        temperature: T > 0; higher is softer.

    Returns:
        The masked mean in nats, at least 0; exactly 0 when no image has a pose.

    Reference: docs/method.md, loss 5; G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in
    a Neural Network", arXiv 1503.02531, section 2.
    """
    student = jax.nn.log_softmax(upcast(student_logits) / temperature)
    teacher = jax.nn.log_softmax(upcast(jax.lax.stop_gradient(teacher_logits)) / temperature)
    real = teacher > -jnp.inf  # in padding the difference is inf - inf, and must count as 0
    divergence = jnp.sum(jnp.exp(teacher) * jnp.where(real, teacher - student, 0), axis=-1)
    return masked_mean(temperature**2 * divergence, has_pose)
