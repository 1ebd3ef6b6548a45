"""Weights of Swin transformers, in files with the key names that their authors' code writes."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.backbones import Swin
from pgfl_jax.models.backbones.swin import Merging
from pgfl_jax.pretrained import to_state_dict
from tests.weight_files import (
    assert_one_line,
    dense,
    drawn,
    load,
    narrow_networks,
    norm,
    prefixed,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH, DEPTHS = 8, (2, 2, 6, 2)
SMALL = {
    "swin_tiny": Swin(WIDTH, DEPTHS, head_width=4),
    "swin_tiny_solider": Swin(WIDTH, DEPTHS, head_width=4, solider=True),
}


@pytest.fixture(autouse=True, scope="module")
def narrow():
    with narrow_networks(SMALL):
        yield


@functools.cache
def timm(*, depths=DEPTHS, width=WIDTH, window=7):
    """What ``timm``'s SwinTransformer saves."""
    shapes = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}
    shapes |= norm("patch_embed.norm", width)
    for i, depth in enumerate(depths):
        channels = width * 2**i
        if i:
            shapes |= norm(f"layers.{i}.downsample.norm", 2 * channels)
            shapes[f"layers.{i}.downsample.reduction.weight"] = channels, 2 * channels
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            shapes |= norm(f"{block}norm1", channels) | norm(f"{block}norm2", channels)
            shapes |= dense(f"{block}attn.qkv", 3 * channels, channels)
            shapes |= dense(f"{block}attn.proj", channels, channels)
            shapes |= dense(f"{block}mlp.fc1", 4 * channels, channels)
            shapes |= dense(f"{block}mlp.fc2", channels, 4 * channels)
            table = f"{block}attn.relative_position_bias_table"
            shapes[table] = (2 * window - 1) ** 2, channels // 4
    return drawn(shapes | norm("norm", width * 2 ** (len(depths) - 1)))


def _renamed(*changes):
    """timm's arrays, with names changed by pairs of a pattern and a replacement, in turn."""
    arrays = {}
    for name, value in timm().items():
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        arrays[name] = value
    return arrays


def _stage_before(match):
    return f"layers.{int(match[1]) - 1}.downsample"


def authors():
    """Microsoft's: merging at the end of a stage, buffers, and a classifier."""
    arrays = _renamed((r"layers\.(\d)\.downsample", _stage_before))
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}."
            arrays[f"{block}attn.relative_position_index"] = np.zeros((49, 49), np.int64)
            if j % 2:
                arrays[f"{block}attn_mask"] = np.zeros((64, 49, 49), np.float32)
    return arrays | {"head.weight": np.ones((1000, 8 * WIDTH), np.float32)}


def in_torchvision():
    arrays = _renamed(
        (r"^patch_embed\.proj", "features.0.0"),
        (r"^patch_embed\.norm", "features.0.2"),
        (r"^layers\.(\d)\.downsample", lambda match: f"features.{2 * int(match[1])}"),
        (r"^layers\.(\d)\.blocks", lambda match: f"features.{2 * int(match[1]) + 1}"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    )
    index = {
        f"{name.removesuffix('bias_table')}index": np.zeros(49 * 49, np.int64)
        for name in arrays
        if name.endswith("bias_table")
    }
    return arrays | index | {"head.weight": np.ones((1000, 8 * WIDTH), np.float32)}


def mmdetection():
    """Also the names of SOLIDER's code: channels before rows and columns where cells merge."""
    arrays = _renamed(
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"layers\.(\d)\.downsample", _stage_before),
        (r"^layers", "stages"),
        (r"attn\.(qkv|proj|relative)", r"attn.w_msa.\1"),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"^norm", "norm3"),
    )
    for name in [name for name in arrays if ".downsample." in name]:
        by_cells = arrays[name].reshape(*arrays[name].shape[:-1], 2, 2, -1)  # columns, rows
        arrays[name] = np.moveaxis(by_cells, (-3, -2, -1), (-1, -2, -3)).reshape(arrays[name].shape)
    stages = {f"norm{i}": WIDTH * 2**i for i in range(3)}  # for detection
    return arrays | drawn(functools.reduce(dict.__or__, (norm(*x) for x in stages.items())))


@functools.cache
def semantic():
    shapes = {}
    for i, channels in enumerate((2 * WIDTH, 4 * WIDTH, 8 * WIDTH, 8 * WIDTH)):
        shapes |= dense(f"semantic_embed_w.{i}", channels, 2)
        shapes |= dense(f"semantic_embed_b.{i}", channels, 2)
    return drawn(shapes)


def fine_tuned_solider():
    neck = {"weight": 1, "bias": 0, "running_mean": 2, "running_var": 3}
    neck = {f"bottleneck.{k}": np.full(8 * WIDTH, v, np.float32) for k, v in neck.items()}
    classifier = {"classifier.weight": np.ones((751, 8 * WIDTH), np.float32)}
    return prefixed("base.", mmdetection() | semantic()) | neck | classifier


SCHEMES = {
    "timm": lambda: timm() | {"head.fc.weight": np.ones((1000, 8 * WIDTH), np.float32)},
    "Microsoft": authors,
    "torchvision": in_torchvision,
    "mmdetection": lambda: prefixed("backbone.", mmdetection()),
    "SOLIDER": lambda: (
        prefixed("backbone.", mmdetection() | semantic()) | {"head.last.weight_g": np.ones(3)}
    ),
    "SOLIDER, fine-tuned": fine_tuned_solider,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_fills_the_whole_trunk(scheme, tmp_path):
    solider = scheme.startswith("SOLIDER")
    backbone = "swin_tiny_solider" if solider else "swin_tiny"
    variables, report = load(SCHEMES[scheme](), tmp_path / "w.safetensors", backbone)
    assert dict(report.missing) == {}
    assert not any("layers" in name or "stages" in name for name in report.left_over)
    assert ("semantic layers merged at a control value of 0.2" in str(report)) == solider
    found = to_state_dict({"params": {"trunk": variables["params"]["trunk"]}}, 1)
    for name, value in timm().items():
        if not (solider and "downsample.reduction" in name):
            np.testing.assert_array_equal(found[f"trunk.{name}"], value, err_msg=name)


def test_the_neck_of_solider_is_taken(tmp_path):
    variables, _ = load(fine_tuned_solider(), tmp_path / "w.safetensors", "swin_tiny_solider")
    neck = variables["batch_stats"]["main_neck"]
    np.testing.assert_array_equal(neck["var"], np.full(8 * WIDTH, 3))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_merging_and_semantic_layers_compute_what_solider_does(stage, tmp_path):
    """Its order of operations, with PyTorch's ``unfold``, at the control value 0.2."""
    variables, _ = load(SCHEMES["SOLIDER"](), tmp_path / "w.safetensors", "swin_tiny_solider")
    arrays = {name: torch.from_numpy(x) for name, x in (mmdetection() | semantic()).items()}
    channels = WIDTH * 2 ** (stage - 1)
    x = torch.randn(2, channels, 6, 4, generator=torch.Generator().manual_seed(0))
    layer = f"stages.{stage - 1}.downsample."
    cells = F.unfold(x, 2, stride=2).mT
    cells = F.layer_norm(
        cells, (4 * channels,), arrays[f"{layer}norm.weight"], arrays[f"{layer}norm.bias"]
    )
    merged = F.linear(cells, arrays[f"{layer}reduction.weight"])
    control = torch.tensor([0.2, 0.8])
    scale, shift = (
        F.linear(control, *(arrays[f"semantic_embed_{x}.{stage - 1}.{k}"] for k in KINDS))
        for x in "wb"
    )
    expected = merged * F.softplus(scale) + shift
    params = variables["params"]["trunk"][f"layers_{stage}_downsample"]
    found = Merging(2, True, None).apply({"params": params}, jnp.asarray(x.permute(0, 2, 3, 1)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


KINDS = "weight", "bias"
WRONG = {
    "another depth": (
        timm(depths=(2, 2, 18, 2)), "swin_tiny",
        r"a Swin of 2\+2\+18\+2 blocks, 8 channels and .*, not a Swin of 2\+2\+6\+2 blocks, 8 ",
    ),
    "another width": (timm(width=12), "swin_tiny", "Swin of .* blocks, 12 channels and windows"),
    "larger windows": (timm(window=12), "swin_tiny", "channels and windows of 12x12 cells, not a"),
    "SOLIDER's for a plain network": (
        SCHEMES["SOLIDER"](), "swin_tiny", r"it seems to hold a Swin of SOLIDER of 2\+2",
    ),
    "a plain one for SOLIDER's": (
        timm(), "swin_tiny_solider", r"downsample\.reduction\.bias is missing, .* not a Swin of SO",
    ),
    "version 2": (
        timm() | {"layers.0.blocks.0.attn.logit_scale": np.ones(2, np.float32)}, "swin_tiny",
        r"in the file layers\.0\.blocks\.0\.attn\.logit_scale is \(2,\), in the network missing",
    ),
    "one for a ViT": (timm(), "vit_tiny", "not a ViT in a known naming .*; it holds a Swin"),
    "without the patches": (
        {k: v for k, v in timm().items() if "patch" not in k}, "swin_tiny",
        r"holds blocks of a Swin without patch_embed\.proj\.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_nearest_wrong_file_gives_one_line(name, tmp_path):
    assert_one_line(*WRONG[name], tmp_path / "w.safetensors")
