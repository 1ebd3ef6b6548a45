"""Weights to and from PyTorch, against networks written with its own modules.

No published weights are used. The naming schemes are those shown in documentation and issues.
"""

import functools
import itertools
import json
import os
import pickle
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict

import main
from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.command_line import parse_flags
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import PGFL
from pgfl_jax.models.backbones import BACKBONES, ResNet
from pgfl_jax.models.backbones.resnet import BasicBlock, Bottleneck
from pgfl_jax.pretrained import (
    PretrainedError,
    from_state_dict,
    load_backbone,
    read_state_dict,
    save_state_dict,
    to_state_dict,
)
from pgfl_jax.train import begin, train
from tests.runs import leaves

torch = pytest.importorskip("torch")
F = torch.nn.functional

SIZES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class IBN(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.IN = torch.nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = torch.nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x):
        n, bn = len(self.IN.weight), self.BN
        by_image = F.instance_norm(x[:, :n], weight=self.IN.weight, bias=self.IN.bias, eps=1e-5)
        over_batch = F.batch_norm(
            x[:, n:], bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5
        )
        return torch.cat([by_image, over_batch], 1)


class Block(torch.nn.Module):
    def __init__(self, inside, width, stride, bottleneck, ibn):
        super().__init__()
        conv, norm = functools.partial(torch.nn.Conv2d, bias=False), torch.nn.BatchNorm2d
        out = width * (4 if bottleneck else 1)
        first = (1, 1, 0) if bottleneck else (3, stride, 1)
        self.conv1 = conv(inside, width, *first)
        self.bn1 = IBN(width) if ibn else norm(width)
        self.conv2 = conv(width, width, 3, stride if bottleneck else 1, 1)
        self.bn2 = norm(width)
        if bottleneck:
            self.conv3, self.bn3 = conv(width, out, 1), norm(out)
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = torch.nn.Sequential(conv(inside, out, 1, stride), norm(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(torch.nn.Module):
    """Torchvision's layout and names; the last stride is 1."""

    def __init__(self, sizes, bottleneck, *, ibn=False, classes=None):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        inside = 64
        for i, (size, stride) in enumerate(zip(sizes, (1, 2, 2, 1), strict=True)):
            blocks = []
            for j in range(size):
                width = 64 * 2**i
                blocks.append(Block(inside, width, 1 if j else stride, bottleneck, ibn and i < 3))
                inside = width * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", torch.nn.Sequential(*blocks))
        if classes:
            self.fc = torch.nn.Linear(inside, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def torch_resnet(sizes, bottleneck, dtype=torch.float32, **options):
    """A network with random affine parameters and running statistics."""
    torch.manual_seed(0)
    net = TorchResNet(sizes, bottleneck, **options).to(dtype).eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_mean") or name.endswith("bias"):
                value.normal_(0, 0.2)
            elif name.endswith("running_var") or ("conv" not in name and value.ndim == 1):
                value.uniform_(0.5, 1.5)
    return net


@functools.cache
def abstract(backbone, **options):
    model = PGFL(num_identities=10, backbone=backbone, **options)
    stride = 256 // BACKBONES[backbone].map_shape(256, 256)[0]
    size = (4 * stride, 2 * stride)
    arguments = (jnp.zeros((2, *size, 3)), jnp.ones((2, 4, 2, 8)), jnp.ones((2, 8)))
    init = lambda: nn.unbox(model.init(jax.random.key(0), *arguments, train=True))  # noqa: E731
    shapes = jax.eval_shape(init)
    return {name: shapes[name] for name in ("params", "batch_stats")}


def random_variables(backbone, dtype=np.float32, **options):
    """Random arrays; the classifiers' padding columns are 0, as always."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        value = rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        if any("classifier" in str(key) for key in path):
            value[:, 10:] = 0
        return value

    return jax.tree_util.tree_map_with_path(draw, abstract(backbone, **options))


def neck(prefix, channels, bias=0.0):
    rng = np.random.default_rng(2)
    draw = lambda: torch.tensor(rng.uniform(0.5, 1.5, channels), dtype=torch.float32)  # noqa: E731
    return {
        f"{prefix}weight": draw(),
        f"{prefix}bias": torch.full((channels,), bias),
        f"{prefix}running_mean": draw(),
        f"{prefix}running_var": draw(),
        f"{prefix}num_batches_tracked": torch.tensor(3),
    }


@functools.cache
def resnet18():
    return torch_resnet(SIZES["resnet18"], False).state_dict()


@functools.cache
def constant_resnet18():
    """Another constant in every array; each shares one value, so that files are small."""
    return {
        name: torch.tensor(0.5 + i, dtype=x.dtype).expand(x.shape)
        for i, (name, x) in enumerate(resnet18().items())
    }


def prefixed(prefix, state_dict):
    return {f"{prefix}{name}": value for name, value in state_dict.items()}


@pytest.mark.parametrize(
    ("block", "ibn_stages"), [(BasicBlock, 0), (Bottleneck, 0), (Bottleneck, 3)]
)
def test_features_equal_pytorchs_in_double_precision(block, ibn_stages, tmp_path):
    """The stem, strides, and blocks with and without a projection shortcut."""
    sizes = (2, 1, 1, 1)
    net = torch_resnet(sizes, block is Bottleneck, torch.float64, ibn=bool(ibn_stages), classes=7)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = ResNet(block, sizes, ibn_stages=ibn_stages)
    images = np.random.default_rng(0).normal(size=(2, 64, 32, 3))
    abstract_images = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    init = functools.partial(backbone.init, train=True)
    shapes = jax.eval_shape(init, jax.random.key(0), abstract_images)
    trunk = {key: {"trunk": shapes[key]} for key in ("params", "batch_stats")}
    loaded, report = load_backbone(tmp_path / "net.pth", trunk)
    assert report.missing == {}
    assert set(report.left_over) == {"fc.weight", "fc.bias"}
    with torch.no_grad():
        expected = net(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    with jax.enable_x64(True):
        apply = jax.jit(lambda variables, x: backbone.apply(variables, x, train=False))
        features = np.asarray(apply({key: loaded[key]["trunk"] for key in loaded}, images))
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, expected, rtol=1e-10, atol=1e-10 * expected.max())


SCHEMES = {
    "torchvision": lambda: (
        constant_resnet18() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    ),
    "torchreid": lambda: (
        constant_resnet18()
        | {"fc.0.weight": torch.zeros(512, 512), "classifier.weight": torch.zeros(751, 512)}
    ),
    "fast-reid": lambda: (
        prefixed("backbone.", constant_resnet18())
        | neck("heads.bottleneck.0.", 512)
        | {"heads.weight": torch.zeros(751, 512), "pixel_mean": torch.zeros(1, 3, 1, 1)}
    ),
    "older fast-reid": lambda: (
        prefixed("backbone.", constant_resnet18())
        | neck("heads.bnneck.", 512)
        | {"heads.classifier.weight": torch.zeros(751, 512), "heads.pool_layer.p": torch.ones(1)}
    ),
    "strong-baseline": lambda: (
        prefixed("base.", constant_resnet18())
        | neck("bottleneck.", 512)
        | {"classifier.weight": torch.zeros(751, 512)}
    ),
    "our own": lambda: (
        prefixed("trunk.", constant_resnet18())
        | neck("main_neck.", 512)
        | {"main_classifier.weight": torch.zeros(751, 512)}
    ),
}
WRAPPERS = {
    "bare": lambda x: x,
    "DataParallel": lambda x: {"state_dict": prefixed("module.", x), "epoch": 3},
    "compiled": lambda x: {
        "model": prefixed("module._orig_mod.", x),
        "optimizer": {"state": {0: {"step": torch.zeros(())}}},
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_naming_scheme_fills_the_backbone(scheme, wrapper, tmp_path):
    content = SCHEMES[scheme]()
    torch.save(WRAPPERS[wrapper](content), tmp_path / "net.pth.tar")
    before = abstract("resnet18", pooling="gem")
    loaded, report = load_backbone(tmp_path / "net.pth.tar", before)
    assert report.missing == {}
    arrays = {name for name in content if not name.endswith("num_batches_tracked")}
    assert set(report.used) | set(report.left_over) == arrays
    assert all("classifier" in n or n.startswith(("fc.", "heads.weight", "pixel_"))
               for n in report.left_over)  # fmt: skip
    # Every array of the trunk is the one of its name.
    trunk = {"params": loaded["params"]["trunk"], "batch_stats": loaded["batch_stats"]["trunk"]}
    arrays = to_state_dict({name: {"trunk": tree} for name, tree in trunk.items()}, 10)
    expected = prefixed("trunk.", constant_resnet18())
    assert arrays.keys() == expected.keys()
    for name, value in arrays.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    has_neck = any("neck" in name for name in content)
    if has_neck:
        kept = {name.rsplit(".", 1)[1]: x for name, x in content.items() if "neck" in name}
        np.testing.assert_array_equal(loaded["params"]["main_neck"]["scale"], kept["weight"])
        stats = loaded["batch_stats"]["main_neck"]
        np.testing.assert_array_equal(stats["mean"], kept["running_mean"])
        np.testing.assert_array_equal(stats["var"], kept["running_var"])
    untouched = ["main_classifier", "foreground_neck"] + ([] if has_neck else ["main_neck"])
    for name in untouched:
        a, b = loaded["params"][name], before["params"][name]
        assert all(a[leaf] is b[leaf] for leaf in b)
    if "older" in scheme:
        assert loaded["params"]["main_pooling"]["power"] == 1.0


def other_resnet18():
    """The constants of ``constant_resnet18``, each 1000 more."""
    return {name: x + 1000 for name, x in constant_resnet18().items()}


def side_by_side(ours, theirs):
    return lambda: prefixed(ours, constant_resnet18()) | prefixed(theirs, other_resnet18())


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"state_dict": side_by_side("module.encoder_q.", "module.encoder_k.")()},
        lambda: {"state_dict": side_by_side("module.base_encoder.", "module.momentum_encoder.")()},
        side_by_side("online_encoder.net.", "target_encoder.net."),
        side_by_side("backbone.", "backbone_momentum."),
        lambda: prefixed("backbone_appearance_feature_extractor.", constant_resnet18()),
        lambda: prefixed("module.encoder_k.", constant_resnet18()),
        lambda: {"teacher": prefixed("module.backbone.", constant_resnet18()), "epoch": 100},
        lambda: (
            prefixed("a.", constant_resnet18())
            | {"b.layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
        ),
    ],
    ids=["MoCo v2", "MoCo v3", "BYOL", "momentum", "long", "one", "nested", "incomplete"],
)
def test_the_trunk_is_found_under_any_prefix(content, tmp_path):
    torch.save(content(), tmp_path / "net.pth")
    loaded, report = load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    arrays = [name for name in constant_resnet18() if not name.endswith("num_batches_tracked")]
    assert report.missing == {} and len(report.used) == len(arrays)
    value = float(constant_resnet18()["layer4.1.bn2.weight"][0])
    assert (loaded["params"]["trunk"]["layer4_1"]["bn2"]["scale"] == value).all()
    value = float(constant_resnet18()["conv1.weight"].flatten()[0])
    assert (loaded["params"]["trunk"]["conv1"]["kernel"] == value).all()


def twos():
    """A state dict of twos, as DataParallel names its arrays."""
    return {f"module.{name}": x * 0 + 2 for name, x in constant_resnet18().items()}


@pytest.mark.parametrize(
    ("taken", "others", "named"),
    [
        ("state_dict", lambda: {"state_dict_ema": twos()}, "state_dict_ema"),
        ("model", lambda: {"model_ema": {"module": twos()}, "epoch": 3}, "model_ema"),
        ("state_dict", lambda: {"model": twos(), "teacher": twos()}, "model, teacher"),
        ("model", lambda: {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, ""),
    ],
)
def test_the_report_says_which_of_several_state_dicts_was_read(taken, others, named, tmp_path):
    torch.save({**others(), taken: constant_resnet18()}, tmp_path / "net.pth")
    loaded, report = load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    expected = constant_resnet18()["bn1.weight"].numpy()
    np.testing.assert_array_equal(loaded["params"]["trunk"]["bn1"]["scale"], expected)
    line = f"; {taken} was read, not {named} (docs/pretrained.md says how to take it)"
    assert str(report).endswith(line) if named else "was read" not in str(report)


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/40", "checkpoints/40/default"])
def test_a_run_as_weights_is_an_error_that_says_what_to_do(inside, tmp_path):
    (tmp_path / "checkpoints/40/default").mkdir(parents=True)
    (tmp_path / "config.json").touch()
    with pytest.raises(PretrainedError) as error:
        load_backbone(tmp_path / inside, abstract("resnet18"))
    assert str(error.value) == (
        f"{tmp_path / inside}: belongs to the run {tmp_path}, whose checkpoints are not read here; "
        "write its weights to a file, as the end of docs/pretrained.md does, and give that"
    )


def test_a_neck_beside_a_prefixed_trunk_is_taken(tmp_path):
    content = prefixed("backbone.", constant_resnet18()) | neck("heads.bottleneck.0.", 512)
    torch.save({"net": prefixed("student.", content)}, tmp_path / "net.pth")
    loaded, report = load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    assert report.missing == report.left_over == {}
    scale = content["heads.bottleneck.0.weight"]
    np.testing.assert_array_equal(loaded["params"]["main_neck"]["scale"], scale)


@pytest.mark.parametrize(
    ("content", "choices"),
    [
        (side_by_side("student.", "teacher."), "'student.', 'teacher.'"),
        (
            lambda: {
                "student": prefixed("module.backbone.", constant_resnet18()),
                "teacher": prefixed("backbone.", other_resnet18()),
            },
            "'student.module.backbone.', 'teacher.backbone.'",
        ),
    ],
)
def test_two_trunks_are_refused_by_name(content, choices, tmp_path):
    torch.save(content(), tmp_path / "net.pth")
    with pytest.raises(PretrainedError) as error:
        load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    assert str(error.value) == (
        f"{tmp_path / 'net.pth'}: holds 2 trunks, under {choices}; save the one you want alone "
        "(docs/pretrained.md)"
    )


def test_values_that_are_not_finite_are_named(tmp_path):
    content = prefixed("base.", constant_resnet18())
    content["base.layer2.0.conv1.weight"] = content["base.layer2.0.conv1.weight"].clone()
    content["base.layer2.0.conv1.weight"][3, 1, 0, 2] = torch.nan
    path = tmp_path / "net.pth"
    torch.save(content | {"classifier.weight": torch.full((2, 2), torch.nan)}, path)
    with pytest.raises(PretrainedError) as error:
        load_backbone(path, abstract("resnet18"))
    # Of the arrays that are used, which the classifier is not.
    name = "base.layer2.0.conv1.weight"
    assert str(error.value) == f"{path}: {name} has values that are not finite in float32"


WEIGHT, VARIANCE = "layer1.0.conv1.weight", "layer1.0.bn1.running_var"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *(
            (
                WEIGHT,
                torch.ones((), dtype=dtype),
                f"is of type {text}; give the weights as floating-point numbers",
            )
            for dtype, text in [
                (torch.int8, "int8"),
                (torch.uint8, "uint8"),
                (torch.bool, "bool"),
                (torch.complex64, "complex64"),
            ]
        ),
        (
            WEIGHT,
            torch.tensor(1e300, dtype=torch.float64),
            "has values that are not finite in float32",
        ),
        (VARIANCE, torch.tensor(-0.5), "has negative variances; the file is damaged"),
        (VARIANCE, torch.tensor(0.0), "is 0 throughout; the file was never filled in"),
        (WEIGHT, torch.tensor(0.0), "is 0 throughout; the file was never filled in"),
    ],
)
def test_what_cannot_be_weights_is_named_with_its_array(name, value, problem, tmp_path):
    content, path = constant_resnet18(), tmp_path / "net.pth"
    torch.save(content | {name: value.expand(content[name].shape)}, path)
    with pytest.raises(PretrainedError) as error:
        load_backbone(path, abstract("resnet18"))
    assert str(error.value) == f"{path}: {name} {problem}"


@pytest.mark.parametrize("written", [".safetensors", ".pth"])
@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".safetensors", ".pth", ".bin"])
def test_a_file_is_recognised_by_its_content(written, suffix, tmp_path):
    path, array = tmp_path / f"net{written}", np.arange(3, dtype=np.float32)
    save_state_dict(path, {"w": array})
    read = read_state_dict(path.rename(tmp_path / f"renamed{suffix}"))
    assert [*read] == ["w"]
    np.testing.assert_array_equal(read["w"], array)


def test_a_neck_bias_that_cannot_be_kept_is_reported(tmp_path):
    content = prefixed("base.", constant_resnet18()) | neck("bottleneck.", 512, bias=0.5)
    torch.save(content, tmp_path / "net.pth")
    _, report = load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    assert report.left_over == {"bottleneck.bias": (512,)}
    assert "bottleneck.weight" in report.used
    assert "1 left over (bottleneck.bias (512,), not 0, and the BNNeck has no bias)" in str(report)
    content = prefixed("base.", constant_resnet18()) | neck("bottleneck.", 256)
    torch.save(content, tmp_path / "net.pth")
    _, report = load_backbone(tmp_path / "net.pth", abstract("resnet18"))
    assert report.reasons["bottleneck.weight"] == "the network has (512,)"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_becomes_single(suffix, tmp_path):
    half = {name: value.bfloat16() if value.is_floating_point() else value
            for name, value in itertools.islice(resnet18().items(), 6)}  # fmt: skip
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(half, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(half, path)
    read = read_state_dict(path)["conv1.weight"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, half["conv1.weight"].float().numpy())


@pytest.mark.parametrize(
    ("backbone", "options", "dtype"),
    [
        ("resnet8", {"pooling": "gem"}, np.float32),
        ("resnet8", {"pooling": "gem"}, np.float64),
        ("resnet8", {"pooling": "parts"}, np.float32),
        ("resnet8", {"pooling": "context"}, np.float32),
        ("resnet18", {"interaction": "shared_classifier"}, np.float32),
        ("resnet50_ibn_a", {}, np.float32),
    ],
)
def test_the_whole_network_goes_to_pytorch_and_back(backbone, options, dtype):
    variables = random_variables(backbone, dtype, **options)
    state_dict = to_state_dict(variables, 10)
    assert state_dict["main_classifier.weight"].shape == (10, BACKBONES[backbone].channels)
    assert state_dict["trunk.bn1.num_batches_tracked"].dtype == np.int64
    if options.get("pooling") == "parts":
        maps, hidden = (variables["params"]["main_pooling"][name] for name in ("maps", "hidden"))
        kernels = {"maps": maps["kernel"][None, None], "hidden": hidden["kernel"]}
        for name, kernel in kernels.items():
            stored = state_dict[f"main_pooling.{name}.weight"]
            np.testing.assert_array_equal(stored, np.einsum("hwio->oihw", kernel))
        assert state_dict["main_pooling.maps.bias"].shape == (8,)
    back, report = from_state_dict(state_dict, abstract(backbone, **options), 10)
    assert report.missing == report.left_over == {}
    assert_equal(flatten_dict(back, sep="/"), flatten_dict(variables, sep="/"))
    assert_equal(to_state_dict(back, 10), state_dict)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_is_read_as_it_was_written(suffix, dtype, tmp_path):
    state_dict = to_state_dict(random_variables("resnet8", dtype, pooling="gem"), 10)
    path = tmp_path / f"net{suffix}"
    save_state_dict(path, state_dict)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_equal(read_state_dict(path), state_dict)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(ours[name], theirs[name], strict=True, err_msg=name)


def test_the_patch_stem_is_a_4x4_convolution():
    state_dict = to_state_dict(random_variables("resnet8"), 10)
    images = np.random.default_rng(0).normal(size=(2, 16, 8, 3)).astype(np.float32)
    kernel = torch.tensor(state_dict["trunk.conv1.weight"])
    assert kernel.shape == (48, 3, 4, 4)
    expected = F.conv2d(torch.tensor(images).permute(0, 3, 1, 2), kernel, stride=4)
    dense = random_variables("resnet8")["params"]["trunk"]["conv1"]["dense"]["kernel"]
    patches = images.reshape(2, 4, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 4, 2, 48)
    np.testing.assert_allclose(patches @ dense, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_an_absent_branch_is_missing_and_a_wrong_shape_is_an_error():
    variables = random_variables("resnet8")
    state_dict = to_state_dict(variables, 10)
    without = {name: x for name, x in state_dict.items() if not name.startswith("parts_")}
    back, report = from_state_dict(without, variables, 10)
    assert set(report.missing) == {
        "parts_neck.weight", "parts_neck.running_mean", "parts_neck.running_var",
        "parts_classifier.weight",
    }  # fmt: skip
    assert back["params"]["parts_neck"]["scale"] is variables["params"]["parts_neck"]["scale"]
    # 100 identities are padded to as many columns as 10.
    for identities in (100, 200):
        wrong = state_dict | {"main_classifier.weight": np.zeros((identities, 192), np.float32)}
        message = rf"^the state dict: main_classifier.weight is \({identities}, .* has \(10, 192\)"
        with pytest.raises(PretrainedError, match=message):
            from_state_dict(wrong, variables, 10)


@pytest.mark.parametrize("identities", [0, 200])
def test_a_wrong_number_of_identities_is_an_error(identities):
    with pytest.raises(ValueError, match=f"has 128 columns, too many or few for {identities}"):
        to_state_dict(random_variables("resnet8"), identities)


def test_numpy_scalars_beside_the_state_dict_are_allowed(tmp_path):
    """Torchreid's checkpoints store their Rank-1 like this."""
    content = {"state_dict": prefixed("module.", constant_resnet18()), "epoch": 60}
    content |= {"rank1": np.float32(0.9), "map": np.float64(0.8), "best": np.bool_(True)}
    torch.save(content, tmp_path / "model.pth.tar-60")
    _, report = load_backbone(tmp_path / "model.pth.tar-60", abstract("resnet18"))
    assert report.missing == report.left_over == {}


def test_parameters_are_read_like_tensors(tmp_path):
    some = dict(itertools.islice(resnet18().items(), 6))
    parameters = {name: torch.nn.Parameter(x) if x.is_floating_point() else x
                  for name, x in some.items()}  # fmt: skip
    torch.save(parameters, tmp_path / "net.pth")
    read = read_state_dict(tmp_path / "net.pth")
    assert_equal(read, {name: x.numpy() for name, x in some.items()})


class Thing:
    pass


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n"
PAGE = "\ufeff\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>"


def _truncated(path):
    torch.save(dict(itertools.islice(resnet18().items(), 12)), path)
    path.write_bytes(path.read_bytes()[:-100_000])


def _truncated_safetensors(path):
    some = itertools.islice(resnet18().items(), 12)
    save_state_dict(path, {name: x.numpy() for name, x in some})
    path.write_bytes(path.read_bytes()[:-100_000])


def _eight_bits(path):
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")


def _pickled(content):
    return lambda path: path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda path: None, "no such file"),
        ("a.pth", _truncated, "damaged, or not written by torch.save"),
        ("a.safetensors", _truncated_safetensors, "damaged, or not a safetensors file"),
        ("a.safetensors", lambda path: path.write_text("no"), "damaged, or not a safetensors file"),
        ("a.pth", lambda path: path.write_text("not found"), "damaged, or not written by torch.s"),
        ("a.pth", lambda path: path.write_bytes(b""), "damaged, or not written by torch.save"),
        (
            "a.pth",
            lambda path: path.write_text(POINTER),
            "a Git LFS pointer, not the file itself; ",
        ),
        ("a.safetensors", lambda path: path.write_text(POINTER), "run `git lfs pull` in its repo"),
        ("a.pth", lambda path: path.write_text(PAGE), "a saved web page, not the file itself; use"),
        ("a.safetensors", lambda path: path.write_text("<html>"), "a saved web page, not the fil"),
        ("a.pth", _pickled(os.system), "damaged, or not written by torch.save"),
        ("a.pth", lambda path: torch.save(Thing(), path), "holds more than arrays ("),
        (
            "a.pth",
            lambda path: torch.save({"state_dict": constant_resnet18(), "config": Thing()}, path),
            "Thing), and loading that could run any program; if you trust",
        ),
        (
            "a.pth",
            lambda path: torch.save({"conv1.weight": torch.zeros(2, 2).to_sparse()}, path),
            "NumPy cannot represent conv1.weight (",
        ),
        (
            "a.pth",
            lambda path: torch.save(
                {"bn1.bias": torch.zeros(2), "module.bn1.bias": torch.ones(2)}, path
            ),
            "holds bn1.bias twice, once as module.bn1.bias",
        ),
        (
            "a.pth",
            lambda path: torch.save({"conv1.weight": torch.zeros(2, device="meta")}, path),
            "NumPy cannot represent conv1.weight (Cannot copy out of meta tensor; no data!)",
        ),
        ("a.pth", lambda path: path.mkdir(), "is a folder; give a file"),
        ("a.safetensors", _eight_bits, "holds a type that NumPy lacks (module 'numpy' has no"),
        ("a.pth", lambda path: torch.save({"epoch": 3}, path), "holds no state dict, only epoch"),
        ("a.pth", lambda path: torch.save([1], path), "holds no state dict, only list"),
        (
            "a.pth",
            lambda path: torch.save({"conv1.conv.weight": torch.zeros(3)}, path),
            "not a ResNet in a known naming scheme (docs/pretrained.md); its first arrays are con",
        ),
    ],
)
def test_an_unusable_file_gives_a_one_line_error(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(PretrainedError) as error:
        load_backbone(tmp_path / name, abstract("resnet18"))
    text = str(error.value)
    assert text.startswith(f"{tmp_path / name}: ") and message in text and "\n" not in text


def _shapes(sizes, **options):
    with torch.device("meta"):
        net = TorchResNet(sizes, True, **options)
    return {name: torch.ones(()).expand(x.shape) for name, x in net.state_dict().items()}


def _changed():
    return constant_resnet18() | {"layer3.1.conv2.weight": torch.zeros(256, 128, 3, 3)}


@pytest.mark.parametrize("backbone", ["resnet50", "resnet50_ibn_a"])
def test_every_array_of_a_resnet50_is_taken(backbone, tmp_path):
    content = _shapes(SIZES["resnet50"], ibn="ibn" in backbone, classes=7)
    torch.save(content, tmp_path / "net.pth")
    _, report = load_backbone(tmp_path / "net.pth", abstract(backbone))
    assert report.missing == {}
    assert set(report.left_over) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("backbone", "content", "message"),
    [
        ("resnet50", lambda: _shapes(SIZES["resnet101"]),
         "in the file layer3.6.bn1.bias is (256,), in the network missing; it seems to hold a "
         "ResNet-101, not a ResNet-50"),
        ("resnet50", constant_resnet18, "it seems to hold a ResNet-18, not a ResNet-50"),
        ("resnet50", lambda: _shapes(SIZES["resnet50"], ibn=True),
         "in the file layer1.0.bn1.BN.bias is (32,), in the network missing; it seems to hold a "
         "ResNet-50-IBN-a, not a ResNet-50"),
        ("resnet50_ibn_a", lambda: _shapes(SIZES["resnet50"]), "not a ResNet-50-IBN-a"),
        ("resnet18", _changed, "layer3.1.conv2.weight is (256, 128, 3, 3), in the network (256, 2"),
        ("resnet18", lambda: constant_resnet18() | {"NL_2.0.g.weight": torch.zeros(1, 128, 1, 1)},
         "NL_2.0.g.weight is (1, 128, 1, 1), in the network missing; it seems to hold a ResNet-18 "
         "with non-local blocks, not a ResNet-18"),
        ("resnet8", constant_resnet18, "a ResNet-18, not a ResNet of 1+1+1 basic blocks"),
    ],
)  # fmt: skip
def test_another_architecture_gives_a_one_line_error(backbone, content, message, tmp_path):
    # Only shapes matter. Tensors expanded from one value keep the file small.
    torch.save(content(), tmp_path / "net.pth")
    with pytest.raises(PretrainedError) as error:
        load_backbone(tmp_path / "net.pth", abstract(backbone))
    text = str(error.value)
    assert message in text and "\n" not in text
    assert text.startswith(f"{tmp_path / 'net.pth'}: not the architecture of config.model.backbon")


def test_without_pytorch_only_safetensors_can_be_read(tmp_path, monkeypatch):
    state_dict = to_state_dict(random_variables("resnet8"), 10)
    save_state_dict(tmp_path / "net.safetensors", state_dict)
    save_state_dict(tmp_path / "net.pth", state_dict)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_equal(read_state_dict(tmp_path / "net.safetensors"), state_dict)
    with pytest.raises(PretrainedError, match=r"PyTorch is needed .*\[parity\]"):
        read_state_dict(tmp_path / "net.pth")
    with pytest.raises(PretrainedError, match=r"must end in \.safetensors, \.pth or \.pt"):
        save_state_dict(tmp_path / "net.bin", state_dict)


def test_a_sharded_state_and_its_average_start_from_the_file(tmp_path, tiny_config):
    variables = random_variables("resnet8")
    path = tmp_path / "net.safetensors"
    save_state_dict(path, to_state_dict(variables, 10))
    config = tiny_config(**{"model.pretrained": str(path), "optim.ema_decay": 0.9})
    experiment = Experiment.create(config, num_identities=200, num_images=128)
    plain = Experiment.create(tiny_config(), num_identities=200, num_images=128)
    mesh = make_mesh(jax.devices()[:2], model=2)
    state, drawn = experiment.init_state(mesh), plain.init_state(mesh)
    for start_of in (state, state.average):
        for name in ("trunk", "main_neck"):
            ours = start_of.params[name], start_of.batch_stats[name]
            theirs = variables["params"][name], variables["batch_stats"][name]
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    kernel = state.params["main_classifier"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "model")
    np.testing.assert_array_equal(kernel, drawn.params["main_classifier"]["kernel"])


def test_other_pictures_than_the_weights_know_are_a_warning(tiny_config, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    variables = random_variables("resnet8", np.float32)
    trunk = {
        name: value
        for name, value in to_state_dict(variables, 10).items()
        if name.startswith("trunk.")
    }
    pixels = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
    arrays = {name: np.float32(value).reshape(3, 1, 1) for name, value in pixels.items()}
    save_state_dict(path, trunk | arrays)
    options = {"model.pretrained": str(path), "model.backbone": "resnet8"}

    begin(tiny_config(**options), tmp_path / "same", evaluates=False)
    assert capsys.readouterr().err == ""
    options |= {"data.mean": (0.5, 0.5, 0.5), "data.std": (0.5, 0.5, 0.5)}
    begin(tiny_config(**options), tmp_path / "other", evaluates=False)
    assert capsys.readouterr().err == (
        f"warning: {path}: trained on pictures normalised by mean (0.485, 0.456, 0.406) and "
        "std (0.229, 0.224, 0.225), by its pixel_mean and pixel_std; this run has config.data.mean "
        "= (0.5, 0.5, 0.5) and config.data.std = (0.5, 0.5, 0.5) (docs/pretrained.md)\n"
    )


@pytest.mark.usefixtures("small_network")
def test_a_run_needs_the_file_only_to_start(tiny_config, tmp_path, capsys):
    devices = jax.devices()[:1]
    config = tiny_config(seed=1, **{"model.pooling": "gap"})
    drawn = Experiment.create(config, num_identities=16, num_images=128)
    start = jax.device_get(drawn.init_state(make_mesh(devices)))
    path, workdir = tmp_path / "net.safetensors", tmp_path / "run"
    variables = {"params": start.params, "batch_stats": start.batch_stats}
    save_state_dict(path, to_state_dict(variables, 16))
    config = tiny_config(
        **{
            "model.pretrained": str(path),
            "model.pose_branches": False,
            "model.pooling": "gap",
            "train.epochs": 0.125,  # one step
            "optim.warmup_epochs": 0.0,
        }
    )
    data = training_data(config), evaluation_data(config)
    pretrained = begin(config, workdir, evaluates=False)
    train(config, workdir, *data, pretrained=pretrained, devices=devices)
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: ") and "0 missing; " in shown.splitlines()[0]
    assert len(json.loads((workdir / "manifest.json").read_text())["pretrained_sha256"]) == 64
    stored = leaves(workdir, 1)
    # One step moves a running statistic by a tenth of the way.
    before = start.batch_stats["trunk"]["bn1"]["var"]
    assert (stored["batch_stats/trunk/bn1/var"] >= 0.9 * before).all()
    kernel = start.params["trunk"]["layer1_0"]["conv1"]["kernel"]
    assert 0 < abs(stored["params/trunk/layer1_0/conv1/kernel"] - kernel).max() < 1e-2
    path.unlink()
    assert begin(config, workdir, evaluates=False) is None
    train(config, workdir, *data, devices=devices)
    assert "is finished" in capsys.readouterr().out


# ml_collections loads the configuration file with a deprecated function.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_missing_file_is_an_error_before_data_are_prepared(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    argv = ["main.py", "--config=configs/synthetic_tiny.py", f"--workdir={tmp_path / 'new'}"]
    argv += [f"--config.data.data_dir={tmp_path / 'none'}", f"--config.model.pretrained={path}"]
    monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
    with flagsaver.flagsaver(), pytest.raises(PretrainedError, match=f"^{path}: no such file$"):
        main.main(parse_flags(argv))
    assert not (tmp_path / "none").exists()
