"""Weights of ConvNeXt, in files with the key names that their authors' code writes."""

import functools
import re

import numpy as np
import pytest

from pgfl_jax.models.backbones import ConvNeXt
from pgfl_jax.pretrained import to_state_dict
from tests.weight_files import (
    assert_one_line,
    dense,
    drawn,
    load,
    narrow_networks,
    norm,
)

WIDTH, DEPTHS = 8, (3, 3, 9, 3)


@pytest.fixture(autouse=True, scope="module")
def narrow():
    with narrow_networks({"convnext_tiny": ConvNeXt(WIDTH, DEPTHS)}):
        yield


@functools.cache
def timm(*, depths=DEPTHS, width=WIDTH):
    """What ``timm``'s ConvNeXt saves."""
    shapes = {"stem.0.weight": (width, 3, 4, 4), "stem.0.bias": (width,)} | norm("stem.1", width)
    for i, depth in enumerate(depths):
        channels = width * 2**i
        if i:
            shapes |= norm(f"stages.{i}.downsample.0", channels // 2)
            shapes[f"stages.{i}.downsample.1.weight"] = channels, channels // 2, 2, 2
            shapes[f"stages.{i}.downsample.1.bias"] = (channels,)
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}."
            shapes |= {f"{block}conv_dw.weight": (channels, 1, 7, 7), f"{block}gamma": (channels,)}
            shapes |= {f"{block}conv_dw.bias": (channels,)} | norm(f"{block}norm", channels)
            shapes |= dense(f"{block}mlp.fc1", 4 * channels, channels)
            shapes |= dense(f"{block}mlp.fc2", channels, 4 * channels)
    return drawn(shapes)


def _renamed(changes):
    arrays = {}
    for name, value in timm().items():
        for pattern, replacement in changes.items():
            name = re.sub(pattern, replacement, name)
        arrays[name] = value
    return arrays


def in_torchvision():
    arrays = _renamed(
        {
            r"^stem\.": "features.0.",
            r"^stages\.(\d)\.downsample": lambda match: f"features.{2 * int(match[1])}",
            r"^stages\.(\d)\.blocks": lambda match: f"features.{2 * int(match[1]) + 1}",
            r"(\d\.\d)\.conv_dw": r"\1.block.0",
            r"(\d\.\d)\.norm": r"\1.block.2",
            r"(\d\.\d)\.mlp\.fc1": r"\1.block.3",
            r"(\d\.\d)\.mlp\.fc2": r"\1.block.5",
            r"gamma": "layer_scale",
        }
    )
    for name in [name for name in arrays if name.endswith("layer_scale")]:
        arrays[name] = arrays[name].reshape(-1, 1, 1)
    return arrays | {"classifier.0.weight": np.ones(8 * WIDTH, np.float32)}


def authors():
    """Facebook's."""
    names = {
        r"^stem": "downsample_layers.0", r"^stages\.(\d)\.downsample": r"downsample_layers.\1",
        r"^stages\.(\d)\.blocks": r"stages.\1", "conv_dw": "dwconv", r"mlp\.fc": "pwconv",
    }  # fmt: skip
    return _renamed(names) | {"norm.weight": np.ones(8 * WIDTH, np.float32)}


SCHEMES = {
    "timm": lambda: timm() | {"head.norm.weight": np.ones(8 * WIDTH, np.float32)},
    "torchvision": in_torchvision,
    "Facebook": authors,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_fills_the_whole_trunk(scheme, tmp_path):
    variables, report = load(SCHEMES[scheme](), tmp_path / "w.safetensors", "convnext_tiny")
    assert dict(report.missing) == {} and len(report.left_over) == 1
    found = to_state_dict({"params": {"trunk": variables["params"]["trunk"]}}, 1)
    assert found.keys() == {f"trunk.{name}" for name in timm()}
    for name, value in timm().items():
        np.testing.assert_array_equal(found[f"trunk.{name}"], value, err_msg=name)


WRONG = {
    "another depth": (
        timm(depths=(3, 3, 27, 3)), r"a ConvNeXt of 3\+3\+27\+3 blocks and 8 channels, not a ConvN",
    ),
    "another width": (timm(width=16), "a ConvNeXt of .* and 16 channels, not a ConvNeXt of"),
    "version 2": (
        {name: x for name, x in timm().items() if not name.endswith("gamma")},
        r"stages\.0\.blocks\.0\.gamma is missing, in the network \(8,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_nearest_wrong_file_gives_one_line(name, tmp_path):
    arrays, message = WRONG[name]
    assert_one_line(arrays, "convnext_tiny", message, tmp_path / "w.safetensors")
