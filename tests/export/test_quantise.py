"""ONNX files in int8 and float16 give nearly the embeddings of the float32 one."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pgfl_jax.export.contract import CONTRACTS
from pgfl_jax.export.onnx import write_onnx
from pgfl_jax.export.probe import probe_pictures
from pgfl_jax.export.quantise import halve_onnx, quantise_onnx
from pgfl_jax.export.running import BATCHES
from tests.export.test_contract import arranged
from tests.networks import golden


@pytest.fixture(scope="module")
def embedder():
    return golden()


@pytest.fixture(scope="module", params=CONTRACTS)
def folder(embedder, request, tmp_path_factory):
    """``model.onnx``, and the calibration and probe rows as its input takes them."""
    folder = tmp_path_factory.mktemp(request.param)
    write_onnx(embedder, CONTRACTS[request.param], folder)
    for name, seed in (("calibration", 1), ("probe", 0)):
        np.save(folder / name, arranged(probe_pictures(64, 32, seed=seed), request.param))
    return folder


def worst_cosine(found, expected):
    """Of rows that should be of unit length."""
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    return np.sum(found * expected, axis=1, dtype=np.float64).min()


def cosine_of(embedder, path):
    """The worst, of ONNX Runtime's embeddings of the probe with JAX's, at each of ``BATCHES``."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = np.load(path.with_name("probe.npy"))
    expected = embedder(probe_pictures(64, 32))
    found = [session.run(None, {"images": rows[:size]})[0] for size in BATCHES]
    return min(worst_cosine(f, expected[: len(f)]) for f in found)


def checked(path):
    """The model, its operations, and the types of its weights."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    return model, collections.Counter(node.op_type for node in model.graph.node), weights


def test_int8(embedder, folder):
    target = folder / "model_int8.onnx"
    quantise_onnx(folder / "model.onnx", target, np.load(folder / "calibration.npy"))
    assert cosine_of(embedder, target) >= 0.995
    model, counts, weights = checked(target)
    assert counts["Conv"] == 9 and counts["QuantizeLinear"] > 9
    # A scale for each channel of a kernel, and none in what follows the last convolution.
    sources = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel, scales = (weights[name] for name in sources[node.input[1]].input[:2])
            assert kernel.dtype == np.int8 and scales.shape == kernel.shape[:1]
    last = max(i for i, node in enumerate(model.graph.node) if node.op_type == "QuantizeLinear")
    assert {"ReduceSum", "Sqrt", "Div"} <= {node.op_type for node in model.graph.node[last:]}
    assert target.stat().st_size < 0.28 * (folder / "model.onnx").stat().st_size


def test_float16(embedder, folder):
    target = folder / "model_float16.onnx"
    halve_onnx(folder / "model.onnx", target)
    assert cosine_of(embedder, target) >= 0.99999
    model, counts, weights = checked(target)
    _, before, _ = checked(folder / "model.onnx")
    # Into the trunk and out of it.
    assert counts - before == {"Cast": 2} and not before - counts
    assert {w.dtype for w in weights.values() if w.ndim == 4 and w.size > 3} == {
        np.dtype("float16")
    }
    assert target.stat().st_size < 0.52 * (folder / "model.onnx").stat().st_size
    kinds = [
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    ]
    inputs = onnx.load(folder / "model.onnx").graph.input
    assert kinds == [inputs[0].type.tensor_type.elem_type, onnx.TensorProto.FLOAT]


def test_pictures_of_another_range_spoil_the_calibration(embedder, folder):
    """The rows matter: a tenth of the contrast makes scales at which activations saturate."""
    target, rows = folder / "dim.onnx", np.load(folder / "calibration.npy")
    quantise_onnx(folder / "model.onnx", target, (rows * 0.02).astype(rows.dtype))
    assert cosine_of(embedder, target) < 0.99
