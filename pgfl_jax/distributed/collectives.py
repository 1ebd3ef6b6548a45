"""Questions that the processes of a run answer together.

Every process must call these functions, in the same order. A single process answers at once.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pgfl_jax.errors import UserError


def is_primary() -> bool:
    """Whether this is process 0, which writes logs and results; asks no other process."""
    return jax.process_index() == 0


def processes_here() -> int:
    """How many of the run's processes are on this machine, which they share."""
    if jax.process_count() == 1:
        return 1
    here = _digest(platform.node())
    return int((multihost_utils.process_allgather(here) == here).all(axis=1).sum())


def all_processes(condition: bool) -> bool:
    """Whether ``condition`` holds in every process."""
    return not _without(condition)


def barrier(name: str) -> None:
    """Wait until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: float) -> float:
    """The value in process 0, bit for bit."""
    if jax.process_count() == 1:
        return value
    # As bytes: JAX would round a double to single precision.
    value_bytes = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    received = multihost_utils.broadcast_one_to_all(value_bytes)
    return float(np.frombuffer(received.tobytes(), np.float64)[0])


def agreed_step(step: int | None) -> int | None:
    """The step that process 0 read; another process may have read the folder at another moment."""
    agreed = int(broadcast_from_primary(-1.0 if step is None else float(step)))
    return None if agreed < 0 else agreed


def assert_same_everywhere(facts: Mapping[str, Any]) -> None:
    """Check that all processes are about to compute the same thing.

    Args:
        facts: the values that must be equal, by the name that an error uses; JSON types only.

    Raises:
        UserError: some values differ; the message names them, and the processes that do not agree
            with process 0.
    """
    if jax.process_count() == 1:
        return
    names = sorted(facts)
    rows = multihost_utils.process_allgather(_digest(names))
    if (rows != rows[:1]).any():
        raise UserError(
            "the processes of the run compare different things; start all of them from the same "
            "version of the program, with the same --config"
        )
    rows = multihost_utils.process_allgather(np.stack([_digest(facts[name]) for name in names]))
    differs = (rows != rows[:1]).any(axis=2)  # (processes, names)
    if not differs.any():
        return
    found = [
        f"{name} (process {_join(np.flatnonzero(differs[:, i]).tolist())} not as process 0)"
        for i, name in enumerate(names)
        if differs[:, i].any()
    ]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise UserError(
        f"the processes of the run differ in {', '.join(found[:5])}{more}; start all of them with "
        "the same program, options and data"
    )


def check_shared(workdir: Path) -> None:
    """Check that ``workdir`` is one folder that all processes see.

    Raises:
        UserError: names the processes that do not see what process 0 wrote.
    """
    if jax.process_count() == 1:
        return
    name = int(broadcast_from_primary(float(int.from_bytes(os.urandom(6), "little"))))
    token = workdir / f".shared-{name:x}"
    if is_primary():
        token.touch()
    barrier("token written")
    # A network file system may take a moment to show it.
    deadline = time.monotonic() + 10
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    absent = _without(seen)
    if is_primary():
        token.unlink(missing_ok=True)
    if absent:
        raise UserError(
            f"--workdir={workdir}: process {_join(absent)} does not see what process 0 "
            "writes there; give a folder that all of them share"
        )


def _without(condition: bool) -> list[int]:
    """The processes in which ``condition`` does not hold."""
    if jax.process_count() == 1:
        return [] if condition else [0]
    held = multihost_utils.process_allgather(np.asarray(condition))
    return np.flatnonzero(~held).tolist()


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _digest(value: Any) -> np.ndarray:
    """(32,) uint8, equal for equal values."""
    text = json.dumps(value, sort_keys=True)
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
