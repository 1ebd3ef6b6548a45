import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models import PGFL, main_branch, unit_length
from pgfl_jax.models.backbones import BACKBONES
from tests.networks import small_networks

IDENTITIES, COLUMNS, PARTS = 5, 128, 8


def _inputs(seed=0, batch=6, cells=(8, 4)):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(batch, 64, 32, 3)), jnp.float32)
    pose_maps = jnp.asarray(rng.uniform(size=(batch, *cells, PARTS)), jnp.float32)
    visibility = jnp.asarray(rng.uniform(0.1, 1, (batch, PARTS)), jnp.float32)
    return images, pose_maps, visibility


@pytest.fixture(scope="module")
def initialised():
    def make(backbone="resnet8", **options):
        model = PGFL(IDENTITIES, backbone, **options)
        inputs = _inputs(cells=BACKBONES[backbone].map_shape(64, 32))
        init = jax.jit(model.init, static_argnames="train")
        variables = nn.unbox(init(jax.random.key(0), *inputs, train=True))
        # Away from the symmetric initial values, so that nothing is equal by accident.
        rng = np.random.default_rng(1)
        noisy = jax.tree.map(
            lambda x: x + jnp.asarray(0.1 * rng.uniform(size=x.shape), x.dtype), variables
        )
        return model, noisy

    return make


def _kernel(variables, branch):
    return np.asarray(variables["params"][f"{branch}_classifier"]["kernel"])[:, :IDENTITIES]


def _real_columns(logits):
    """The logits of the identities, without the padding columns."""
    assert logits.shape[1] == COLUMNS
    assert np.all(np.asarray(logits[:, IDENTITIES:]) == -np.inf)
    return np.asarray(logits[:, :IDENTITIES])


def _forward(model, variables, *inputs, train=True):
    return model.apply(variables, *inputs, train=train, mutable=["batch_stats"])


def _mean_by_parts(features, maps):
    groups = features.reshape(*maps.shape, -1)
    sums = np.einsum("bhwgc,bhwg->bgc", groups, maps) / maps.sum((1, 2))[:, :, None]
    return sums.reshape(6, -1)


@pytest.mark.parametrize("pooling", ["gap", "foreground", "parts"])
def test_every_branch_is_neck_and_classifier_of_its_pooling(initialised, pooling):
    model, variables = initialised(pooling=pooling)
    images, maps, visibility = _inputs()
    visibility = visibility.at[0, 2].set(0.0).at[1:3, 5].set(0.0)  # hidden parts
    outputs, _ = _forward(model, variables, images, maps, visibility)
    features, maps = np.asarray(outputs.features, np.float64), np.asarray(maps, np.float64)
    everything = np.ones((6, 1))
    visible = (np.asarray(visibility) > 0).astype(float)
    pooled = {  # and the weights of the channel groups
        "main": (features.mean((1, 2)), everything),
        "foreground": (_mean_by_parts(features, maps.max(-1, keepdims=True)), everything),
        "parts": (_mean_by_parts(features, maps), visible),
    }
    if pooling != "gap":
        predicted = 1 / (1 + np.exp(-np.asarray(outputs.map_logits, np.float64)))
        pooled["main"] = _mean_by_parts(features, predicted), predicted.max((1, 2))
    for name, (embedding, groups) in pooled.items():
        branch = getattr(outputs, name)
        scale = np.asarray(variables["params"][f"{name}_neck"]["scale"])
        weights = np.repeat(groups, 192 // groups.shape[1], axis=1)
        mean = (weights * embedding).sum(0) / weights.sum(0)
        variance = (weights * (embedding - mean) ** 2).sum(0) / weights.sum(0)
        neck = weights * (embedding - mean) / np.sqrt(variance + 1e-5) * scale
        kernel = _kernel(variables, name)
        np.testing.assert_allclose(branch.embedding, embedding, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(branch.neck, neck, rtol=1e-2, atol=1e-2)
        logits = _real_columns(branch.logits)
        np.testing.assert_allclose(logits, np.asarray(branch.neck) @ kernel, rtol=1e-3, atol=1e-4)


@small_networks()
def test_the_class_token_is_the_main_branchs_vector_and_teachers_pool_the_patches(initialised):
    model, variables = initialised("vit", pooling="cls")
    images, maps, visibility = _inputs(cells=(4, 2))
    trunk = functools.partial(BACKBONES["vit"].apply, train=True, method="with_class_token")

    @jax.jit
    def run(variables):
        outputs, _ = _forward(model, variables, images, maps, visibility)
        return outputs, *trunk({"params": variables["params"]["trunk"]}, images)

    outputs, features, token = jax.device_get(run(variables))
    np.testing.assert_allclose(outputs.main.embedding, token, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-4, atol=1e-5)
    for name, weights in (("foreground", maps.max(-1, keepdims=True)), ("parts", maps)):
        expected = _mean_by_parts(features, np.asarray(weights))
        found = getattr(outputs, name).embedding
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    scale = np.asarray(variables["params"]["main_neck"]["scale"])
    neck = (token - token.mean(0)) / np.sqrt(token.var(0) + 1e-5) * scale
    np.testing.assert_allclose(outputs.main.neck, neck, rtol=1e-2, atol=1e-2)
    assert "main_pooling" not in variables["params"]


def test_poses_change_nothing_in_the_main_branch(initialised):
    model, variables = initialised()
    images, maps, visibility = _inputs()
    with_pose, _ = _forward(model, variables, images, maps, visibility)
    other_pose, _ = _forward(model, variables, images, *_inputs(seed=9)[1:])
    without, _ = _forward(model, variables, images)
    for other in (other_pose, without):
        jax.tree.map(np.testing.assert_array_equal, with_pose.main, other.main)
    assert without.foreground is None and without.parts is None


def test_an_image_without_a_pose_does_not_touch_the_others(initialised):
    model, variables = initialised()
    images, maps, visibility = _inputs()
    missing = visibility.at[2].set(0.0)
    a, stats_a = _forward(model, variables, images, maps.at[2].set(0.0), missing)
    b, stats_b = _forward(model, variables, images, maps.at[2].set(0.7), missing)
    kept = np.array([0, 1, 3, 4, 5])
    np.testing.assert_array_equal(a.foreground.neck[kept], b.foreground.neck[kept])
    np.testing.assert_array_equal(a.parts.neck[kept], b.parts.neck[kept])
    jax.tree.map(np.testing.assert_array_equal, stats_a, stats_b)


@pytest.mark.parametrize(
    ("pooling", "of_its_maps"), [("gap", 0), ("parts", (9 * 192 + 1) * 64 + 65 * PARTS)]
)
def test_the_test_time_function_has_no_pose_branch(pooling, of_its_maps, initialised):
    model, variables = initialised(pooling=pooling)
    images, maps, visibility = _inputs()
    main = main_branch(variables)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))  # noqa: E731
    heads = {name for name in variables["params"] if name not in main["params"]}
    assert heads == {"main_classifier", "foreground_neck", "foreground_classifier", "parts_neck",
                     "parts_classifier"}  # fmt: skip
    assert count(variables) - count(main) == 2 * 192 + 3 * 192 * COLUMNS
    assert sum(leaf.size for leaf in jax.tree.leaves(main["params"].get("main_pooling"))) == (
        of_its_maps
    )

    outputs = model.apply(main, images, train=False)
    full = model.apply(variables, images, maps, visibility, train=False)
    np.testing.assert_array_equal(outputs.main.neck, full.main.neck)
    assert outputs.main.logits is None
    # The graph takes the images and the main branch's variables, nothing else, and uses them all.
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False).main.neck)(main, images)
    inputs = jaxpr.jaxpr.invars
    assert len(inputs) == len(jax.tree.leaves(main)) + 1
    used = {id(v) for equation in jaxpr.jaxpr.eqns for v in equation.invars}
    assert all(id(v) in used for v in inputs)


def test_the_shared_classifier_is_one(initialised):
    model, variables = initialised(interaction="shared_classifier")
    assert [name for name in variables["params"] if "classifier" in name] == ["main_classifier"]
    outputs, _ = _forward(model, variables, *_inputs())
    kernel, logits = _kernel(variables, "main"), _real_columns(outputs.parts.logits)
    np.testing.assert_allclose(logits, outputs.parts.neck @ kernel, rtol=1e-6)


def test_cross_logits_are_the_main_neck_by_the_teachers_classifiers(initialised):
    model, variables = initialised(interaction="cross_classifier")
    outputs, _ = _forward(model, variables, *_inputs())
    for logits, name in zip(outputs.cross_logits, ("foreground", "parts"), strict=True):
        logits, kernel = _real_columns(logits), _kernel(variables, name)
        np.testing.assert_allclose(logits, outputs.main.neck @ kernel, rtol=1e-6)


def test_the_baseline_has_the_main_branch_alone(initialised):
    model, variables = initialised(pose_branches=False)
    assert set(variables["params"]) == {"trunk", "main_neck", "main_classifier"}
    outputs, _ = _forward(model, variables, *_inputs())
    assert outputs.foreground is None


def test_normalise_gives_unit_length_and_leaves_zero():
    rows = unit_length(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
