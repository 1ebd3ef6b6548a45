"""ConvNeXts, named as in timm; the names of torchvision and of the authors are respelled."""

import re
from types import MappingProxyType

from pgfl_jax.weight_tables.table import MapShape, Shapes, StateDict, Table

_TORCHVISION: dict[str, str] = {}
_AUTHORS: dict[str, str] = {}
_LAYERS = {
    # ours: torchvision's, the authors'
    "conv_dw.": (r"block\.0\.", r"dwconv\."),
    "norm.": (r"block\.2\.", r"norm\."),
    "mlp.fc1.": (r"block\.3\.", r"pwconv1\."),
    "mlp.fc2.": (r"block\.5\.", r"pwconv2\."),
    "gamma": (r"layer_scale$", r"gamma$"),
}
for _i in range(4):
    _name = rf"stages.{_i}.downsample.\1." if _i else r"stem.\1."
    _TORCHVISION[rf"features\.{2 * _i}\.([01])\."] = _name
    _AUTHORS[rf"downsample_layers\.{_i}\.([01])\."] = _name
    for _ours, (_of_torchvision, _of_authors) in _LAYERS.items():
        _name = rf"stages.{_i}.blocks.\1.{_ours}"
        _TORCHVISION[rf"features\.{2 * _i + 1}\.(\d+)\.{_of_torchvision}"] = _name
        _AUTHORS[rf"stages\.{_i}\.(\d+)\.{_of_authors}"] = _name


def _arrange(
    arrays: StateDict, wanted: Shapes, map_shape: MapShape, source: str
) -> tuple[StateDict, str]:
    """The scales of residuals as vectors; in torchvision they are (C, 1, 1)."""
    del wanted, map_shape, source
    flat = {name: array.reshape(-1) for name, array in arrays.items() if name.endswith(".gamma")}
    return arrays | flat, ""


def _describe(shapes: Shapes) -> str:
    blocks = (re.match(r"trunk\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in shapes)
    found = {match.groups() for match in blocks if match}
    sizes = [sum(stage == i for i, _ in found) for stage in sorted({i for i, _ in found})]
    width = shapes.get("trunk.stem.0.weight", (0,))[0]
    return f"ConvNeXt of {'+'.join(map(str, sizes))} blocks and {width} channels"


CONVNEXT = Table(
    kind="ConvNeXt",
    first="stages.0.blocks.0.conv_dw.weight",
    stem="stem.0.weight",
    layer=re.compile(r"trunk\.(stem|stages)\."),
    describe=_describe,
    linear=re.compile(r"trunk\.stages\.\d+\.blocks\.\d+\.mlp\."),
    patches=MappingProxyType(
        {"trunk.stem.0.weight": 4} | {f"trunk.stages.{i}.downsample.1.weight": 2 for i in (1, 2, 3)}
    ),
    spellings=MappingProxyType(
        {
            "features.1.0.block.0.weight": _TORCHVISION,
            "stages.0.0.dwconv.weight": _AUTHORS,
        }
    ),
    needs_stem=True,
    arrange=_arrange,
)
