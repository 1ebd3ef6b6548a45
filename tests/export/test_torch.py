"""The PyTorch artifact: both of its programs give JAX's embeddings, with PyTorch alone."""

import dataclasses
import functools
import importlib
import os
import re
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.numpy

from pgfl_jax.errors import UserError
from pgfl_jax.export import export_torch
from pgfl_jax.export.contract import CONTRACTS, embed_function, named_variables
from pgfl_jax.export.graphs import main_branch
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.export.running import embed_with
from pgfl_jax.export.torch import read_program, write_torch
from pgfl_jax.pretrained import load_backbone
from tests.export.test_contract import KERNELS, MULTIPLY_ADDS, arranged
from tests.networks import FOUR_BLOCKS, golden, random_embedder, small_networks, small_twins
from tests.runs import by_name

torch = pytest.importorskip("torch")
torch_model = pytest.importorskip("pgfl_jax.export.torch_model")

BATCHES = 1, 7, 32


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 32, 3), np.uint8)


def expected(embedder, name, rows):
    # The variables are no constants, which would take most of the time to compile.
    embed = jax.jit(embed_function(embedder, CONTRACTS[name]))
    return np.asarray(embed(named_variables(embedder), rows))


FILES = {"torch": "model.safetensors", "torch_exported": "model.pt2"}


def load(runtime, folder):
    """The function of a runtime, in this process."""
    module = importlib.import_module(f"pgfl_jax.export.runtimes.run_{runtime}")
    return module.load(str(folder / FILES[runtime]))


def assert_same(found, wanted, difference=1e-6):
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=difference)
    assert np.sum(found.astype(np.float64) * wanted, axis=1).min() >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "pooling", "name", "largest"),
    [
        ("resnet8", "parts", "uint8_nhwc", 32),
        ("resnet8", "context", "float255_nchw", 7),
        # With the blocks of those above and of the next test.
        pytest.param("resnet8", "gem", "uint8_nhwc", 32, marks=pytest.mark.slow),
        pytest.param("resnet18", "gap", "float255_nchw", 32, marks=pytest.mark.slow),
        pytest.param("resnet34", "gem", "uint8_nhwc", 32, marks=pytest.mark.slow),
        pytest.param("resnet50", "gem", "uint8_nhwc", 32, marks=pytest.mark.slow),
        pytest.param("resnet50_ibn_a", "gap", "normalised_nchw", 32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("all_optimizations")
def test_both_programs_give_jaxs_embeddings(backbone, pooling, name, largest, tmp_path):
    embedder = random_embedder(backbone, pooling)
    write_torch(embedder, CONTRACTS[name], tmp_path)
    rows = arranged(pictures(largest), name)
    wanted, main = expected(embedder, name, rows), main_branch(embedder)
    for runtime in FILES:
        graph = read_program(tmp_path / FILES[runtime])
        assert (graph.kernels, graph.multiply_adds) == (main.kernels, main.multiply_adds)
        embed = load(runtime, tmp_path)
        for count in (size for size in BATCHES if size <= largest):
            assert_same(embed(rows[:count]), wanted[:count])


@pytest.mark.slow
@small_networks()
@pytest.mark.usefixtures("all_optimizations")
def test_bottlenecks_with_instance_normalisation(tmp_path):
    """In this process, since the artifact's own source does not know this network."""
    twin = functools.partial(torch_model.ResNet, torch_model.Bottleneck, *FOUR_BLOCKS, ibn_stages=3)
    with mock.patch.object(torch_model, "BACKBONES", {"four_blocks_ibn_a": lambda _: twin()}):
        _same_in_pytorch(random_embedder("four_blocks_ibn_a", "foreground"), tmp_path)


@small_networks()
@pytest.mark.parametrize("backbone", ["vit_overlap", pytest.param("swin", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("all_optimizations")
def test_a_transformer(backbone, tmp_path):
    embedder = random_embedder(backbone, "parts")
    with small_twins():
        _same_in_pytorch(embedder, tmp_path)
        graph, main = read_program(tmp_path / "model.pt2"), main_branch(embedder)
    assert (graph.kernels, graph.multiply_adds) == (main.kernels, main.multiply_adds)


@pytest.mark.slow  # ONNX's test and the twin's in tests/studies have it
@small_networks()
@pytest.mark.usefixtures("all_optimizations")
def test_a_class_token(tmp_path):
    embedder = random_embedder("vit", "cls")
    with small_twins():
        _same_in_pytorch(embedder, tmp_path)
        graph, main = read_program(tmp_path / "model.pt2"), main_branch(embedder)
    assert (graph.kernels, graph.multiply_adds) == (main.kernels, main.multiply_adds)


def _same_in_pytorch(embedder, tmp_path):
    write_torch(embedder, CONTRACTS["normalised_nchw"], tmp_path)
    network = torch_model.load(tmp_path)
    rows = arranged(pictures(7), "normalised_nchw")
    wanted = expected(embedder, "normalised_nchw", rows)
    with torch.inference_mode():
        assert_same(network(torch.from_numpy(rows)).numpy(), wanted)
    assert_same(load("torch_exported", tmp_path)(rows), wanted)


@pytest.fixture(scope="module", params=CONTRACTS)
def artifact(request, tmp_path_factory):
    """A contract's name and the artifact of a trained run."""
    folder = tmp_path_factory.mktemp("torch")
    write_torch(golden(), CONTRACTS[request.param], folder)
    return request.param, folder


@pytest.mark.parametrize("artifact", ["uint8_nhwc"], indirect=True)
@pytest.mark.parametrize("runtime", FILES)
def test_fresh_processes_with_pytorch_alone(artifact, runtime, tmp_path):
    """The weights are read without the package safetensors."""
    name, folder = artifact
    np.save(tmp_path / "rows.npy", arranged(pictures(32), name))
    (tmp_path / "safetensors.py").write_text("raise ImportError('it is not needed')")
    with mock.patch.dict(os.environ, PYTHONPATH=str(tmp_path)):
        job = tmp_path / "rows.npy", 7
        (found,), versions = embed_with(runtime, folder / FILES[runtime], [job])
    assert versions["torch"] == torch.__version__
    assert_same(found, golden()(pictures(32)))


@pytest.mark.parametrize("runtime", FILES)
def test_a_wrong_batch_cannot_enter(artifact, runtime):
    name, folder = artifact
    rows, embed = arranged(pictures(2), name), load(runtime, folder)
    other = np.float32 if name == "uint8_nhwc" else np.uint8
    height_and_width = (0, 2, 1, 3) if name == "uint8_nhwc" else (0, 1, 3, 2)
    layout = (0, 3, 1, 2) if name == "uint8_nhwc" else (0, 2, 3, 1)
    wrong = {
        "type": rows.astype(other),
        "precision": rows.astype(np.float64),
        "size": np.repeat(rows, 2, axis=2),
        "height and width": rows.transpose(height_and_width),
        "layout": rows.transpose(layout),
        "no batch": rows[0],
        "channels": rows[..., :2] if name == "uint8_nhwc" else rows[:, :2],
    }
    kinds = {
        "torch": (TypeError, ValueError),
        "torch_exported": (RuntimeError, AssertionError),
    }
    messages = {
        "torch": r"images: must be a tensor \(N, (64, 32, 3|3, 64, 32)\) torch\.\w+, not ",
        "torch_exported": r"Tensor dtype mismatch|Guard failed: images",
    }
    for what, images in wrong.items():
        with pytest.raises(kinds[runtime], match=messages[runtime]):
            embed(np.ascontiguousarray(images))
            pytest.fail(f"a wrong {what} entered")
    assert embed(rows).shape == (2, golden().dim)


def torchvision_names(sizes, convolutions):
    """The trunk's part of the state dict of ``torchvision.models.resnet…()``, in its order."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
    for stage, blocks in enumerate(sizes, 1):
        for block in range(blocks):
            layer = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names += [f"{layer}.conv{number}.weight"]
                names += [f"{layer}.bn{number}.{part}" for part in norm]
            # ResNet-18's first stage keeps size and channels; ResNet-50's has four times as many.
            if block == 0 and (stage > 1 or convolutions == 3):
                names += [f"{layer}.downsample.0.weight"]
                names += [f"{layer}.downsample.1.{part}" for part in norm]
    return names


HEAD = {f"{layer}.{part}" for layer in ("hidden", "maps") for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("backbone", "sizes", "convolutions", "count", "pooling", "parameters"),
    [
        ("resnet18", (2, 2, 2, 2), 2, 120, "parts", HEAD),
        ("resnet50", (3, 4, 6, 3), 3, 318, "gem", {"power"}),
    ],
)
def test_the_weights_have_torchvisions_names(
    backbone, sizes, convolutions, count, pooling, parameters, tmp_path
):
    embedder = random_embedder(backbone, pooling)
    # The program, which takes most of the time, has no names.
    with mock.patch("pgfl_jax.export.torch.trace"), mock.patch("torch.export.save"):
        write_torch(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    trunk = torchvision_names(sizes, convolutions)
    assert len(trunk) == count  # 122 and 320 arrays, less fc.weight and fc.bias
    neck = {f"main_neck.{part}" for part in ("weight", "running_mean", "running_var")}
    assert weights.keys() == {
        *trunk, *neck, *(f"main_pooling.{name}" for name in parameters)
    }  # fmt: skip
    # They are what a new run can start from, with neck and pooling.
    blank = jax.tree.map(np.zeros_like, embedder.variables)
    variables, report = load_backbone(tmp_path / "model.safetensors", blank)
    assert not report.left_over and not report.missing
    back = by_name(variables)
    for name, value in by_name(embedder.variables).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_source_is_the_twins(tmp_path):
    from studies.pytorch import models

    write_torch(golden(), CONTRACTS["uint8_nhwc"], tmp_path)
    (source,) = {sys.modules[kind.__module__].__file__ for kind in models.PGFL.__mro__[1:2]}
    assert (tmp_path / "model.py").read_bytes() == Path(source).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.pt2", "model.py", "model.safetensors",
    ]  # fmt: skip
    # The same file defines the twin's trunk, pooling and neck.
    twin = models.PGFL(3, "resnet8", (64, 32), pooling="gem")
    for part in (twin.trunk, twin.trunk.layer1[0], twin.main_pooling, twin.main_neck):
        assert sys.modules[type(part).__module__].__file__ == source


@pytest.mark.parametrize("runtime", FILES)
def test_only_images_enter_and_only_the_main_branch_is_inside(artifact, runtime):
    name, folder = artifact
    graph = read_program(folder / FILES[runtime])
    others = sum(value.size for value in named_variables(golden()).values()) - KERNELS
    normalisation = 0 if name == "normalised_nchw" else 6
    assert graph == Graph(("images",), KERNELS, others + normalisation, MULTIPLY_ADDS)


def test_bfloat16_is_the_trunks_precision(tmp_path):
    embedder = random_embedder("resnet8", "gem", "bfloat16")
    write_torch(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    rows = pictures(7)
    wanted = expected(embedder, "uint8_nhwc", rows)
    exact = expected(random_embedder("resnet8", "gem"), "uint8_nhwc", rows)
    for runtime in FILES:
        found = load(runtime, tmp_path)(rows)
        # About as far from float32 as JAX's, not equal to it: PyTorch rounds once more in each
        # layer, before its BatchNorm, which JAX's convolutions contain.
        assert 1e-4 < np.abs(found - exact).max() < 3 * np.abs(wanted - exact).max()


def test_a_damaged_file_is_named(tmp_path):
    write_torch(golden(), CONTRACTS["uint8_nhwc"], tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for part in (content[:-1], content[:100], b""):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=re.escape(str(path)) + ": damaged"):
            load("torch", tmp_path)


def test_a_backbone_without_a_twin_is_named(tmp_path):
    config = golden().config
    network = dataclasses.replace(config.model, backbone="patches")
    other = dataclasses.replace(golden(), config=dataclasses.replace(config, model=network))
    with pytest.raises(UserError, match=r"backbone = 'patches': has no twin in PyTorch"):
        write_torch(other, CONTRACTS["uint8_nhwc"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_artifact_passes_its_verification(tmp_path):
    found = export_torch(golden(), tmp_path / "torch")
    assert all(finding.passed for finding in found) and len(found) == 4  # two graphs, two runtimes
