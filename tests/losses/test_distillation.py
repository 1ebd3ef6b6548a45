import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import feature_distillation, logit_distillation


def feature_reference(student, teacher, has_pose):
    costs = []
    for s, t, kept in zip(student, teacher, has_pose, strict=True):
        if kept:
            dot = sum(x * y for x, y in zip(s, t, strict=True))
            costs.append(1 - dot / np.sqrt(sum(s**2)) / np.sqrt(sum(t**2)))
    return sum(costs) / len(costs)


def logit_reference(student, teacher, has_pose, temperature):
    costs = []
    for s, t, kept in zip(student, teacher, has_pose, strict=True):
        if kept:
            p = np.exp(t / temperature) / sum(np.exp(t / temperature))
            q = np.exp(s / temperature) / sum(np.exp(s / temperature))
            costs.append(temperature**2 * sum(p * np.log(p / q)))
    return sum(costs) / len(costs)


HAS_POSE = np.array([1.0, 0.0, 1.0])


def test_feature_against_numpy(rng, x64):
    student, teacher = rng.normal(size=(2, 3, 5))
    loss = feature_distillation(*map(jnp.asarray, (student, teacher, HAS_POSE)))
    assert float(loss) == pytest.approx(feature_reference(student, teacher, HAS_POSE), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_against_numpy(rng, x64, temperature):
    student, teacher = rng.normal(size=(2, 3, 5)) * 4
    inputs = map(jnp.asarray, (student, teacher, HAS_POSE))
    loss = logit_distillation(*inputs, temperature=temperature)
    expected = logit_reference(student, teacher, HAS_POSE, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_feature_by_hand():
    student = jnp.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    teacher = jnp.array([[5.0, 0.0], [1.0, 0.0], [-4.0, 0.0]])
    assert float(feature_distillation(student, teacher, jnp.ones(3))) == pytest.approx(1.0)
    unit = jnp.array([[0.6, 0.8]]), jnp.array([[1.0, 0.0]])
    mse = float(jnp.sum((unit[0] - unit[1]) ** 2))
    assert float(feature_distillation(*unit, jnp.ones(1))) == pytest.approx(mse / 2)


def test_logit_is_zero_for_a_student_equal_to_its_teacher(rng):
    logits = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    assert float(logit_distillation(logits, logits + 3, jnp.ones(2), temperature=2.0)) < 1e-6


def losses():
    return [feature_distillation, lambda *args: logit_distillation(*args, temperature=3.0)]


@pytest.mark.parametrize("loss", losses())
def test_gradient_of_the_student(rng, check_gradient, loss):
    teacher = rng.normal(size=(3, 4))
    check_gradient(
        lambda x: loss(x, jnp.asarray(teacher), jnp.asarray(HAS_POSE)), rng.normal(size=(3, 4))
    )


@pytest.mark.parametrize("loss", losses())
def test_no_gradient_reaches_the_teacher(rng, loss):
    student, teacher = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    assert not np.any(np.asarray(jax.grad(loss, argnums=1)(student, teacher, jnp.ones(3))))


@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("student", [0.0, 1.0])
@pytest.mark.parametrize("teacher", [0.0, 1.0])
@pytest.mark.parametrize("has_pose", [0.0, 1.0])
def test_empty_inputs_stay_finite(loss, student, teacher, has_pose):
    value, slope = jax.value_and_grad(loss)(
        jnp.full((2, 3), student), jnp.full((2, 3), teacher), jnp.full(2, has_pose)
    )
    assert np.isfinite(value) and np.all(np.abs(slope) < 10)
    if not has_pose:
        assert float(value) == 0 and not np.any(np.asarray(slope))


def test_confident_logits_stay_finite():
    sure = jnp.array([[1e4, -1e4]])
    value, slope = jax.value_and_grad(logit_distillation)(-sure, sure, jnp.ones(1), temperature=1.0)
    assert np.isfinite(value) and np.all(np.isfinite(slope))


@pytest.mark.parametrize("loss", losses())
def test_bfloat16_is_computed_in_float32(rng, loss):
    student, teacher = jnp.asarray(rng.normal(size=(2, 3, 64)), jnp.bfloat16)
    wide = loss(student.astype(jnp.float32), teacher.astype(jnp.float32), jnp.ones(3))
    assert loss(student, teacher, jnp.ones(3)).dtype == jnp.float32
    assert loss(student, teacher, jnp.ones(3)) == wide


def test_padding_columns_change_nothing(rng, x64):
    student, teacher = (jnp.asarray(rng.normal(size=(3, 5))) for _ in range(2))
    has_pose = jnp.array([1.0, 0.0, 1.0])

    def loss(x, columns):
        x, y = (
            jnp.pad(logits, ((0, 0), (0, columns)), constant_values=-jnp.inf)
            for logits in (x, teacher)
        )
        return logit_distillation(x, y, has_pose, temperature=4.0)

    plain, padded = (jax.value_and_grad(loss)(student, columns) for columns in (0, 123))
    np.testing.assert_allclose(padded[0], plain[0], rtol=1e-14)
    np.testing.assert_allclose(padded[1], plain[1], rtol=1e-14)
