"""Finding JAX's devices, before anything else uses them."""

import jax
from jax.sharding import Mesh

from pgfl_jax.errors import UserError


def require_devices() -> None:
    """Start JAX's backend now, where its error can be said in one line.

    Raises:
        UserError: ``JAX_PLATFORMS`` names a kind of device that JAX does not find here.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word: no NVIDIA GPU
        if not (platforms := jax.config.jax_platforms):  # type: ignore[attr-defined]
            raise
        reason = " ".join(str(error).partition(" (set ")[0].split())
        raise UserError(
            f"JAX_PLATFORMS={platforms}: JAX finds no such device here; unset the variable, or set "
            f"it to cpu{f' ({reason})' if reason else ''}"
        ) from error


def compiler_options(mesh: Mesh) -> dict[str, bool | int]:
    """XLA's options for programs on these devices, each of them measured (docs/performance.md).

    On NVIDIA GPUs, cuBLAS takes bias, ReLU and shortcut into its matrix products, which XLA's
    Triton products leave to a second kernel; and two products of one array are not made into one,
    whose gradient needs a copy of both of theirs.
    """
    if mesh.devices.flat[0].platform != "gpu":
        return {}
    return {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
