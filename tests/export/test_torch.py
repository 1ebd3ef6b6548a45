"""The PyTorch artifact: both of its programs give JAX's embeddings, with PyTorch alone."""

import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import pgfl_jax
from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import make_model
from pgfl_jax.export.contract import CONTRACTS, embed_function, named_variables
from pgfl_jax.export.torch import write_torch
from pgfl_jax.pretrained import load_backbone
from tests.export.test_contract import arranged
from tests.runs import GOLDEN_RUN, ROOT, by_name

torch = pytest.importorskip("torch")

RUNTIMES = ROOT / "pgfl_jax" / "export" / "runtimes"
BATCHES = 1, 7, 32


@functools.cache
def golden():
    return pgfl_jax.load(GOLDEN_RUN)


@functools.cache
def random_embedder(backbone, pooling, dtype="float32"):
    """A network with random weights, of which none is trivially 0 or 1, for 64×32 pixels."""
    config = golden().config
    network = dataclasses.replace(config.model, backbone=backbone, pooling=pooling, dtype=dtype)
    config = dataclasses.replace(config, model=network)
    model = make_model(config, num_identities=1)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        if path[-1].key == "kernel":  # keeps the variance from layer to layer
            values = rng.normal(0, np.prod(shape.shape[:-1]) ** -0.5, shape.shape)
        elif path[-1].key in ("mean", "bias"):
            values = rng.normal(0, 0.1, shape.shape)
        elif path[-1].key == "power":
            values = np.array(2.5)
        else:
            values = rng.uniform(0.5, 1.5, shape.shape)
        return values.astype(np.float32)

    return Embedder(config, model, jax.tree_util.tree_map_with_path(drawn, shapes), step=1)


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 32, 3), np.uint8)


def expected(embedder, name, rows):
    # The variables are no constants, which would take most of the time to compile.
    embed = jax.jit(embed_function(embedder, CONTRACTS[name]))
    return np.asarray(embed(named_variables(embedder), rows))


def load(runtime, folder):
    """The function of a runtime, by its script, in this process."""
    found = {"__name__": runtime}
    exec((RUNTIMES / f"{runtime}.py").read_text(encoding="utf-8"), found)
    return found["load"](str(folder))


def assert_same(found, wanted, difference=1e-6):
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=difference)
    assert np.sum(found.astype(np.float64) * wanted, axis=1).min() >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "pooling", "name"),
    [
        ("resnet8", "gem", "uint8_nhwc"),
        ("resnet18", "gap", "float255_nchw"),
        ("resnet50", "gem", "uint8_nhwc"),
        ("resnet50_ibn_a", "gap", "normalised_nchw"),
    ],
)
def test_both_programs_give_jaxs_embeddings_at_any_batch(backbone, pooling, name, tmp_path):
    embedder = random_embedder(backbone, pooling)
    write_torch(embedder, CONTRACTS[name], tmp_path)
    rows = arranged(pictures(32), name)
    wanted = expected(embedder, name, rows)
    for runtime, count in itertools.product(("run_torch", "run_torch_exported"), BATCHES):
        assert_same(load(runtime, tmp_path)(rows[:count]), wanted[:count])


@pytest.fixture(scope="module", params=CONTRACTS)
def artifact(request, tmp_path_factory):
    """A contract's name and the artifact of a trained run."""
    folder = tmp_path_factory.mktemp("torch")
    write_torch(golden(), CONTRACTS[request.param], folder)
    return request.param, folder


@pytest.mark.parametrize("runtime", ["run_torch", "run_torch_exported"])
def test_fresh_processes_with_pytorch_alone(artifact, runtime, tmp_path):
    """From a copy of the artifact, with our packages and safetensors out of reach."""
    name, folder = artifact
    rows, script = arranged(pictures(32), name), RUNTIMES / f"{runtime}.py"
    np.save(tmp_path / "rows.npy", rows)
    block = (
        "import runpy, sys\n"
        "for name in ('pgfl_jax', 'jax', 'flax', 'safetensors', 'jaxtyping', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(RUNTIMES)!r})\n"
        f"sys.argv[0] = {str(script)!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    output = tmp_path / "embeddings.npy"
    options = folder, tmp_path / "rows.npy", output, 7
    result = subprocess.run(
        [sys.executable, "-c", block, *map(str, options)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["torch"] == torch.__version__
    assert_same(np.load(output), golden()(pictures(32)))


@pytest.mark.parametrize("runtime", ["run_torch", "run_torch_exported"])
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
        "run_torch": (TypeError, ValueError),
        "run_torch_exported": (RuntimeError, AssertionError),
    }
    messages = {
        "run_torch": r"images: must be a tensor \(N, (64, 32, 3|3, 64, 32)\) torch\.\w+, not ",
        "run_torch_exported": r"Tensor dtype mismatch|Guard failed: images",
    }
    for what, images in wrong.items():
        with pytest.raises(kinds[runtime], match=messages[runtime]):
            embed(images)
            print(what)
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


@pytest.mark.parametrize(
    ("backbone", "sizes", "convolutions", "count"),
    [("resnet18", (2, 2, 2, 2), 2, 120), ("resnet50", (3, 4, 6, 3), 3, 318)],
)
def test_the_weights_have_torchvisions_names(backbone, sizes, convolutions, count, tmp_path):
    embedder = random_embedder(backbone, "gem")
    write_torch(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    trunk = torchvision_names(sizes, convolutions)
    assert len(trunk) == count  # 122 and 320 arrays, less fc.weight and fc.bias
    neck = {f"main_neck.{part}" for part in ("weight", "running_mean", "running_var")}
    assert weights.keys() == {*trunk, *neck, "main_pooling.power"}
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
    twin = models.PGFL(3, "resnet8", pooling="gem")
    for part in (twin.trunk, twin.trunk.layer1[0], twin.main_pooling, twin.main_neck):
        assert sys.modules[type(part).__module__].__file__ == source


def test_only_images_enter_and_only_the_main_branch_is_inside(artifact):
    _, folder = artifact
    program = torch.export.load(folder / "model.pt2")
    signature = program.graph_signature
    assert len(signature.user_inputs) == len(signature.user_outputs) == 1
    stored = {*signature.parameters, *signature.buffers}
    assert {name.split(".")[0] for name in stored} <= {"trunk", "main_neck", "scale", "offset"}
    count = sum(program.state_dict[name].numel() for name in signature.parameters)
    assert count == sum(x.size for x in jax.tree.leaves(golden().variables["params"]))


def test_bfloat16_is_the_trunks_precision(tmp_path):
    embedder = random_embedder("resnet8", "gem", "bfloat16")
    write_torch(embedder, CONTRACTS["uint8_nhwc"], tmp_path)
    rows = pictures(7)
    wanted = expected(embedder, "uint8_nhwc", rows)
    exact = expected(random_embedder("resnet8", "gem"), "uint8_nhwc", rows)
    for runtime in ("run_torch", "run_torch_exported"):
        found = load(runtime, tmp_path)(rows)
        # As far from float32 as JAX's, not equal to it.
        assert 1e-4 < np.abs(found - exact).max() < 2 * np.abs(wanted - exact).max()


def test_a_damaged_file_is_named(tmp_path):
    write_torch(golden(), CONTRACTS["uint8_nhwc"], tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for part in (content[:-1], content[:100], b""):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=re.escape(str(path)) + ": damaged"):
            load("run_torch", tmp_path)


def test_without_pytorch_or_a_twin_one_line_says_so(tmp_path, monkeypatch):
    config = golden().config
    network = dataclasses.replace(config.model, backbone="patches")
    other = dataclasses.replace(golden(), config=dataclasses.replace(config, model=network))
    with pytest.raises(UserError, match=r"backbone = 'patches': there is no such network"):
        write_torch(other, CONTRACTS["uint8_nhwc"], tmp_path)
    monkeypatch.delitem(sys.modules, "pgfl_jax.export.torch_model")
    monkeypatch.delattr("pgfl_jax.export.torch_model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"the format torch needs PyTorch: pip install"):
        write_torch(golden(), CONTRACTS["uint8_nhwc"], tmp_path)
    assert not list(tmp_path.iterdir())
