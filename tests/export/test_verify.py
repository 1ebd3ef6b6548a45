"""``pgfl verify`` finds what is wrong with an artifact, wherever the error was planted."""

import functools
import hashlib
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import onnx
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from onnx import helper, numpy_helper

from pgfl_jax import cli
from pgfl_jax.embedder import Embedder
from pgfl_jax.experiment import make_model
from pgfl_jax.export import export_onnx
from pgfl_jax.export.onnx_file import read_graph
from pgfl_jax.export.running import Pictures, Run
from pgfl_jax.export.verify import LARGEST_DISTANCE, agreement, judge, verify
from pgfl_jax.models.backbones import BACKBONES, ResNet
from pgfl_jax.models.backbones.resnet import Bottleneck
from tests.export.conftest import hide
from tests.networks import golden
from tests.runs import GOLDEN_RUN, finish, halve, launch

pytestmark = pytest.mark.usefixtures("onnxruntime_alone")


def wrong(folder, **options):
    return [finding.line for finding in verify(folder, **options) if finding.passed is False]


@pytest.fixture(scope="module")
def embedder():
    return golden()


@pytest.fixture(scope="module")
def sound(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "onnx"
    export_onnx(embedder, folder)
    return folder


@pytest.fixture
def artifact(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "onnx")


def plant(folder, change):
    """Change the model, and write its digest as if it had been exported so."""
    model = onnx.load(folder / "model.onnx")
    change(model.graph)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, folder / "model.onnx")
    forge(folder, "model.onnx")


def forge(folder, name):
    record = json.loads((folder / "parity.json").read_text())
    record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "parity.json").write_text(json.dumps(record))


def constant(graph, name, value):
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def first(graph, *nodes):
    """Nodes between the input and what took it; the last one gives ``changed``."""
    for node in graph.node:
        node.input[:] = ["changed" if name == "images" else name for name in node.input]
    for node in reversed(nodes):
        graph.node.insert(0, node)


def normalised_twice(graph):
    mean = constant(graph, "mean", np.float32([0.485, 0.456, 0.406]) * 255)
    std = constant(graph, "std", np.float32([0.229, 0.224, 0.225]) * 255)
    first(
        graph,
        helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", mean], ["centred"]),
        helper.make_node("Div", ["centred", std], ["changed"]),
    )


def swapped_channels(graph):
    order = constant(graph, "order", np.int64([2, 1, 0]))
    first(graph, helper.make_node("Gather", ["images", order], ["changed"], axis=3))


def turned_pictures(graph):
    shape = constant(graph, "shape", np.int64([0, 64, 32, 3]))
    first(
        graph,
        helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", shape], ["changed"]),
    )


def turned_input(graph):
    height, width = graph.input[0].type.tensor_type.shape.dim[1:3]
    height.dim_value, width.dim_value = width.dim_value, height.dim_value
    first(graph, helper.make_node("Transpose", ["images"], ["changed"], perm=[0, 2, 1, 3]))


def right_at_batch_1_alone(graph):
    zero, one = constant(graph, "zero", np.int64([0])), constant(graph, "one", np.int64([1]))
    nothing = constant(graph, "nothing", np.float32(0))
    graph.node[-1].output[0] = "rows"
    graph.node.extend(
        [
            helper.make_node("Slice", ["rows", zero, one, zero], ["first"]),
            helper.make_node("Mul", ["rows", nothing], ["zeros"]),
            helper.make_node("Add", ["first", "zeros"], ["embeddings"]),
        ]
    )


def fixed_at_batch_1(graph):
    shape = constant(graph, "all", np.int64([1, 64, 32, 3]))
    first(graph, helper.make_node("Reshape", ["images", shape], ["changed"]))


def unfolded_batch_norm(graph):
    """Its numbers are right."""
    place, convolution = next((i, n) for i, n in enumerate(graph.node) if n.op_type == "Conv")
    output, channels = convolution.output[0], 48
    convolution.output[0] = "before"
    names = [
        constant(graph, name, np.full(channels, value, np.float32))
        for name, value in (("scale", 1), ("bias", 0), ("running", 0), ("var", 1 - 1e-5))
    ]
    made = helper.make_node("BatchNormalization", ["before", *names], [output], epsilon=1e-5)
    graph.node.insert(place + 1, made)


def one_branch_more(graph):
    """Weights of a branch that a test picture does not need."""
    weights = constant(graph, "classifier", np.zeros((16, 192), np.float32))
    graph.node.append(helper.make_node("Gemm", [graph.node[-2].output[0], weights], ["logits"]))
    graph.node[-1].attribute.append(helper.make_attribute("transB", 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (normalised_twice, "model.onnx on onnxruntime, probe: worst cosine"),
        (swapped_channels, "model.onnx on onnxruntime, probe: worst cosine"),
        (turned_pictures, "model.onnx on onnxruntime, probe: worst cosine"),
        (turned_input, "Got invalid dimensions for input"),
        (fixed_at_batch_1, "cannot be reshaped"),
        (unfolded_batch_norm, "BatchNormalization is not folded"),
        (one_branch_more, "691,968 weights, not 688,896"),
    ],
)
def test_planted_errors_are_found(artifact, change, message):
    plant(artifact, change)
    found = wrong(artifact)
    assert any(message in line for line in found), found


def test_nothing_is_wrong_with_a_sound_artifact(artifact):
    assert wrong(artifact) == []


def test_a_graph_that_is_right_at_batch_1_alone_is_wrong_at_others(artifact):
    plant(artifact, right_at_batch_1_alone)
    (line,) = wrong(artifact)
    assert "in batches of 7" in line or "in batches of 32" in line


def test_numbers_alone_would_not_find_an_unfolded_batch_norm(artifact):
    plant(artifact, unfolded_batch_norm)
    (line,) = wrong(artifact)
    assert line == "model.onnx: not the main branch alone: BatchNormalization is not folded"


def test_a_max_pool_without_its_padding_is_found(embedder, tmp_path):
    """As some exporters make it without a word."""
    small = {"resnet8": ResNet(Bottleneck, (1, 1, 1, 1), (8, 16, 16, 32))}
    with mock.patch.dict(BACKBONES, small):
        export_onnx(_random(embedder), tmp_path / "onnx")
    assert wrong(tmp_path / "onnx") == []

    def valid(graph):
        (pool,) = (node for node in graph.node if node.op_type == "MaxPool")
        (pads,) = (given for given in pool.attribute if given.name == "pads")
        assert [*pads.ints] == [1, 1, 1, 1]
        pool.attribute.remove(pads)

    plant(tmp_path / "onnx", valid)
    assert any("worst cosine" in line for line in wrong(tmp_path / "onnx"))


def _random(embedder):
    """The embedder with random weights of the current networks."""
    model = make_model(embedder.config, num_identities=1)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    init = functools.partial(model.init, train=False)
    shapes = flatten_dict(jax.eval_shape(init, jax.random.key(0), images), sep="/")
    rng = np.random.default_rng(0)
    drawn = {
        name: rng.normal(0, np.prod(value.shape[:-1]) ** -0.5, value.shape)
        if name.endswith("kernel")
        else rng.uniform(0.5, 1.5, value.shape)
        for name, value in shapes.items()
    }
    variables = {name: value.astype(np.float32) for name, value in drawn.items()}
    return Embedder(embedder.config, model, unflatten_dict(variables, sep="/"), 0)


def test_nearly_equal_embeddings_do_not_hide_an_error():
    """All cosines are above 0.999999, between pictures too."""
    rng = np.random.default_rng(0)
    noise = 1e-4 * rng.normal(size=(2, 32, 8))
    pair = (np.eye(8)[0] + noise).astype(np.float32)
    found, expected = pair / np.linalg.norm(pair, axis=2, keepdims=True)
    measured = agreement(found, expected)
    assert measured["worst_cosine"] > 0.999999 and measured["of_spread"] > LARGEST_DISTANCE
    model = {"file": "x", "precision": "float32"}
    pictures = Pictures("probe", Path("x"), expected, (32,))
    (finding,) = judge(Run(model, "y", {"probe": [found]}), [pictures])
    assert finding.passed is False and "of the spread away" in finding.line
    (finding,) = judge(Run(model, "y", {"probe": [expected]}), [pictures])
    assert finding.passed is True


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.eye(4, 3, dtype=np.float32), "(4, 3) float32, not (4, 4) float32"),
        (np.eye(4), "(4, 4) float64, not (4, 4) float32"),
        (np.full((4, 4), np.nan, np.float32), "values that are not finite"),
        (2 * np.eye(4, dtype=np.float32), "rows of length 2.0000 to 2.0000, not 1"),
    ],
)
def test_outputs_that_break_the_contract_are_wrong(rows, words):
    model = {"file": "x", "precision": "int8"}
    pictures = Pictures("probe", Path("x"), np.eye(4, dtype=np.float32), (4,))
    (finding,) = judge(Run(model, "y", {"probe": [rows]}), [pictures])
    assert finding.passed is False and finding.line == f"x on y, probe: {words}"


def test_weights_of_another_checkpoint_are_found(artifact, embedder, tmp_path):
    flat = flatten_dict(embedder.variables, sep="/")
    name = "params/trunk/layer3_0/conv2/kernel"
    flat[name] = np.roll(flat[name], 1, axis=0)
    other = Embedder(embedder.config, embedder.model, unflatten_dict(flat, sep="/"), 30)
    export_onnx(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.onnx", artifact)
    forge(artifact, "model.onnx")
    (line,) = wrong(artifact)
    assert "model.onnx on onnxruntime, probe: worst cosine" in line


def test_an_artifact_of_another_run_is_found(artifact, tmp_path, capsys):
    assert cli.main(["verify", str(artifact), "--run", str(GOLDEN_RUN)]) == 0
    assert f"ok      is checkpoint 30 of {GOLDEN_RUN}" in capsys.readouterr().out
    other = shutil.copytree(GOLDEN_RUN, tmp_path / "run")
    with (other / "checkpoints" / "30" / "digests.json").open("a") as file:
        file.write("\n")
    assert cli.main(["verify", str(artifact), "--run", str(other)]) == 1
    assert "WRONG   of another run: not what is checkpoint 30 of" in capsys.readouterr().out
    (other / "checkpoints" / "30").rename(other / "checkpoints" / "40")
    assert "has no checkpoint 30" in wrong(artifact, run=other)[0]


@pytest.mark.parametrize(
    "name", ["model.onnx", "probe.npz", "preprocessing.json", "config.json", "README.md"]
)
def test_a_file_that_is_cut_short_is_found(artifact, name, capsys):
    halve(artifact / name)
    assert cli.main(["verify", str(artifact)]) == 1
    assert capsys.readouterr().out == f"WRONG   {name} is not as it was written\n"
    (artifact / name).unlink()
    assert wrong(artifact) == [f"{name} is missing"]


def test_a_model_that_was_cut_short_before_it_was_digested(artifact):
    halve(artifact / "model.onnx")
    forge(artifact, "model.onnx")
    cut, refused = wrong(artifact)
    assert cut == "model.onnx: cut short, or not an ONNX file with all shapes"
    assert refused.startswith("model.onnx on onnxruntime: ")


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"files": {}, "models": [], "x": 1}'])
def test_a_damaged_record_is_one_line(artifact, content, capsys):
    (artifact / "parity.json").write_text(content)
    assert cli.main(["verify", str(artifact)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "parity.json: damaged" in err


def test_a_folder_without_an_artifact_is_one_line(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/parity.json: not found; is {tmp_path} the folder of an artifact?\n"
    )


ALONE = """
import sys
absent = {"jax", "jaxlib", "flax", "orbax", "optax", "PIL", "safetensors", "onnx", "tensorflow"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent | {"torch", "jaxtyping", "tqdm", "input_pipeline"}:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from pgfl_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_verifying_needs_the_runtime_alone(artifact):
    status, out, err = finish(launch("-c", ALONE, "verify", artifact))
    assert (status, err) == (0, ""), out
    assert "ok      model.onnx on onnxruntime, probe: worst cosine" in out


def test_without_its_runtime_nothing_is_verified(artifact, tmp_path, capsys):
    with hide(["onnxruntime", "openvino"], tmp_path):
        assert cli.main(["verify", str(artifact), "--python", sys.executable]) == 1
    out = capsys.readouterr().out
    assert "skipped model.onnx on onnxruntime: not checked: onnxruntime is not installed" in out
    assert "WRONG   no runtime is installed that could check it" in out


def test_the_reader_of_onnx_files_sees_what_the_package_does(sound):
    model = onnx.load(sound / "model.onnx")
    graph = read_graph(sound / "model.onnx")
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    floats = sum(array.size for array in arrays if array.dtype == np.float32)
    assert graph.kernels + graph.others == floats
    assert graph.kernels == sum(array.size for array in arrays if array.ndim == 4)
    assert graph.inputs == ("images",)
    kinds = [node.op_type for node in model.graph.node]
    assert graph.operations == {kind: kinds.count(kind) for kind in kinds}
