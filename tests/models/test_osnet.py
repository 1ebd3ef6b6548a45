"""OSNet against its definition in PyTorch's functions, and torchreid's files."""

import functools
import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.export.jaxpr_to_onnx import convert
from pgfl_jax.models.backbones import BACKBONES, OSNet
from pgfl_jax.pretrained import load_backbone, save_state_dict
from tests.networks import random_embedder
from tests.test_pretrained import abstract
from tests.weight_files import assert_one_line, load

torch = pytest.importorskip("torch")
F = torch.nn.functional

SMALL = (16, 64, 96, 128)


def torchreid(widths=(64, 256, 384, 512)):
    """The arrays that it saves, without its dense layer and classifier."""
    rng, arrays = np.random.default_rng(0), {}

    def layer(name, *shape, norm=None):
        scale = np.prod(shape[1:]) ** -0.5
        arrays[f"{name}.weight"] = (scale * rng.normal(size=shape)).astype(np.float32)
        kinds = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        for kind, value in kinds.items() if norm else ():
            drawn = value + 0.5 * rng.uniform(size=shape[0])
            arrays[f"{norm}.{kind}"] = drawn.astype(np.float32)

    def both(name, *shape):
        layer(f"{name}.conv", *shape, norm=f"{name}.bn")

    both("conv1", widths[0], 3, 7, 7)
    inputs = widths[0]
    for stage, width in enumerate(widths[1:], start=2):
        middle = width // 4
        for j in range(2):
            block = f"conv{stage}.{j}."
            both(f"{block}conv1", middle, inputs, 1, 1)
            for depth, stream in enumerate("abcd", start=1):
                for i in range(depth):
                    light = f"{block}conv2{stream}" + f".{i}" * (depth > 1)
                    layer(f"{light}.conv1", middle, middle, 1, 1)
                    layer(f"{light}.conv2", middle, 1, 3, 3, norm=f"{light}.bn")
            for name, shape in (("fc1", (middle // 16, middle)), ("fc2", (middle, middle // 16))):
                layer(f"{block}gate.{name}", *shape, 1, 1)
                arrays[f"{block}gate.{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
            both(f"{block}conv3", width, middle, 1, 1)
            if inputs != width:
                both(f"{block}downsample", width, inputs, 1, 1)
            inputs = width
        if stage < 4:
            both(f"conv{stage}.2.0", width, width, 1, 1)
    both("conv5", inputs, inputs, 1, 1)
    return arrays


def _features(arrays, x):
    """What torchreid's network computes in evaluation."""

    def normalised(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(arrays[f"{name}.{kind}"] for kind in kinds))

    def conv(x, name, **options):
        return normalised(F.conv2d(x, arrays[f"{name}.conv.weight"], **options), f"{name}.bn")

    def light(x, name):
        x = F.conv2d(x, arrays[f"{name}.conv1.weight"])
        x = F.conv2d(x, arrays[f"{name}.conv2.weight"], padding=1, groups=x.shape[1])
        return normalised(x, f"{name}.bn").relu()

    def gated(x, name):
        y = F.adaptive_avg_pool2d(x, 1)
        y = F.conv2d(y, arrays[f"{name}.fc1.weight"], arrays[f"{name}.fc1.bias"]).relu()
        return x * F.conv2d(y, arrays[f"{name}.fc2.weight"], arrays[f"{name}.fc2.bias"]).sigmoid()

    x = F.max_pool2d(conv(x, "conv1", stride=2, padding=3).relu(), 3, 2, 1)
    for stage in (2, 3, 4):
        for j in range(2):
            block = f"conv{stage}.{j}."
            y = conv(x, f"{block}conv1").relu()
            streams = [light(y, f"{block}conv2a")]
            for depth, stream in enumerate("bcd", start=2):
                names = [f"{block}conv2{stream}.{i}" for i in range(depth)]
                streams.append(functools.reduce(light, names, y))
            total = sum(gated(z, f"{block}gate") for z in streams)
            shortcut = conv(x, f"{block}downsample") if j == 0 else x
            x = (conv(total, f"{block}conv3") + shortcut).relu()
        if stage < 4:
            x = F.avg_pool2d(conv(x, f"conv{stage}.2.0").relu(), 2)
    return conv(x, "conv5").relu()


def test_features_and_gradients_are_its_definitions(tmp_path):
    ours, arrays = OSNet(SMALL), torchreid(SMALL)
    save_state_dict(tmp_path / "net.safetensors", arrays)
    init = functools.partial(ours.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 32, 3), "f"))
    trunk = {name: {"trunk": shapes[name]} for name in ("params", "batch_stats")}
    loaded, _ = load_backbone(tmp_path / "net.safetensors", trunk)
    variables = {name: loaded[name]["trunk"] for name in loaded}
    rng = np.random.default_rng(1)
    images, direction = rng.normal(size=(2, 64, 32, 3)), rng.normal(size=(2, 4, 2, SMALL[-1]))

    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in arrays.items()}
    x = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    expected = _features(tensors, x).permute(0, 2, 3, 1)
    (expected * torch.tensor(direction)).sum().backward()
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)

        def loss(images, variables):
            features = ours.apply(variables, images, train=False)
            return (features * direction).sum(), features

        gradient, features = jax.jit(jax.grad(loss, has_aux=True))(images, variables)
    np.testing.assert_allclose(features, expected.detach(), rtol=0, atol=1e-9)
    wanted = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


def test_torchreids_file_fills_the_whole_trunk(tmp_path):
    head = {"fc.0.weight": np.ones((512, 512)), "classifier.weight": np.ones((4, 512))}
    _, report = load(torchreid() | head, tmp_path / "w.safetensors", "osnet_x1_0")
    assert dict(report.missing) == {} and set(report.left_over) == head.keys()


@pytest.mark.parametrize(
    ("widths", "added", "message"),
    [
        (
            (48, 192, 288, 384),
            (),
            "OSNet of 192, 288, 384 channels, not a network like OSNet of 256, 384, ",
        ),
        ((64, 256, 384, 512), ("conv2.0.IN.weight",), "channels with instance normalisation, not"),
    ],
)
def test_the_nearest_wrong_file_gives_one_line(widths, added, message, tmp_path):
    arrays = torchreid(widths) | {name: np.ones(256, np.float32) for name in added}
    assert_one_line(arrays, "osnet_x1_0", message, tmp_path / "w.safetensors")


@pytest.mark.slow
def test_it_is_exported():
    with mock.patch.dict(BACKBONES, osnet_x1_0=OSNet(SMALL)):
        abstract.cache_clear()
        assert set(BACKBONES["osnet_x1_0"].layers) | {"conv1"} == set(
            abstract("osnet_x1_0")["params"]["trunk"]
        )
        embedder = random_embedder("osnet_x1_0", "gap")
        (size,) = jax.export.symbolic_shape("batch")
        rows = jax.ShapeDtypeStruct((size, 64, 32, 3), np.uint8)
        with jax.numpy_rank_promotion("allow"):
            model = convert(lambda x: embedder.apply(embedder.variables, x), rows)
        pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
        wanted = embedder(pictures)  # with BatchNorm in the kernels
    abstract.cache_clear()
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"images": pictures})[0], wanted, atol=1e-6)
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1
