"""The network: :class:`PGFL` and what it returns."""

from pgfl_jax.models.outputs import BranchOutputs, PGFLOutputs
from pgfl_jax.models.pgfl import PGFL, folded, main_branch, unit_length

__all__ = ["PGFL", "BranchOutputs", "PGFLOutputs", "folded", "main_branch", "unit_length"]
