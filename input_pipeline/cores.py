"""How many cores this process may use; in a container they can be fewer than the machine's."""

import os


def available_cores() -> int:
    """Number of cores on which the scheduler lets this process run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
