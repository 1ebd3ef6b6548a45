"""Vision transformers, named as in timm; torchvision's and CLIP's names are respelled."""

import math
import re
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from pgfl_jax.weight_tables.table import (
    HALF,
    IMAGENET,
    MapShape,
    Normalisation,
    PretrainedError,
    Shapes,
    StateDict,
    Table,
)

_TORCHVISION = {
    r"class_token$": "cls_token",
    r"encoder\.pos_embedding$": "pos_embed",
    r"conv_proj\.": "patch_embed.proj.",
    r"encoder\.ln\.": "norm.",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.": r"blocks.\1.norm\2.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_": r"blocks.\1.attn.qkv.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.": r"blocks.\1.attn.proj.",
    # linear_1 and linear_2 in older versions
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(0|linear_1)\.": r"blocks.\1.mlp.fc1.",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(3|linear_2)\.": r"blocks.\1.mlp.fc2.",
}
_CLIP = {
    r"class_embedding$": "cls_token",
    r"positional_embedding$": "pos_embed",
    r"conv1\.": "patch_embed.proj.",
    r"ln_pre\.": "norm_pre.",
    r"ln_post\.": "norm.",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.": r"blocks.\1.norm\2.",
    r"transformer\.resblocks\.(\d+)\.attn\.in_proj_": r"blocks.\1.attn.qkv.",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.": r"blocks.\1.attn.proj.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.": r"blocks.\1.mlp.fc1.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.": r"blocks.\1.mlp.fc2.",
}
_OF_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLS, _POSITIONS = "trunk.cls_token", "trunk.pos_embed"


def resample(
    grid: Float[np.ndarray, "rows columns channels"], rows: int, columns: int
) -> Float[np.ndarray, "new_rows new_columns channels"]:
    """A grid of another size: bicubic, antialiased, as PyTorch's ``F.interpolate`` does it.

    >>> resample(np.arange(4.0).reshape(4, 1, 1), 2, 1).ravel().round(3).tolist()
    [0.587, 2.413]
    """
    by_rows, by_columns = (
        _weights(old, new) for old, new in zip(grid.shape, (rows, columns), strict=False)
    )
    wide = np.asarray(grid, np.float64)
    return np.einsum("ri,cj,ijk->rck", by_rows, by_columns, wide).astype(grid.dtype)


def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each new cell takes of each old one. Wider than one cell where a grid shrinks."""
    scale = old / new
    centres = scale * (np.arange(new)[:, None] + 0.5)
    x = np.abs(np.arange(old) + 0.5 - centres) / max(scale, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def _arrange(
    arrays: StateDict, wanted: Shapes, map_shape: MapShape, source: str
) -> tuple[StateDict, str]:
    """Tokens in our shapes, position embeddings at our map's size."""
    arrays, notes = dict(arrays), []
    if _CLS in arrays:
        arrays[_CLS] = arrays[_CLS].reshape(1, 1, -1)
    if (found := arrays.pop("trunk.cls_pos", None)) is not None:  # PASS keeps them apart
        arrays[_POSITIONS] = np.concatenate([found, arrays[_POSITIONS]], 1)
    if copies := [name for name in arrays if name.startswith("trunk.b1.")]:
        notes.append(_trained_end(arrays, copies))
    if _POSITIONS not in arrays:
        return arrays, "; ".join(notes)
    positions = arrays[_POSITIONS].reshape(1, -1, arrays[_POSITIONS].shape[-1])
    count = wanted[_POSITIONS][1] - 1
    rows, columns = map_shape or _grids(count, 2.0, source)[0]
    old = _grid(positions[0, 1:], (rows, columns), source)
    if old != (rows, columns) and (map_shape or len(positions[0]) != 1 + count):
        cells = resample(positions[0, 1:].reshape(*old, -1), rows, columns)
        positions = np.concatenate([positions[:, :1], cells.reshape(1, rows * columns, -1)], 1)
        notes.append(f"position embeddings resampled from {old[0]}x{old[1]} to {rows}x{columns}")
    arrays[_POSITIONS] = positions
    return arrays, "; ".join(notes)


def _trained_end(arrays: StateDict, names: list[str]) -> str:
    """TransReID with its jigsaw module trains copies of the last block and LayerNorm, as ``b1``."""
    last = max(int(m[1]) for m in map(re.compile(r"trunk\.blocks\.(\d+)\.").match, arrays) if m)
    for name in names:
        ours = name.replace("trunk.b1.0.", f"trunk.blocks.{last}.")
        arrays[ours.replace("trunk.b1.1.", "trunk.norm.")] = arrays.pop(name)
    return "the last block and LayerNorm are those of the global branch, b1"


def _grid(
    cells: Float[np.ndarray, "cells channels"], shape: tuple[int, int], source: str
) -> tuple[int, int]:
    """(Rows, columns) of a file's position embeddings.

    Of the grids with so many cells, such as 12x12 and 18x8, it is the one in which the cells below
    one another are most alike. In doubt it is that of our map, a square, or one shaped as our map.

    Raises:
        PretrainedError: none is square or has a person's shape.
    """
    grids = _grids(len(cells), shape[0] / shape[1], source)
    first = shape if shape in grids else grids[0]
    steps = {
        (rows, columns): np.square(cells[columns:] - cells[:-columns]).mean()
        for rows, columns in grids
        if rows > 1
    }
    best = min(steps, key=lambda grid: steps[grid], default=first)
    return best if best != first and steps[best] < 0.8 * steps.get(first, np.inf) else first


def _grids(count: int, ratio: float, source: str) -> list[tuple[int, int]]:
    """The grids of so many cells that are square or upright; the likelier ones first."""
    low, high = min(1, 0.75 * ratio), max(4, 4 / 3 * ratio)
    pairs = [(count // n, n) for n in range(1, count + 1) if count % n == 0]
    grids = [(rows, columns) for rows, columns in pairs if low <= rows / columns <= high]
    if not grids:
        raise PretrainedError(
            f"{source}: pos_embed has {count + 1} tokens, which are not one class token and a grid "
            "of patches"
        )
    return sorted(grids, key=lambda p: (p[0] != p[1], abs(math.log(p[0] / p[1] / ratio))))


def _describe(shapes: Shapes) -> str:
    blocks = {name.split(".")[2] for name in shapes if name.startswith("trunk.blocks.")}
    width = shapes.get("trunk.norm.weight", shapes.get("trunk.blocks.0.norm1.weight", (0,)))[0]
    patch = shapes.get("trunk.patch_embed.proj.weight", (0, 0, 0, 0))[-1]
    clip = " of CLIP" if "trunk.norm_pre.weight" in shapes else ""
    return f"ViT{clip} of {len(blocks)} blocks, {width} channels and patches of {patch} pixels"


VIT = Table(
    kind="ViT",
    first="blocks.0.norm1.weight",
    stem="patch_embed.proj.weight",
    layer=re.compile(
        r"trunk\.(cls_token|pos_embed|patch_embed|norm_pre|blocks|norm|cls_pos|b1"
        # Tokens that take part in the attention, and positions inside it.
        r"|reg_token|register_tokens|storage_tokens|rel_pos_bias|rope|rope_embed)\b"
    ),
    describe=_describe,
    linear=re.compile(r"trunk\.blocks\."),
    patches=MappingProxyType({"trunk.patch_embed.proj.weight": 16}),
    spellings=MappingProxyType(
        {
            "encoder.layers.encoder_layer_0.ln_1.weight": _TORCHVISION,
            "transformer.resblocks.0.ln_1.weight": _CLIP,
        }
    ),
    teacher=re.compile(r"(?:^|[._])teacher[._]"),
    needs_stem=True,
    arrange=_arrange,
    normalised=MappingProxyType(
        {
            r"(?:^|\.)visual\.conv1\.": Normalisation("as CLIP's are", *_OF_CLIP),
            r"(?:^|\.)image_encoder\.conv1\.": Normalisation("as CLIP-ReID's are", *HALF),
            r"(?:^|\.)base\.patch_embed\.": Normalisation("as TransReID's are", *HALF),
            r"(?:^|\.)conv_proj\.": Normalisation("as torchvision's are", *IMAGENET),
        }
    ),
)
