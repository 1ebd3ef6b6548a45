"""JAX, from a serialised program (StableHLO), on the CPU."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

PACKAGES = ("numpy", "flatbuffers", "jax")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a program: a batch as it takes them to (N, D) float32 rows.

    A program that holds no parameters takes them from ``model.safetensors`` beside it.
    """
    import flatbuffers  # noqa: F401  jax.export needs it, and JAX does not require it
    import jax
    import jax.export

    jax.config.update("jax_platforms", "cpu")
    path = Path(model)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(program.call)
    if len(program.in_avals) == 1:
        return lambda pictures: np.asarray(call(pictures))
    variables = jax.device_put(_read_safetensors(path.with_name("model.safetensors")))
    return lambda pictures: np.asarray(call(variables, pictures))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a file, by name."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(content)[8 + length :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }
