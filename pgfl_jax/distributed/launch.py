"""Training in several processes: how they start, what they ask one another, how they end.

In a single process every question is answered at once, without the others.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pgfl_jax.distributed import relay
from pgfl_jax.distributed.meeting import Place, meet
from pgfl_jax.errors import UserError

START_TIMEOUT = 300.0
"""Seconds that a process waits for the others at the start: machines of a cluster boot apart."""

# A process that is silent for so long counts as dead, and ends the run.
_HEARTBEAT_TIMEOUT = 60
# The death of process 0, where the coordinator is, ends the others in the middle of a word. So it
# lives on for this long when all of them stop for the same reason, until each has told it.
_LAST_WORDS = 2.0

_LOST = (
    "another process of the run has ended, or cannot be reached any more; its last line may say "
    "why. Start all of them again: they go on from the newest checkpoint, if any"
)
_LOST_SIGNS = ("Gloo", "NCCL", "nccl", "oordination", "Barrier", "heartbeat", "UNAVAILABLE",
               "DEADLINE_EXCEEDED", "Socket closed", "Connection reset")  # fmt: skip

# Set by launchers for each of several processes. Where JAX does not join them, two of them would
# write into one workdir, each believing to be alone.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_relay: subprocess.Popen | None = None


def is_primary() -> bool:
    """Whether this process writes logs and results; exactly one does."""
    return jax.process_index() == 0


def all_processes(condition: bool) -> bool:
    """Whether ``condition`` holds in every process; all of them must ask."""
    return not _without(condition)


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: float) -> float:
    """The value that process 0 has, bit for bit; all of them must ask."""
    if jax.process_count() == 1:
        return value
    # As bytes: JAX would round a double to single precision.
    value_bytes = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    received = multihost_utils.broadcast_one_to_all(value_bytes)
    return float(np.frombuffer(received.tobytes(), np.float64)[0])


def agreed_step(step: int | None) -> int | None:
    """The step that process 0 sees in a folder that may change meanwhile; all of them must ask."""
    agreed = int(broadcast_from_primary(-1.0 if step is None else float(step)))
    return None if agreed < 0 else agreed


def assert_same_everywhere(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes are about to compute the same; all of them must ask.

    Args:
        facts: what must be equal, by the name that an error gives it; values fit for JSON.

    Raises:
        UserError: something differs; names it, and the processes where it is not as in process 0.
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
        f"{name} (process {_numbers(differs[:, i])} not as process 0)"
        for i, name in enumerate(names)
        if differs[:, i].any()
    ]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise UserError(
        f"the processes of the run differ in {', '.join(found[:5])}{more}; start all of them with "
        "the same program, options and data"
    )


def check_shared(workdir: Path) -> None:
    """Make sure that ``workdir`` is one folder that all processes see; all of them must ask.

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
            f"--workdir={workdir}: process {_join(absent)} does not see there what process 0 "
            "writes; give a folder that all of them share"
        )


def peer_lost(error: BaseException) -> bool:
    """Whether an error comes from the end of another process, at whatever remove."""
    if not jax.distributed.is_initialized():
        return False
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError):
            return any(sign in str(seen) for sign in _LOST_SIGNS)
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: float = START_TIMEOUT,
) -> Iterator[None]:
    """Join the other processes of the run, before any JAX backend starts.

    Where there are others, an error in the context ends this process at once, with the line that
    tells it. Without arguments they are those that the environment tells of: Slurm, Open MPI,
    Kubernetes and TPU pods, as JAX finds them.

    Args:
        coordinator: ``HOST:PORT`` of process 0, where it waits for the others.
        num_processes: how many they are; 1 alone: join nobody, whatever the environment says.
        process_id: number of this process, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the arguments are incomplete or wrong, or this looks like one of several
            processes and JAX knows no way to join them.
    """
    place = _place(coordinator, num_processes, process_id, timeout)
    if place is None:
        yield
        return
    try:
        _join_others(place, timeout)
        yield
    except SystemExit:
        raise
    except BaseException as error:
        _end(place, error)


def _place(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Place | None:
    """Where this process stands; None if it is alone."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return None
    if all(value is None for value in given.values()):
        return _detected(timeout)
    if absent := [f"--{name}" for name, value in given.items() if value is None]:
        raise UserError(
            f"{' and '.join(absent)} not given; several processes need --coordinator, "
            "--num_processes and --process_id, all three"
        )
    assert coordinator is not None and num_processes is not None and process_id is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={coordinator}: must be HOST:PORT, of the machine of process 0"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: must be above 0")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}: must lie in [0, {num_processes}), for "
            f"--num_processes={num_processes}"
        )
    return None if num_processes == 1 else Place(coordinator, num_processes, process_id)


def _detected(timeout: float) -> Place | None:
    """Where the environment says that this process stands; None if it says nothing of others."""
    try:
        # Not public, but what jax.distributed.initialize() does; another version may differ.
        from jax._src import distributed  # noqa: F401 - makes the kinds of clusters known
        from jax._src.clusters import ClusterEnv

        coordinator, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(timeout)
        )
    except (ImportError, AttributeError, TypeError):
        _check_alone()
        return None
    except Exception as error:  # of any kind: it depends on the cluster
        raise UserError(
            f"the cluster of this machine cannot be asked for the processes of the run ({error}); "
            "give --coordinator, --num_processes and --process_id, or --num_processes=1 for a run "
            "of this process alone"
        ) from error
    if count is None or number is None or coordinator is None:
        _check_alone()
        return None
    # The only one is alone: it takes all accelerators of its machine.
    if count == 1:
        return None
    return Place(coordinator, count, number, tuple(devices) if devices else None)


def _check_alone() -> None:
    """UserError if the environment is that of one of several processes."""
    signs = [name for name in _COUNTS if os.environ.get(name, "").isdigit()]
    signs = [name for name in signs if int(os.environ[name]) > 1]
    signs += [name for name in _LISTS if "," in os.environ.get(name, "")]
    signs += [name for name in ("JOB_COMPLETION_INDEX", "JAX_COORDINATOR_ADDRESS")
              if name in os.environ]  # fmt: skip
    if signs:
        raise UserError(
            f"{signs[0]}={os.environ[signs[0]]}: this seems to be one of several processes, but "
            "JAX does not know how to find the others (on Kubernetes it needs pip install "
            "'jax[k8s]'); give --coordinator, --num_processes and --process_id, or "
            "--num_processes=1 for a run of this process alone"
        )


def _join_others(place: Place, timeout: float) -> None:
    _relay_output(place)
    meet(place, timeout)
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        # What is known is known: detection would still give a Slurm task one device alone.
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
    )
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes of the run have {', '.join(map(str, counts))} devices; every one must "
            "have as many as the others"
        )


def _relay_output(place: Place) -> None:
    """Let what the process prints pass through pgfl_jax/relay.py, which says why."""
    global _relay
    pipes = [os.pipe(), os.pipe()]
    readers = [str(reader) for reader, _ in pipes]
    message = _prefixed(place, _LOST)
    _relay = subprocess.Popen(
        [sys.executable, "-I", "-S", relay.__file__, *readers, message],
        pass_fds=[reader for reader, _ in pipes],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the process alone
    )
    for stream, (reader, writer) in zip((sys.stdout, sys.stderr), pipes, strict=True):
        stream.flush()
        os.dup2(writer, 1 if stream is sys.stdout else 2)
        os.close(reader)
        os.close(writer)


def _end(place: Place, error: BaseException) -> None:
    """Tell an error and end the process.

    Not by way of the interpreter: at its end JAX would wait for the others, which wait for this one
    in the middle of a step.
    """
    status = 1
    if isinstance(error, UserError | OSError):  # also where another process was lost by it
        print(_prefixed(place, " ".join(str(error).split())), file=sys.stderr)
    elif peer_lost(error):
        print(_prefixed(place, _LOST), file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print(_prefixed(place, "interrupted; started again, all processes go on from the newest "
                        "checkpoint, if any"), file=sys.stderr)  # fmt: skip
        status = 130
    else:
        print(_prefixed(place, f"{type(error).__name__}, see below"), file=sys.stderr)
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if place.process_id == 0:
        time.sleep(_LAST_WORDS)
    if _relay is not None:
        os.closerange(1, 3)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _relay.wait(timeout=5)  # what it holds would be lost where a launcher clears up
    os._exit(status)


def _prefixed(place: Place, message: str) -> str:
    return f"{relay.OWN_ERROR.decode()}{place.process_id}: {message}"


def _without(condition: bool) -> list[int]:
    """The processes where ``condition`` does not hold."""
    if jax.process_count() == 1:
        return [] if condition else [0]
    held = multihost_utils.process_allgather(np.asarray(condition))
    return np.flatnonzero(~held).tolist()


def _numbers(selected: np.ndarray) -> str:
    return _join(np.flatnonzero(selected).tolist())


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _digest(value: Any) -> np.ndarray:
    text = json.dumps(value, sort_keys=True)
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
