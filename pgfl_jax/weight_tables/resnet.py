"""ResNets, named as in torchvision."""

import re
from types import MappingProxyType

from pgfl_jax.weight_tables.table import Shapes, Table

_RESNETS = {
    ("basic", 2, 2, 2, 2): "ResNet-18",
    ("basic", 3, 4, 6, 3): "ResNet-34",
    ("bottleneck", 3, 4, 6, 3): "ResNet-50",
    ("bottleneck", 3, 4, 23, 3): "ResNet-101",
    ("bottleneck", 3, 8, 36, 3): "ResNet-152",
}


def _describe(names: Shapes) -> str:
    layers = (re.search(r"layer(\d+)\.(\d+)\.", name) for name in names)
    blocks = {match.groups() for match in layers if match}
    stages = sorted({stage for stage, _ in blocks})
    sizes = [sum(stage == of for of, _ in blocks) for stage in stages]
    kind = "bottleneck" if "trunk.layer1.0.conv3.weight" in names else "basic"
    plain = f"ResNet of {'+'.join(map(str, sizes))} {kind} blocks"
    ibn = "-IBN-a" if "trunk.layer1.0.bn1.IN.weight" in names else ""
    non_local = " with non-local blocks" if any("trunk.NL_" in name for name in names) else ""
    return _RESNETS.get((kind, *sizes), plain) + ibn + non_local


RESNET = Table(
    kind="ResNet",
    first="layer1.0.conv1.weight",
    stem="conv1.weight",
    layer=re.compile(r"trunk\.(conv1|bn1|layer\d+|NL_\d+)\."),
    describe=_describe,
    patches=MappingProxyType({"trunk.conv1.weight": 4}),  # of resnet8
)
