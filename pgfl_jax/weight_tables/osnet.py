"""OSNets, named as in torchreid, but for the BatchNorm after a depthwise convolution."""

import re
from types import MappingProxyType

from pgfl_jax.weight_tables.table import Shapes, Table


def _describe(shapes: Shapes) -> str:
    names = (f"trunk.conv{i}.0.conv3.conv.weight" for i in (2, 3, 4))
    widths = ", ".join(str(shapes.get(name, (0,))[0]) for name in names)
    normalised = " with instance normalisation" if "trunk.conv2.0.IN.weight" in shapes else ""
    return f"network like OSNet of {widths} channels{normalised}"


OSNET = Table(
    kind="network like OSNet",
    first="conv2.0.conv1.conv.weight",
    stem="conv1.conv.weight",
    layer=re.compile(r"trunk\.conv[1-5]\."),
    describe=_describe,
    spellings=MappingProxyType(
        {"conv2.0.conv2a.bn.weight": {r"(conv\d\.\d\.conv2(?:a|[bcd]\.\d)\.)bn\.": r"\1norm."}}
    ),
)
