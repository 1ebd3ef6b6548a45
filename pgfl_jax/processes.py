"""Training in several processes: what they ask one another.

In a single process every question is answered at once, without the others.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_primary() -> bool:
    """Whether this process writes logs and results; exactly one does."""
    return jax.process_index() == 0


def on_all(condition: bool) -> bool:
    """Whether ``condition`` holds in every process; all of them must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.asarray(condition))))


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
