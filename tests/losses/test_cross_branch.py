import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import INTERACTION_VARIANTS, cross_triplet, identity_loss, interaction
from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs

LABELS = jnp.array([0, 0, 1, 1])


@pytest.fixture
def outputs(rng) -> PGFLOutputs:
    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    branches = [BranchOutputs(array(4, 6), array(4, 6), array(4, 3)) for _ in range(3)]
    return PGFLOutputs(array(4, 2, 2, 6), *branches, cross_logits=(array(4, 3), array(4, 3)))


def loss(outputs, has_pose, variant):
    return interaction(outputs, LABELS, has_pose, variant=variant, margin=0.3, smoothing=0.1)


def test_cross_classifier_is_the_mean_of_two_identity_losses(outputs):
    mask = jnp.array([1.0, 0, 1, 1])
    parts = [
        identity_loss(logits, LABELS, smoothing=0.1, mask=mask) for logits in outputs.cross_logits
    ]
    assert float(loss(outputs, mask, "cross_classifier")) == pytest.approx(float(sum(parts)) / 2)


def test_cross_triplet_takes_anchors_from_the_main_branch(outputs):
    mask = jnp.ones(4)
    parts = [
        cross_triplet(outputs.main.embedding, branch.embedding, LABELS, margin=0.3, mask=mask)
        for branch in (outputs.foreground, outputs.parts)
    ]
    assert float(parts[0]) != float(parts[1])
    assert float(loss(outputs, mask, "cross_triplet")) == pytest.approx(float(sum(parts)) / 2)


@pytest.mark.parametrize("variant", ["off", "shared_classifier"])
def test_variants_without_a_loss_of_their_own(outputs, variant):
    assert float(loss(outputs, jnp.ones(4), variant)) == 0


@pytest.mark.parametrize("variant", INTERACTION_VARIANTS)
def test_a_batch_without_poses_gives_exactly_zero(outputs, variant):
    value, slopes = jax.value_and_grad(loss)(outputs, jnp.zeros(4), variant)
    assert float(value) == 0
    assert not any(np.any(np.asarray(slope)) for slope in jax.tree.leaves(slopes))


def test_gradient_of_the_anchors(rng, check_gradient, outputs):
    def of_embedding(x):
        moved = outputs._replace(main=outputs.main._replace(embedding=x))
        return interaction(
            moved, LABELS, jnp.ones(4), variant="cross_triplet", margin=None, smoothing=0.1
        )

    check_gradient(of_embedding, rng.normal(size=(4, 6)))


def test_errors_name_the_variant(outputs):
    with pytest.raises(ValueError, match="unknown interaction variant 'crossed'"):
        loss(outputs, jnp.ones(4), "crossed")
    with pytest.raises(ValueError, match="cross_logits"):
        loss(outputs._replace(cross_logits=None), jnp.ones(4), "cross_classifier")
    with pytest.raises(ValueError, match="pose branches"):
        loss(outputs._replace(foreground=None), jnp.ones(4), "cross_triplet")
