import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax import losses
from pgfl_jax.config import LossConfig
from pgfl_jax.losses import kd_scale, map_prediction, total_loss
from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs

WEIGHTS = LossConfig(
    identity=1.0,
    triplet=0.9,
    alignment=0.8,
    semantic=0.7,
    feature_kd=3.0,
    logit_kd=0.5,
    interaction=0.4,
    maps=0.9,
    smoothing=0.1,
    margin=0.3,
    soft_margin=False,
    temperature=4.0,
    alignment_variant="energy",
    interaction_variant="cross_triplet",
    kd_start=10.0,
    kd_ramp=4.0,
    teachers="both",
)
MAIN = {"id_main", "triplet_main"}
POSE = {
    "id_foreground",
    "id_parts",
    "triplet_foreground",
    "triplet_parts",
    "alignment",
    "semantic",
    "kd_feature_foreground",
    "kd_feature_parts",
    "kd_logit_foreground",
    "kd_logit_parts",
    "interaction",
    "maps",
}


def weight_of(name: str) -> float:
    fields = {
        "id": "identity",
        "triplet": "triplet",
        "alignment": "alignment",
        "semantic": "semantic",
        "kd_feature": "feature_kd",
        "kd_logit": "logit_kd",
        "interaction": "interaction",
        "maps": "maps",
    }
    branches = ("_main", "_foreground", "_parts")
    stem = next((name.removesuffix(b) for b in branches if name.endswith(b)), name)
    return getattr(WEIGHTS, fields[stem])


@pytest.fixture
def outputs(rng) -> PGFLOutputs:
    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    branches = [BranchOutputs(array(6, 8), array(6, 8), array(6, 3)) for _ in range(3)]
    maps = array(6, 4, 2, 4)
    return PGFLOutputs(array(6, 4, 2, 8), *branches, cross_logits=None, map_logits=maps)


@pytest.fixture
def batch(rng) -> dict:
    visibility = jnp.asarray(rng.random((6, 4)), jnp.float32).at[2].set(0.0)
    return {
        "labels": jnp.array([0, 0, 1, 1, 2, 2]),
        "part_maps": jnp.asarray(rng.random((6, 4, 2, 4)), jnp.float32),
        "visibility": visibility,
    }


def test_the_total_is_the_weighted_sum_of_the_named_terms(outputs, batch):
    total, terms = total_loss(outputs, batch, WEIGHTS, kd_scale=0.25)
    assert set(terms) == MAIN | POSE | {"total"}
    expected = sum(
        weight_of(name) * (0.25 if name.startswith("kd_") else 1) * float(terms[name])
        for name in MAIN | POSE
    )
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert total == terms["total"]


def test_every_term_is_the_loss_of_its_name(outputs, batch):
    _, terms = total_loss(outputs, batch, WEIGHTS)
    labels, mask = batch["labels"], jnp.array([1.0, 1, 0, 1, 1, 1])
    main, foreground, parts = outputs.main, outputs.foreground, outputs.parts
    expected = {
        "id_main": losses.identity_loss(main.logits, labels, smoothing=0.1),
        "id_parts": losses.identity_loss(parts.logits, labels, smoothing=0.1, mask=mask),
        "triplet_main": losses.batch_hard_triplet(main.embedding, labels, margin=0.3),
        "triplet_foreground": losses.batch_hard_triplet(
            foreground.embedding, labels, margin=0.3, mask=mask
        ),
        "triplet_parts": losses.batch_hard_triplet(
            parts.embedding, labels, margin=0.3, mask=batch["visibility"]
        ),
        "maps": map_prediction(outputs.map_logits, batch["part_maps"], mask),
        "alignment": losses.foreground_alignment(
            outputs.features, jnp.max(batch["part_maps"], -1), mask
        ),
        "semantic": losses.channel_group_semantic(
            outputs.features, batch["part_maps"], batch["visibility"]
        ),
        "kd_feature_parts": losses.feature_distillation(main.neck, parts.neck, mask),
        "kd_logit_foreground": losses.logit_distillation(
            main.logits, foreground.logits, mask, temperature=4.0
        ),
        "interaction": losses.interaction(
            outputs, labels, mask, variant="cross_triplet", margin=0.3, smoothing=0.1
        ),
    }
    for name, value in expected.items():
        assert terms[name] == value, name


def test_the_main_branchs_own_map_is_aligned(outputs, batch, rng):
    own = jnp.asarray(rng.normal(size=(6, 4, 2, 8)), jnp.float32)
    _, terms = total_loss(outputs._replace(main_features=own), batch, WEIGHTS)
    mask, foreground = jnp.array([1.0, 1, 0, 1, 1, 1]), jnp.max(batch["part_maps"], -1)
    assert terms["alignment"] == losses.foreground_alignment(own, foreground, mask)
    assert terms["semantic"] == total_loss(outputs, batch, WEIGHTS)[1]["semantic"]


def test_a_batch_without_poses_gives_exactly_zero_pose_terms(outputs, batch):
    blind = {name: jnp.zeros_like(batch[name]) for name in ("part_maps", "visibility")}

    def loss(outputs):
        return total_loss(outputs, batch | blind, WEIGHTS)

    (_, terms), slopes = jax.value_and_grad(loss, has_aux=True)(outputs)
    assert all(float(terms[name]) == 0 for name in POSE)
    assert all(float(terms[name]) > 0 for name in MAIN)
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(slopes.foreground))
    _, with_poses = total_loss(outputs, batch, WEIGHTS)
    assert all(terms[name] == with_poses[name] for name in MAIN)


def test_all_zero_outputs_have_finite_gradients(outputs, batch):
    zeros = jax.tree.map(jnp.zeros_like, outputs)
    slopes = jax.grad(lambda x: total_loss(x, batch, WEIGHTS)[0])(zeros)
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))


def test_a_term_of_weight_zero_is_neither_computed_nor_reported(outputs, batch):
    off = dataclasses.replace(WEIGHTS, semantic=0.0, logit_kd=0.0)
    _, terms = total_loss(outputs, batch, off)
    gone = {"semantic", "kd_logit_foreground", "kd_logit_parts"}
    assert set(terms) == (MAIN | POSE | {"total"}) - gone


def test_without_pose_branches_only_the_main_terms_exist(outputs, batch):
    alone = outputs._replace(foreground=None, parts=None)
    _, terms = total_loss(alone, {"labels": batch["labels"]}, WEIGHTS)
    assert set(terms) == MAIN | {"total"}


@pytest.mark.parametrize("teacher", ["foreground", "parts"])
def test_one_teacher_teaches_and_both_learn(outputs, batch, teacher):
    _, terms = total_loss(outputs, batch, dataclasses.replace(WEIGHTS, teachers=teacher))
    other = {"foreground": "parts", "parts": "foreground"}[teacher]
    gone = {f"kd_feature_{other}", f"kd_logit_{other}"}
    assert set(terms) == (MAIN | POSE | {"total"}) - gone


def test_without_predicted_maps_there_is_no_term_of_theirs(outputs, batch):
    _, terms = total_loss(outputs._replace(map_logits=None), batch, WEIGHTS)
    assert set(terms) == (MAIN | POSE | {"total"}) - {"maps"}


def test_the_cosine_alignment(outputs, batch):
    cosine = dataclasses.replace(WEIGHTS, alignment_variant="cosine")
    _, terms = total_loss(outputs, batch, cosine)
    mask = jnp.array([1.0, 1, 0, 1, 1, 1])
    assert terms["alignment"] == losses.feature_distillation(
        outputs.main.embedding, outputs.foreground.embedding, mask
    )


def test_outputs_without_logits_are_refused(outputs, batch):
    untrained = outputs._replace(main=outputs.main._replace(logits=None))
    with pytest.raises(ValueError, match="train=True"):
        total_loss(untrained, batch, WEIGHTS)


def test_kd_scale_waits_then_rises_then_stays():
    scale = jax.jit(lambda epoch: kd_scale(epoch, WEIGHTS))
    values = [float(scale(epoch)) for epoch in (0.0, 9.9, 10.0, 11.0, 12.0, 13.0, 14.0, 1000.0)]
    assert values == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert scale(3.0).dtype == jnp.float32
    with jax.enable_x64(True):
        assert scale(10.4) == (10.4 - 10) / 4  # not rounded to float32


def test_kd_scale_without_a_ramp_or_a_wait():
    at_once = dataclasses.replace(WEIGHTS, kd_start=0.0, kd_ramp=0.0)
    assert float(kd_scale(0.0, at_once)) == 1
    later = dataclasses.replace(WEIGHTS, kd_start=5.0, kd_ramp=0.0)
    assert [float(kd_scale(epoch, later)) for epoch in (4.99, 5.0)] == [0, 1]


def test_jit_with_a_traced_scale(outputs, batch):
    @jax.jit
    def loss(outputs, batch, epoch):
        return total_loss(outputs, batch, WEIGHTS, kd_scale=kd_scale(epoch, WEIGHTS))

    before, during = (loss(outputs, batch, epoch)[1] for epoch in (0.0, 11.0))
    assert before["kd_feature_parts"] == during["kd_feature_parts"] != 0
    assert float(before["total"]) < float(during["total"])
