"""The SavedModel gives JAX's embeddings in plain TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from pgfl_jax.export.contract import CONTRACTS, named_variables
from pgfl_jax.export.graphs import read_saved_model
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.export.probe import probe_pictures
from pgfl_jax.export.running import BATCHES, embed_with
from pgfl_jax.export.saved_model import write_saved_model
from tests.export.test_contract import KERNELS, MULTIPLY_ADDS, arranged
from tests.export.test_quantise import worst_cosine
from tests.networks import golden
from tests.runs import ROOT


@pytest.fixture(scope="module")
def embedder():
    return golden()


@pytest.fixture(scope="module", params=CONTRACTS)
def written(embedder, request, tmp_path_factory):
    """A folder, the pictures as its model takes them, and their embeddings."""
    folder = tmp_path_factory.mktemp(request.param)
    write_saved_model(embedder, CONTRACTS[request.param], folder)
    pictures = probe_pictures(64, 32)
    rows = arranged(pictures, request.param)
    return folder / "saved_model", rows, embedder(pictures)


def test_it_gives_the_same_embeddings_at_any_batch(embedder, written):
    folder, rows, expected = written
    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serving_default"]
    for size in BATCHES:
        found = serve(images=tf.constant(rows[-size:]))["embeddings"].numpy()
        assert worst_cosine(found, expected[-size:]) >= 0.999999
    # The main branch's parameters, by name, and no others.
    parameters = {name: value.numpy() for name, value in model.parameters.items()}
    assert parameters.keys() == named_variables(embedder).keys()
    for name, value in named_variables(embedder).items():
        np.testing.assert_array_equal(parameters[name], value)
    assert len(serve.variables) == len(parameters)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert str(ROOT).encode() not in path.read_bytes(), path


def test_only_images_enter_and_only_the_main_branch_is_inside(embedder, written):
    graph = read_saved_model(written[0])
    others = sum(value.size for value in named_variables(embedder).values()) - KERNELS
    # Inside are the mean and standard deviation of the pixels, and constants such as epsilon.
    assert graph == Graph(("images",), KERNELS, graph.others, MULTIPLY_ADDS)
    assert others <= graph.others <= others + 32


def test_a_wrong_batch_cannot_enter(written):
    folder, rows, _ = written
    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serving_default"]
    other = np.float32 if rows.dtype == np.uint8 else np.uint8
    for wrong in (rows.swapaxes(1, 3), rows[:, :, :2], rows.astype(other), rows[0]):
        with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
            serve(images=tf.constant(wrong))


def test_tensorflow_alone_runs_it(embedder, tmp_path):
    write_saved_model(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    pictures = probe_pictures(64, 32)
    np.save(tmp_path / "pictures.npy", pictures)
    jobs = [(tmp_path / "pictures.npy", size) for size in (1, 7)]
    found, versions = embed_with("tensorflow", tmp_path / "saved_model", jobs)
    assert versions["tensorflow"] == tf.__version__
    for rows in found:
        assert worst_cosine(rows, embedder(pictures)) >= 0.999999
