"""Joining the processes of a run at the start, and ending them when one fails."""

import contextlib
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from pgfl_jax.command_line import one_line
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.errors import UserError

START_TIMEOUT = 300.0
"""Seconds to wait for the other processes at the start: a cluster's machines boot separately."""

# A process that has been silent for this many seconds counts as dead, and the run ends.
_HEARTBEAT_TIMEOUT = 60
# JAX aborts all processes when process 0 ends. If all of them fail for the same reason, process 0
# stays alive for this many seconds, so that the others can print it.
_LAST_WORDS = 2.0

# Launchers set these variables in each process that they start. JAX does not know all launchers,
# and two processes that are not joined must not write one workdir.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_NAMES = ("JOB_COMPLETION_INDEX", "JAX_COORDINATOR_ADDRESS")

_OPTIONS = (
    "give --coordinator, --num_processes and --process_id, or --num_processes=1 for a run of this "
    "process alone"
)
# The loss of another process raises errors of many types, so this follows any error that is not
# the user's, and hides none.
_RESTART = (
    "If another process of the run ended first, its own output says why. Start all of them again: "
    "they go on from the newest checkpoint, if any"
)


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: float = START_TIMEOUT,
) -> Iterator[None]:
    """Join the other processes of the run, before any JAX backend starts.

    Without arguments, the environment decides: where a launcher has started several tasks, JAX
    looks for the others (Slurm, Open MPI 4, Kubernetes and TPU pods).

    In a run of several processes, an error in the context is printed and ends this process at once,
    with a status other than 0. The others then end too: the connections break, or the heartbeat
    stops.

    Args:
        coordinator: ``HOST:PORT`` of process 0, where it waits for the others.
        num_processes: how many there are; 1 without a coordinator: join nobody, whatever the
            environment says.
        process_id: number of this process, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the arguments are incomplete or wrong, or JAX counts several processes that
            have not been joined. JAX finds no device.
    """
    given = _check_arguments(coordinator, num_processes, process_id)
    signs = launcher_signs() if num_processes is None else {}
    if not given and not signs:
        require_devices()
        if jax.process_count() > 1:
            raise UserError(
                f"JAX counts {jax.process_count()} processes, which have not been joined; "
                "give --coordinator, --num_processes and --process_id"
            )
        yield
        return
    number = process_id
    try:
        if given:
            _join_given(given, timeout)
        else:
            _join_found(signs, timeout)
        number = jax.process_index()
        _check_devices()
        yield
    except SystemExit:
        raise
    except BaseException as error:
        _end(number, error)


def _check_arguments(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    """The arguments as JAX takes them; empty where none are given or the process is alone."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return {}
    if all(value is None for value in given.values()):
        return {}
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
            f"--process_id={process_id}: must be in [0, {num_processes}), for "
            f"--num_processes={num_processes}"
        )
    if num_processes == 1:
        return {}
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }


def launcher_signs() -> dict[str, tuple[int, int | float]]:
    """The environment variables that show that this process is one of several.

    Returns:
        For each variable the least and the largest number of processes that it allows.
    """
    signs: dict[str, tuple[int, int | float]] = {}
    for name in _COUNTS:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 1:
            signs[name] = int(value), int(value)
    for name in _LISTS:
        if "," in (value := os.environ.get(name, "")):
            signs[name] = value.count(",") + 1, math.inf  # the machines of one TPU slice
    slices = os.environ.get("MEGASCALE_NUM_SLICES", "")
    if slices.isdigit() and int(slices) > 1:
        signs["MEGASCALE_NUM_SLICES"] = int(slices), math.inf
    signs |= {name: (2, math.inf) for name in _NAMES if name in os.environ}
    # JAX sets the first one where it finds a TPU, and asks Google's metadata server, unless the
    # second one is set, whether the machine is one of a pod.
    if "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ:
        signs["TPU_ML_PLATFORM"] = 1, math.inf
    return signs


def _join_given(arguments: dict[str, Any], timeout: float) -> None:
    """Join as the user says."""
    address, count, number = arguments.values()
    if number == 0:
        _check_port(address)
    _wait_for(f"process {number} of {count}", f" at {address}", timeout)
    # Without detection: inside Slurm it would leave each process one accelerator of its machine.
    _initialize(timeout, **arguments, cluster_detection_method="deactivate")
    require_devices()
    if jax.process_count() != count:
        raise UserError(
            f"process {number} is started with --num_processes={count}, but "
            f"{jax.process_count()} processes have joined; give all of them the same number"
        )


def _join_found(signs: dict[str, tuple[int, int | float]], timeout: float) -> None:
    """Join the processes that JAX finds by itself."""
    name = next(iter(signs))
    shown = f"{name}={os.environ[name]}"
    _wait_for(f"a process with {shown}", "", timeout)
    try:
        _initialize(timeout)
    except Exception as error:  # its type depends on the cluster
        raise UserError(
            f"{shown}: this seems to be one of several processes, but JAX cannot find the others "
            f"({error}; on Kubernetes it needs pip install 'jax[k8s]'); {_OPTIONS}"
        ) from error
    require_devices()
    count = jax.process_count()
    for name, (least, most) in signs.items():
        if not least <= count <= most:
            raise UserError(
                f"{name}={os.environ[name]}: this seems to be one of several processes, but JAX "
                f"has joined {count}; {_OPTIONS}"
            )


def _initialize(timeout: float, **arguments: Any) -> None:
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=max(1, round(timeout)),
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
    )


def _wait_for(process: str, place: str, timeout: float) -> None:
    """Say who waits: JAX aborts the process if the others do not come, without saying so."""
    print(
        f"{process} waits up to {timeout:.0f} s for the others{place}", file=sys.stderr, flush=True
    )


def _check_port(coordinator: str) -> None:
    """UserError if another program has the port: JAX would share it with another run's process."""
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise UserError(
            f"--coordinator={coordinator}: process 0 cannot listen on port {port} of this machine "
            f"({error.strerror or error}); take another port, in all processes"
        ) from error


def _check_devices() -> None:
    """UserError if the processes have different numbers of devices."""
    counts = np.bincount([device.process_index for device in jax.devices()])
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes of the run have {', '.join(map(str, counts))} devices; every one must "
            "have as many as the others"
        )


def _end(number: int | None, error: BaseException) -> NoReturn:
    """Print an error and end the process.

    Python's own exit would not do: there JAX waits for the other processes, and they wait for this
    one in the middle of a step.
    """
    prefix = "error: " if number is None else f"error in process {number}: "
    try:
        if isinstance(error, KeyboardInterrupt):
            reason = "interrupted; started again, all processes go on from the newest checkpoint, "
            reason += "if any"
        elif isinstance(error, UserError | OSError):
            reason = one_line(error)
        else:
            traceback.print_exception(error)
            reason = f"{type(error).__name__}, see above. {_RESTART}"
        print(prefix + reason, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if number == 0 and jax.distributed.is_initialized():
            time.sleep(_LAST_WORDS)
    finally:
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)
