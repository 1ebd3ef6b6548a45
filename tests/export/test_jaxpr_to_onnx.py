"""The converter's graphs give JAX's numbers, are valid, and are as small as they can be."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from pgfl_jax.export.jaxpr_to_onnx import ExportError, convert
from tests.networks import golden, random_embedder, small_networks


def run(model, rows, name="images"):
    """The outputs of ONNX Runtime, after both of ONNX's checks."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {name: rows})
    return found


def operations(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def batch(shape, dtype):
    (size,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((size, *shape), dtype)


@small_networks()
@pytest.mark.parametrize(
    ("backbone", "pooling", "convolutions"),
    [
        ("resnet8", "gem", 9), ("four_blocks", "gap", 17), ("four_blocks_ibn_a", "gap", 17),
        ("resnet8", "parts", 11), ("resnet8", "foreground", 11), ("resnet8", "context", 11),
        pytest.param("resnet50", "gap", 53, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_networks_give_the_same_embeddings_at_any_batch(backbone, pooling, convolutions):
    embedder = random_embedder(backbone, pooling)
    model = convert(lambda x: embedder.apply(embedder.variables, x), batch((64, 32, 3), np.uint8))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    expected = np.asarray(jax.jit(embedder.apply)(embedder.variables, pictures))
    for count in (1, 3):
        found = run(model, pictures[:count])
        assert found.shape == (count, expected.shape[1])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-6)
    counts = operations(model)
    assert counts["Conv"] == convolutions
    # Channels move to the second axis once, at the input.
    assert counts["Transpose"] == 1 and counts["BatchNormalization"] == 0
    if not backbone.endswith("ibn_a"):  # their instance normalisation cannot go into the weights
        # The BNNeck, the unit length, and the pixels where padding follows; the features and the
        # BNNeck's outputs by the maps, or the weights' mean and the features by the weights.
        predicted = 2 * (pooling in ("parts", "foreground", "context"))
        assert counts["Mul"] == 2 + (backbone != "resnet8") + predicted
        assert counts["Sub"] == 1 and counts["Sqrt"] == 1


@small_networks()
@pytest.mark.parametrize(
    ("backbone", "pooling", "convolutions", "products", "transposes"),
    [
        # Patches; in each block four products with weights, and two of activations. Queries, keys,
        # values and result of each block; pixels, patches, and the map for its pooling.
        ("vit", "parts", 1 + 2, 2 * (4 + 2), 2 * 4 + 2 + 2),
        ("vit_overlap", "cls", 1, 2 * (4 + 2), 2 * 4 + 2),
        ("vit_clip", "gap", 1, 2 * (4 + 2), 2 * 4 + 2),
        # Merging; cells into windows and back.
        ("swin", "parts", 1 + 2, 3 * (4 + 2) + 1, 3 * (4 + 2) + 2),
        # Stem, the second stage's start, and three in each block; pixels.
        ("convnext", "gap", 1 + 1 + 2 * 3, 0, 1),
    ],
)
def test_other_kinds_give_the_same_embeddings_at_any_batch(
    backbone, pooling, convolutions, products, transposes
):
    embedder = random_embedder(backbone, pooling)
    model = convert(lambda x: embedder.apply(embedder.variables, x), batch((64, 32, 3), np.uint8))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    expected = np.asarray(jax.jit(embedder.apply)(embedder.variables, pictures))
    for count in (1, 3):
        np.testing.assert_allclose(run(model, pictures[:count]), expected[:count], atol=1e-6)
    counts = operations(model)
    assert (counts["Conv"], counts["MatMul"]) == (convolutions, products)
    assert counts["Transpose"] == transposes
    used = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= used


def test_a_stored_run_gives_the_same_embeddings():
    embedder = golden()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 32, 3), np.uint8)
    model = convert(lambda x: embedder.apply(embedder.variables, x), batch((64, 32, 3), np.uint8))
    np.testing.assert_allclose(run(model, pictures), embedder(pictures), rtol=0, atol=1e-6)


@pytest.fixture(autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def flat(function):
    """A function of images whose result is one row for each."""
    return lambda images: jnp.reshape(function(images), (images.shape[0], -1))


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
GROUPED = RNG.normal(size=(3, 3, 2, 6)).astype(np.float32)
MATRIX = RNG.normal(size=(4, 5)).astype(np.float32)
CHANNELS = RNG.normal(size=4).astype(np.float32)
PATCHES = RNG.normal(size=(16, 5)).astype(np.float32)
WIDER = RNG.normal(size=6).astype(np.float32)


def conv(images, kernel=KERNEL, padding=((1, 1), (1, 1)), strides=(1, 1), **options):
    numbers = "NHWC", "HWIO", "NHWC"
    return jax.lax.conv_general_dilated(
        images, kernel.astype(images.dtype), strides, padding, dimension_numbers=numbers, **options
    )


def pool(images, padding):
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, strides, padding)


def every_other(images):
    return jax.lax.slice(images, (0, 0, 0, 0), images.shape, (1, 2, 2, 1))


def means(images):
    return images.mean((1, 2), keepdims=True)


def centred(images):
    return images - means(images)


def patches(images):
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


FUNCTIONS = {
    "scale before a convolution without padding": lambda x: conv(x / 3 - CHANNELS, padding="VALID"),
    "scale before a padded convolution": lambda x: conv((CHANNELS - x) / 3),
    "scale before groups": lambda x: conv(x * CHANNELS, GROUPED, feature_group_count=2),
    "scaled patches by a matrix": lambda x: patches((x - CHANNELS) * 2) @ PATCHES + 1,
    "a scaled tensor used twice": lambda x: (lambda y: jnp.tanh(y) + y @ MATRIX[:, :4])(x * 2 + 1),
    "asymmetric padding": lambda x: conv(x, padding=((0, 2), (1, 0))),
    "strides": lambda x: conv(x, strides=(2, 1)),
    "dilation": lambda x: conv(x, rhs_dilation=(2, 1), padding=((2, 2), (1, 1))),
    "groups": lambda x: conv(x, GROUPED, feature_group_count=2),
    # The padding of a max-pool is -inf, not 0: every value here is below 0.
    "padded max-pool": lambda x: pool(-jnp.abs(x) - 1, ((0, 0), (1, 1), (1, 1), (0, 0))),
    "max-pool of whole windows": lambda x: pool(x, "VALID"),
    "scale before and after": lambda x: conv(x * CHANNELS + 1) * WIDER - WIDER,
    "shift minus convolution": lambda x: (WIDER - conv(x)) / (WIDER + 3),
    "a convolution used twice": lambda x: (lambda y: jnp.maximum(y, 0) + y * WIDER)(conv(x)),
    "a scale of the rows": lambda x: conv(x) * jnp.arange(6.0)[:, None, None],
    "product over channels": lambda x: x @ MATRIX,
    "strided product": lambda x: every_other(x) @ MATRIX,
    "strided slice alone": lambda x: every_other(x) + CHANNELS,
    "patches": lambda x: patches(x) + 1,
    "channel slice": lambda x: jax.lax.slice_in_dim(x, 1, 3, axis=3) ** 2,
    "transposed": lambda x: jnp.transpose(conv(x), (0, 2, 3, 1)) + 0.5,
    "statistics": lambda x: centred(x) * jax.lax.rsqrt(means(centred(x) ** 2) + 1e-3),
    "largest": lambda x: conv(x).max((1, 2)),
    "functions": lambda x: jnp.tanh(x) + jnp.exp(-jnp.abs(x)) - jax.nn.sigmoid(jnp.sqrt(x * x)),
    "join": lambda x: jnp.concatenate([conv(x), x], axis=3),
    "groups of channels": lambda x: (
        conv(x) * jnp.repeat(jax.lax.slice_in_dim(x, 0, 2, axis=3), 3, 3)
    ),
    "repeated and summed": lambda x: jnp.broadcast_to(means(x), x.shape).sum((1, 2)),
    "repeated and joined": lambda x: jnp.concatenate([x, jnp.broadcast_to(means(x), x.shape)], 3),
    "repeated and convolved": lambda x: conv(jnp.broadcast_to(means(x) + 1, x.shape)),
    "one constant for all weights": lambda x: x @ jnp.full((4, 5), 0.5),
    "rows as one batch": lambda x: (x.reshape(-1, 4) @ MATRIX).reshape(x.shape[0], -1),
    "what nobody needs": lambda x: (jnp.cumsum(x, axis=1), x * 2)[1],
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_operations(name):
    function = flat(FUNCTIONS[name])
    images = np.random.default_rng(1).normal(size=(3, 6, 8, 4)).astype(np.float32)
    model = convert(function, batch((6, 8, 4), np.float32))
    # In double precision, by JAX.
    with jax.enable_x64(True):
        expected = np.asarray(function(images.astype(np.float64)))
    np.testing.assert_allclose(run(model, images), expected, rtol=2e-5, atol=2e-5)


def random_function(seed):
    """A chain of random operations that change shape or layout, and mix in earlier results."""
    rng = np.random.default_rng(seed)

    def step(x):
        rank, axis = x.ndim, int(rng.integers(1, x.ndim))
        moves = 0, *(int(a) for a in 1 + rng.permutation(rank - 1))
        joined = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
        twice = (*x.shape[:axis], 2, *x.shape[axis:])
        changes = [
            lambda: jnp.transpose(x, moves),
            lambda: jnp.repeat(x, 2, axis),
            lambda: x - x.max(axis, keepdims=True),
            lambda: jnp.broadcast_to(x.sum(axis, keepdims=True), x.shape),
            lambda: jnp.broadcast_to(jnp.expand_dims(x, axis), twice) if rank < 5 else x,
            lambda: x.sum(axis) if rank > 3 else x,
            lambda: x.reshape(joined) if axis + 1 < rank and rank > 3 else x,
            lambda: jnp.concatenate([x, jnp.tanh(x)], axis),
        ]
        return changes[rng.integers(len(changes))]()

    def function(images):
        x = images
        for _ in range(8):
            y = step(x)
            x = y + jnp.tanh(x) if y.shape == x.shape else y
        return x

    return function


# Each seed has another chain, of another first shape.
@pytest.mark.parametrize("seed", range(24))
def test_random_shapes_and_layouts(seed):
    shape = tuple(int(n) for n in np.random.default_rng(seed).integers(1, 5, 3))
    images = np.random.default_rng(seed).normal(size=(3, *shape)).astype(np.float32)

    def function(x):  # with the same draws each time it is traced
        return flat(random_function(seed))(x)

    model = convert(function, batch(shape, np.float32))
    with jax.enable_x64(True):
        expected = np.asarray(function(images.astype(np.float64)))
    np.testing.assert_allclose(run(model, images), expected, rtol=2e-5, atol=2e-5)


def test_scales_and_shifts_go_into_the_weights():
    model = convert(flat(lambda x: (conv(x) - WIDER) * WIDER + 2), batch((6, 8, 4), np.float32))
    assert operations(model) == {"Transpose": 2, "Conv": 1, "Reshape": 1, "Identity": 1}


def test_what_cannot_be_translated_is_named():
    with pytest.raises(ExportError, match="repeated for each picture"):
        convert(
            lambda x: jnp.broadcast_to(x.max(0, keepdims=True), x.shape), batch((4,), "float32")
        )
    with pytest.raises(ExportError, match="operation cumsum has no translation"):
        convert(flat(lambda x: jnp.cumsum(x, axis=1)), batch((6, 8, 4), np.float32))
    with pytest.raises(ExportError, match="only products with a constant matrix"):
        convert(flat(lambda x: jnp.ones((5, 6)) @ x.max(1)), batch((6, 6, 4), np.float32))
    with pytest.raises(ExportError, match="only matrices are multiplied"):
        convert(
            flat(lambda x: jnp.einsum("bhwc,bhwd->bcd", x, 2 * x)), batch((6, 8, 4), np.float32)
        )
