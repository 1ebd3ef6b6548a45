"""PGFL-KD in JAX: occluded person re-identification with pose in training only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgfl_jax.embedder import Embedder, load

__all__ = ["Embedder", "__version__", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import JAX only when something that needs it is asked for."""
    if name in ("load", "Embedder"):
        from pgfl_jax import embedder

        return getattr(embedder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
