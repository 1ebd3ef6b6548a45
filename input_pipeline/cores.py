"""How many cores this process may use, which in a container can be fewer than the machine has."""

import os


def available_cores() -> int:
    """Cores that the scheduler gives this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
