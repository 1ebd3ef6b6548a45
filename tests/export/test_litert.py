"""LiteRT's files give JAX's embeddings in its interpreter."""

import jax
import numpy as np
import onnx
import pytest
import tensorflow as tf

from pgfl_jax.export.contract import CONTRACTS
from pgfl_jax.export.graphs import main_branch
from pgfl_jax.export.jaxpr_to_onnx import ExportError, convert
from pgfl_jax.export.litert import read_litert, write_litert, write_litert_int8
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.export.onnx_to_tensorflow import as_tensorflow
from pgfl_jax.export.probe import probe_pictures
from pgfl_jax.export.running import BATCHES, RuntimeFailed, embed_with
from tests.export.test_contract import KERNELS, MULTIPLY_ADDS, arranged
from tests.export.test_jaxpr_to_onnx import FUNCTIONS, batch, flat
from tests.export.test_quantise import worst_cosine
from tests.networks import golden, random_embedder, small_networks


@pytest.fixture
def embedder():
    return golden()


def worst_cosines(embedder, contract, model):
    """With JAX's embeddings of the probe, at each of ``BATCHES``, in a fresh process."""
    pictures = probe_pictures(64, 32)
    source = model.with_name("pictures.npy")
    np.save(source, arranged(pictures, contract))
    found, versions = embed_with("litert", model, [(source, size) for size in BATCHES])
    assert "tensorflow" not in versions
    expected = embedder(pictures)
    return [worst_cosine(rows, expected) for rows in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_operations_in_tensorflow(name):
    function = flat(FUNCTIONS[name])
    images = np.random.default_rng(1).normal(size=(3, 6, 8, 4)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        model = convert(function, batch((6, 8, 4), np.float32))
        with jax.enable_x64(True):
            expected = np.asarray(function(images.astype(np.float64)))
    row = tf.TensorSpec([None, 6, 8, 4], tf.float32)
    found = tf.function(as_tensorflow(model), input_signature=[row])(images)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_what_cannot_be_translated_is_named():
    model = convert(flat(lambda x: x), batch((6, 8, 4), np.float32))
    model.graph.node.append(onnx.helper.make_node("CumSum", ["images"], ["other"]))
    with pytest.raises(ExportError, match="operation CumSum has no translation"):
        as_tensorflow(model)(tf.zeros((1, 6, 8, 4)))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_it_gives_the_same_embeddings_at_any_batch(embedder, contract, tmp_path):
    write_litert(embedder, CONTRACTS[contract], tmp_path)
    assert min(worst_cosines(embedder, contract, tmp_path / "model.tflite")) >= 0.999999
    assert min(worst_cosines(embedder, contract, tmp_path / "model_float16.tflite")) >= 0.99999
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tflite"))]
    assert sizes[1] < 0.52 * sizes[0]
    main = main_branch(embedder)
    for name in ("model.tflite", "model_float16.tflite"):
        graph = read_litert(tmp_path / name)
        assert graph == Graph(("images",), KERNELS, graph.others, MULTIPLY_ADDS)
        # A bias for each channel, mean and standard deviation of the pixels, and little else.
        assert 2 * 48 + 3 * 96 + 3 * 192 <= graph.others < main.others


@pytest.mark.slow
@small_networks()
def test_bottlenecks_with_instance_normalisation(tmp_path):
    """A max-pool with padding, strided and 1x1 convolutions, GeM."""
    drawn = random_embedder("four_blocks_ibn_a", "gem")
    write_litert(drawn, CONTRACTS["uint8_nhwc"], tmp_path)
    assert min(worst_cosines(drawn, "uint8_nhwc", tmp_path / "model.tflite")) >= 0.999999
    rows = probe_pictures(64, 32, seed=1)
    write_litert_int8(drawn, CONTRACTS["uint8_nhwc"], tmp_path, rows)
    assert min(worst_cosines(drawn, "uint8_nhwc", tmp_path / "model_int8.tflite")) >= 0.99


@pytest.mark.parametrize("contract", ["uint8_nhwc", "float255_nchw"])
def test_int8(embedder, contract, tmp_path):
    """Calibrated on other pictures; TensorFlow Lite keeps the weights and scales per channel."""
    rows = arranged(probe_pictures(64, 32, seed=1), contract)
    write_litert_int8(embedder, CONTRACTS[contract], tmp_path, rows)
    model = tmp_path / "model_int8.tflite"
    assert min(worst_cosines(embedder, contract, model)) >= 0.995
    parameters = sum(leaf.size for leaf in jax.tree.leaves(embedder.variables))
    assert parameters < model.stat().st_size < 1.1 * parameters
    graph = read_litert(model)
    assert (graph.inputs, graph.kernels) == (("images",), KERNELS)
    assert graph.multiply_adds == MULTIPLY_ADDS


def test_a_wrong_batch_cannot_enter(embedder, tmp_path):
    write_litert(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    pictures = probe_pictures(64, 32)
    for wrong in (pictures.swapaxes(1, 2), pictures[..., :2], pictures.astype(np.float32)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(RuntimeFailed):
            embed_with("litert", tmp_path / "model.tflite", [(tmp_path / "wrong.npy", 2)])
