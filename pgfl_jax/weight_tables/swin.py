"""Swin transformers, named as in timm; the names of other code are respelled."""

import re
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from pgfl_jax.weight_tables.table import MapShape, Shapes, StateDict, Table

CONTROL = 0.2
"""How much SOLIDER's features are to mean parts rather than looks, in [0, 1].

Its authors take 0.2 for re-identification.
"""

# timm merges cells before a stage; the authors do so at the end of the one before it.
_AUTHORS = {rf"layers\.{i}\.downsample\.": f"layers.{i + 1}.downsample." for i in range(3)}
_TORCHVISION = {r"features\.0\.0\.": "patch_embed.proj.", r"features\.0\.2\.": "patch_embed.norm."}
_SOLIDER = {
    r"patch_embed\.projection\.": "patch_embed.proj.",
    r"norm3\.": "norm.",
}
for _i in range(4):
    _TORCHVISION |= {
        rf"features\.{2 * _i}\.(norm|reduction)\.": rf"layers.{_i}.downsample.\1.",
        rf"features\.{2 * _i + 1}\.(\d+)\.mlp\.0\.": rf"layers.{_i}.blocks.\1.mlp.fc1.",
        rf"features\.{2 * _i + 1}\.(\d+)\.mlp\.3\.": rf"layers.{_i}.blocks.\1.mlp.fc2.",
        rf"features\.{2 * _i + 1}\.(\d+)\.(attn|norm\d)\.": rf"layers.{_i}.blocks.\1.\2.",
    }
    _SOLIDER |= {
        rf"stages\.{_i}\.downsample\.": f"layers.{_i + 1}.unfolded.",
        rf"stages\.{_i}\.blocks\.(\d+)\.attn\.w_msa\.": rf"layers.{_i}.blocks.\1.attn.",
        rf"stages\.{_i}\.blocks\.(\d+)\.ffn\.layers\.0\.0\.": rf"layers.{_i}.blocks.\1.mlp.fc1.",
        rf"stages\.{_i}\.blocks\.(\d+)\.ffn\.layers\.1\.": rf"layers.{_i}.blocks.\1.mlp.fc2.",
        rf"stages\.{_i}\.blocks\.(\d+)\.(norm\d)\.": rf"layers.{_i}.blocks.\1.\2.",
        rf"semantic_embed_([wb])\.{_i}\.": rf"layers.{_i + 1}.semantic_\1.",
    }
# They follow from the sizes of windows and maps.
_BUFFERS = (".attn_mask", ".relative_position_index")


def _arrange(
    arrays: StateDict, wanted: Shapes, map_shape: MapShape, source: str
) -> tuple[StateDict, str]:
    """SOLIDER's merging layers in timm's order of channels, with its semantic layers inside."""
    del wanted, map_shape, source
    arrays = {name: array for name, array in arrays.items() if not name.endswith(_BUFFERS)}
    semantic = False
    for stage in range(1, 5):
        prefix, downsample = f"trunk.layers.{stage}.", f"trunk.layers.{stage}.downsample."
        for name in ("norm.weight", "norm.bias", "reduction.weight"):
            if (array := arrays.pop(f"{prefix}unfolded.{name}", None)) is not None:
                arrays[downsample + name] = _by_cells(array)
        if f"{prefix}semantic_w.weight" not in arrays:
            continue
        semantic = True
        scale, shift = (_fixed(arrays, f"{prefix}semantic_{kind}.") for kind in "wb")
        if downsample + "reduction.weight" in arrays:  # those of the last stage feed nothing
            factor = np.logaddexp(0, scale).astype(scale.dtype)  # softplus
            arrays[downsample + "reduction.weight"] *= factor[:, None]
            arrays[downsample + "reduction.bias"] = shift
    note = f"semantic layers merged at a control value of {CONTROL}" if semantic else ""
    return arrays, note


def _fixed(arrays: StateDict, prefix: str) -> Float[np.ndarray, " channels"]:
    """What a semantic layer gives at the control value; it leaves ``arrays``."""
    weight, bias = arrays.pop(prefix + "weight"), arrays.pop(prefix + "bias")
    return weight @ np.array([CONTROL, 1 - CONTROL], weight.dtype) + bias


def _by_cells(array: Float[np.ndarray, "*outputs inputs"]) -> Float[np.ndarray, "*outputs inputs"]:
    """``Unfold`` puts channels first, then rows, then columns; timm columns, rows, channels."""
    split = array.reshape(*array.shape[:-1], -1, 2, 2)
    return np.moveaxis(split, (-1, -2, -3), (-3, -2, -1)).reshape(array.shape)


def _describe(shapes: Shapes) -> str:
    blocks = (re.match(r"trunk\.layers\.(\d+)\.blocks\.(\d+)\.", name) for name in shapes)
    found = {match.groups() for match in blocks if match}
    sizes = [sum(stage == i for i, _ in found) for stage in sorted({i for i, _ in found})]
    name = "trunk.layers.0.blocks.0.attn.relative_position_bias_table"
    window = (int(shapes.get(name, (0,))[0] ** 0.5) + 1) // 2
    width = shapes.get("trunk.patch_embed.norm.weight", (0,))[0]
    solider = " of SOLIDER" if "trunk.layers.1.downsample.reduction.bias" in shapes else ""
    return (
        f"Swin{solider} of {'+'.join(map(str, sizes))} blocks, {width} channels and windows of "
        f"{window}x{window} cells"
    )


SWIN = Table(
    kind="Swin",
    first="layers.0.blocks.0.norm1.weight",
    stem="patch_embed.proj.weight",
    layer=re.compile(r"trunk\.((patch_embed|norm|layers)\.|absolute_pos_embed$)"),
    describe=_describe,
    linear=re.compile(r"trunk\.layers\."),
    patches=MappingProxyType({"trunk.patch_embed.proj.weight": 4}),
    spellings=MappingProxyType(
        {
            "layers.0.downsample.reduction.weight": _AUTHORS,
            "features.1.0.norm1.weight": _TORCHVISION,
            "stages.0.blocks.0.norm1.weight": _SOLIDER,
        }
    ),
    teacher=re.compile(r"(?:^|[._])teacher[._]"),
    needs_stem=True,
    arrange=_arrange,
)
