"""Finding JAX's devices, before anything else uses them."""

import jax

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
