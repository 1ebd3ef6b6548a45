import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.losses import batch_hard_triplet, cross_triplet, mine_hardest


def reference(anchors, candidates, labels, margin, mask):
    """By plain loops, the loss and each anchor's hardest (positive, negative) or None."""
    costs, mined = [], []
    for a in range(len(labels)):
        positive = negative = None
        for c in range(len(labels)):
            if c == a or not (mask[a] and mask[c]):
                continue
            pair = (np.sqrt(sum((anchors[a] - candidates[c]) ** 2)), c)
            if labels[c] == labels[a] and (positive is None or pair[0] > positive[0]):
                positive = pair
            if labels[c] != labels[a] and (negative is None or pair[0] < negative[0]):
                negative = pair
        if positive is None or negative is None:
            mined.append(None)
            continue
        mined.append((positive[1], negative[1]))
        gap = positive[0] - negative[0]
        costs.append(np.log(1 + np.exp(gap)) if margin is None else max(0.0, margin + gap))
    return (sum(costs) / len(costs) if costs else 0.0), mined


LABELS = np.array([3, 3, 3, 7, 7, 9, 3])  # identity 9 has no positive
MASKS = [np.ones(7), np.array([1.0, 1, 0, 1, 0, 1, 1]), np.array([1.0, 1, 0, 0, 0, 0, 0])]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("margin", [0.3, 5.0, None])
def test_against_numpy(rng, x64, margin, mask):
    anchors, candidates = rng.normal(size=(2, 7, 4))
    for candidates_used in (anchors, candidates):
        expected, mined = reference(anchors, candidates_used, LABELS, margin, mask)
        inputs = jnp.asarray(anchors), jnp.asarray(candidates_used), jnp.asarray(LABELS)
        loss = cross_triplet(*inputs, margin=margin, mask=jnp.asarray(mask))
        assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        pairs = mine_hardest(*inputs, jnp.asarray(mask))
        found = zip(*(x.tolist() for x in pairs), strict=True)
        assert [(p, n) if valid else None for p, n, valid in found] == mined
    loss = batch_hard_triplet(inputs[0], inputs[2], margin=margin, mask=jnp.asarray(mask))
    assert float(loss) == pytest.approx(reference(anchors, anchors, LABELS, margin, mask)[0])


def grouped_distances(anchors, candidates, mask):
    """(B, B) root of G times the mean square over common groups; NaN without one. Plain loops."""
    count, groups = mask.shape
    size = anchors.shape[1] // groups
    found = np.full((count, count), np.nan)
    for a in range(count):
        for c in range(count):
            squares = [
                ((anchors[a] - candidates[c])[g * size : (g + 1) * size] ** 2).sum()
                for g in range(groups)
                if mask[a, g] and mask[c, g]
            ]
            if squares:
                found[a, c] = np.sqrt(groups * np.mean(squares))
    return found


@pytest.mark.parametrize("margin", [0.3, 5.0, None])
def test_groups_are_compared_where_both_images_have_them(rng, x64, margin):
    for _ in range(20):
        anchors, candidates = rng.normal(size=(2, 9, 6))
        labels, mask = rng.integers(3, size=9), (rng.uniform(size=(9, 3)) < 0.5).astype(float)
        distances = grouped_distances(anchors, candidates, mask)
        costs = []
        for a in range(9):
            others = [c for c in range(9) if c != a and not np.isnan(distances[a, c])]
            far = [distances[a, c] for c in others if labels[c] == labels[a]]
            near = [distances[a, c] for c in others if labels[c] != labels[a]]
            if far and near:
                gap = max(far) - min(near)
                costs.append(np.log1p(np.exp(gap)) if margin is None else max(0, margin + gap))
        inputs = jnp.asarray(anchors), jnp.asarray(candidates), jnp.asarray(labels)
        loss = cross_triplet(*inputs, margin=margin, mask=jnp.asarray(mask))
        assert float(loss) == pytest.approx(np.mean(costs) if costs else 0.0, rel=1e-10)


def test_by_hand():
    # On a line: identity 0 at 0 and 1, identity 1 at 3 and 7.
    points, labels = jnp.array([[0.0], [1.0], [3.0], [7.0]]), jnp.array([0, 0, 1, 1])
    pairs = mine_hardest(points, points, labels)
    assert pairs.positive.tolist() == [1, 0, 3, 2]
    assert pairs.negative.tolist() == [2, 2, 1, 1]
    # dp - dn is 1-3, 1-2, 4-2, 4-6; with margin 1.5 the anchors cost 0, 0.5, 3.5, 0.
    assert float(batch_hard_triplet(points, labels, margin=1.5)) == pytest.approx(1.0)


@pytest.mark.parametrize("margin", [5.0, None])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradient(rng, check_gradient, margin, groups):
    mask = jnp.asarray(rng.uniform(size=(7, groups)) < 0.7, float)
    check_gradient(
        lambda x: batch_hard_triplet(x, jnp.asarray(LABELS), margin=margin, mask=mask),
        rng.normal(size=(7, 3)),
    )


@pytest.mark.parametrize("margin", [0.3, None])
def test_identical_embeddings_have_finite_gradients(margin):
    value, slope = jax.value_and_grad(batch_hard_triplet)(
        jnp.full((4, 3), 17.3), jnp.array([0, 0, 1, 1]), margin=margin
    )
    assert float(value) == pytest.approx(0.3 if margin else np.log(2))
    assert np.all(np.isfinite(slope))


def test_near_duplicates_keep_their_distance_in_float32():
    # 1e-3 apart at norm 1000: the Gram matrix would round this distance to 0.
    points = np.full((3, 16), 250.0, np.float32)
    points[1, 0] += 2**-10
    loss = batch_hard_triplet(jnp.asarray(points), jnp.array([0, 0, 1]), margin=0.0)
    assert float(loss) == 2**-11  # the mean of the gaps 2**-10 - 0 and 2**-10 - 2**-10


@pytest.mark.parametrize(
    ("labels", "mask"),
    [([0, 0, 0], None), ([0, 1, 2], None), ([0, 0, 1], [0.0, 0.0, 0.0]), ([0, 0, 1], [1.0, 0, 1])],
)
def test_no_valid_anchor_gives_exactly_zero(rng, labels, mask):
    value, slope = jax.value_and_grad(batch_hard_triplet)(
        jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
        jnp.array(labels),
        margin=0.3,
        mask=None if mask is None else jnp.asarray(mask, jnp.float32),
    )
    assert float(value) == 0
    assert not np.any(np.asarray(slope))


def test_a_masked_item_changes_nothing(rng):
    points = rng.normal(size=(7, 3)).astype(np.float32)
    moved = points.copy()
    moved[[2, 4]] = 1e3
    mask, labels = jnp.asarray(MASKS[1], jnp.float32), jnp.asarray(LABELS)
    losses = [
        batch_hard_triplet(jnp.asarray(x), labels, margin=0.3, mask=mask) for x in (points, moved)
    ]
    assert losses[0] == losses[1]


def test_no_array_of_size_batch_batch_channels(rng):
    batch, channels = 6, 5
    jaxpr = jax.make_jaxpr(
        jax.grad(lambda x: batch_hard_triplet(x, jnp.arange(batch) // 2, margin=0.3))
    )(jnp.asarray(rng.normal(size=(batch, channels)), jnp.float32))
    assert f"[{batch},{batch},{channels}]" not in str(jaxpr)
    assert f"[{batch},{batch}]" in str(jaxpr)


def test_bfloat16_is_computed_in_float32(rng):
    points = jnp.asarray(rng.normal(size=(7, 4)), jnp.bfloat16)
    loss = batch_hard_triplet(points, jnp.asarray(LABELS), margin=0.3)
    wide = np.asarray(points, np.float64)
    expected, _ = reference(wide, wide, LABELS, 0.3, np.ones(7))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)
