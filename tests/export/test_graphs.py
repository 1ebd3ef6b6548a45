"""What counts as the main branch's weights and multiply-adds is the same in every format."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import pytest
import tensorflow as tf

from pgfl_jax.export.contract import CONTRACTS, batch_of
from pgfl_jax.export.formats import FORMATS
from pgfl_jax.export.graphs import _read_text, main_branch, multiply_adds
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.export.probe import probe_pictures
from tests.export.test_quantise import worst_cosine
from tests.networks import golden, random_embedder, small_networks
from tests.runs import one_block

# By hand: patches of 4x4 pixels to 16 channels on 16x8 cells, of which the block makes 8x4.
KERNELS = 48 * 16 + 9 * 16 * 16 + 9 * 16 * 16 + 16 * 16
MULTIPLY_ADDS = 16 * 8 * 48 * 16 + 8 * 4 * (2 * 9 * 16 * 16 + 16 * 16)


@pytest.fixture(scope="module")
def pictures():
    return probe_pictures(64, 32)


def _block(width, cells, padded=0):
    """Kernels and multiply-adds of a transformer's block, whose attention sees padding as well."""
    attention, mlp = (3 + 1) * width**2, (4 + 4) * width**2
    return attention + mlp, (padded or cells) * attention + cells * mlp


def _depthwise_block(width, cells):
    kernels = 49 * width + (4 + 4) * width**2
    return kernels, cells * kernels


def _layer(inputs, outputs, cells):
    return inputs * outputs, cells * inputs * outputs


# By hand, of the networks in networks.py. A window's side is 7.
LAYERS = {
    # With a class token in the blocks.
    "vit": [_layer(16 * 16 * 3, 24, 8), *2 * [_block(24, 8 + 1)]],
    "swin": [
        _layer(4 * 4 * 3, 16, 16 * 8), *2 * [_block(16, 16 * 8, 21 * 14)],
        _layer(4 * 16, 32, 8 * 4), _block(32, 8 * 4, 14 * 7),
    ],
    "convnext": [
        _layer(4 * 4 * 3, 16, 16 * 8), _depthwise_block(16, 16 * 8),
        _layer(4 * 16, 32, 8 * 4), _depthwise_block(32, 8 * 4),
    ],
}  # fmt: skip


@small_networks()
@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        *itertools.product(LAYERS, ["onnx"]),
        ("vit", "stablehlo"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *itertools.product(LAYERS, ["saved_model", "litert"]),
                ("swin", "stablehlo"),
                ("convnext", "stablehlo"),
            ]
        ),
    ],
)
def test_other_kinds(backbone, name, pictures, tmp_path):
    """PyTorch's files are in test_torch.py."""
    embedder = random_embedder(backbone, "gap")
    kernels, multiply_adds = map(sum, zip(*LAYERS[backbone], strict=True))
    main = Graph(("images",), kernels, 0, multiply_adds)
    _check_format(name, embedder, main, pictures, tmp_path, int8=0.9)
    assert_same_size(main_branch(embedder), main)


@pytest.mark.parametrize(
    ("pooling", "maps"),
    [("parts", 8), pytest.param("foreground", 1, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", ["onnx", "stablehlo", "saved_model", "litert"])
def test_predicted_maps(name, pooling, maps, pictures, tmp_path):
    """PyTorch's files are in test_torch.py."""
    golden()  # is of the whole ResNet-8
    with one_block():
        embedder = random_embedder("resnet8", pooling)
        head = 9 * 16 * 64 + 64 * maps  # the convolutions that predict the maps
        main = Graph(("images",), KERNELS + head, 0, MULTIPLY_ADDS + 8 * 4 * head)
        _check_format(name, embedder, main, pictures, tmp_path)
        assert_same_size(main_branch(embedder), main)


def assert_same_size(graph, main):
    for number in ("inputs", "kernels", "multiply_adds"):
        assert getattr(graph, number) == getattr(main, number), number


def _check_format(name, embedder, main, pictures, tmp_path, *, int8=0.99):
    """The size of each model of a format, and its embeddings."""
    wanted, contract = FORMATS[name], CONTRACTS["uint8_nhwc"]
    wanted.write(embedder, contract, tmp_path)
    if quantise := wanted.quantise:
        quantise(embedder, contract, tmp_path, probe_pictures(64, 32, seed=1))
    expected = embedder(pictures)
    least = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9999, "int8": int8}
    for model in (*wanted.models, *wanted.quantised):
        assert_same_size(wanted.graph(tmp_path / model.file), main)
        rows = embed_here(model, tmp_path, pictures)
        assert worst_cosine(rows, expected) >= least[model.precision], model.file


def embed_here(model, folder, pictures):
    """The embeddings by a model's first runtime, in this process."""
    path = str(folder / model.file)
    if model.runtimes[0] == "tensorflow":  # its program would hide JAX from this process
        serve = tf.saved_model.load(path).signatures["serving_default"]
        return serve(images=tf.constant(pictures))["embeddings"].numpy()
    runtime = importlib.import_module(f"pgfl_jax.export.runtimes.run_{model.runtimes[0]}")
    return runtime.load(path)(pictures)


def test_a_product_of_two_activations_does_not_count():
    weights = jnp.ones((3, 5))

    def function(images):
        rows = images.reshape(images.shape[0], -1, 3) @ weights
        return rows @ jnp.swapaxes(rows, 1, 2)

    images = batch_of(random_embedder("resnet8", "gap"), CONTRACTS["normalised_nchw"])
    count = 64 * 32 * 3 * 5
    assert multiply_adds(jax.make_jaxpr(function)(images).jaxpr) == count
    text = jax.export.export(jax.jit(function))(images).mlir_module()
    graph = _read_text(text, ("images",))
    assert (graph.kernels, graph.multiply_adds) == (weights.size, count)
