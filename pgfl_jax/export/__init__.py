"""The embed function of a trained run in the formats of other runtimes.

``export_onnx(embedder, folder, contract="uint8_nhwc")`` writes an artifact; every format of
:data:`pgfl_jax.export.formats.FORMATS` has such a function.
"""

import functools
from typing import Any


def __getattr__(name: str) -> Any:
    """The function ``export_<format>``; JAX is imported for nothing else."""
    if name.startswith("export_"):
        from pgfl_jax.export.artifact import export
        from pgfl_jax.export.formats import FORMATS

        if (which := name.removeprefix("export_")) in FORMATS:
            return functools.partial(export, which)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
