"""How the processes of a run find one another: all of them come to the coordinator's port.

JAX has a way of its own, but it ends the process in the middle, with a page of C++ trace, when
somebody does not come, and it does not notice two processes of the same number. So they meet here
first, and JAX starts when all of them are known to be there.
"""

import contextlib
import dataclasses
import json
import select
import socket
import time
from collections.abc import Collection

from pgfl_jax.errors import UserError

_START = b"start\n"
_ERROR = b"error "


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of a run this is.

    Attributes:
        coordinator: host and port of process 0, as ``HOST:PORT``.
        num_processes: how many there are.
        process_id: from 0 to ``num_processes`` − 1.
        local_device_ids: the accelerators of the machine that this process takes; None: all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port apart."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def meet(place: Place, timeout: float) -> None:
    """Wait until all processes are there.

    Args:
        place: which of them this is.
        timeout: seconds to wait for the others.

    Raises:
        UserError: they are not all there in time, two have the same number, or they do not agree on
            how many they are.
    """
    if place.process_id == 0:
        _receive(place, timeout)
    else:
        _visit(place, timeout)


def _receive(place: Place, timeout: float) -> None:
    """What process 0 does: wait for one visit of each of the others, then let them go."""
    deadline = time.monotonic() + timeout
    waiting: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(place))
        while len(waiting) < place.num_processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                absent = [str(i) for i in range(1, place.num_processes) if i not in waiting]
                _refuse(
                    waiting.values(),
                    f"process {', '.join(absent)} of {place.num_processes} did not come to "
                    f"{place.coordinator} within {timeout:.0f} s; start all of them, each with "
                    "this --coordinator and a --process_id of its own",
                )
            visitor = _read_claim(connection)
            if visitor is None:
                connection.close()  # no process of ours: whoever tries the ports of a machine
                continue
            number, count = visitor
            if count != place.num_processes:
                reason = f"is started with --num_processes={count}, process 0 with "
                reason += str(place.num_processes)
            elif number in waiting and not _has_left(waiting[number]):
                reason = "is started twice: every process needs a --process_id of its own"
            else:
                waiting[number] = connection
                continue
            _refuse([connection, *waiting.values()], f"process {number} {reason}")
        server.close()
        for connection in waiting.values():
            # A visitor who has left since is found out by JAX.
            with contextlib.suppress(OSError):
                connection.sendall(_START)
                connection.settimeout(2)
                connection.recv(1)  # it closes first, so that the port is free at once


def _listen(place: Place) -> socket.socket:
    port = place.address[1]
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f"--coordinator={place.coordinator}: process 0 cannot listen on port {port} of this "
            f"machine ({error.strerror or error}); take another port, in all processes"
        ) from error


def _read_claim(connection: socket.socket) -> tuple[int, int] | None:
    """The number of a visitor and how many it believes there are; None if it is no process."""
    connection.settimeout(5)
    try:
        claim = json.loads(connection.makefile("rb").readline(200))
        return int(claim["process_id"]), int(claim["num_processes"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _has_left(connection: socket.socket) -> bool:
    """Whether a visitor who should be waiting has been killed, and may come again."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _refuse(connections: Collection[socket.socket], reason: str) -> None:
    """End the meeting: everybody gets the same error."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(_ERROR + reason.encode() + b"\n")
    raise UserError(reason)


def _visit(place: Place, timeout: float) -> None:
    """What the others do: call on process 0, as often as needed, and wait for its answer."""
    deadline = time.monotonic() + timeout
    claim = {"process_id": place.process_id, "num_processes": place.num_processes}
    while True:
        left = max(deadline - time.monotonic(), 0.01)
        try:
            connection = socket.create_connection(place.address, timeout=left)
            break
        except OSError as error:  # not started yet, or its name is not known yet
            if time.monotonic() > deadline - 0.2:
                raise UserError(
                    f"--coordinator={place.coordinator}: process 0 does not answer there "
                    f"({error.strerror or error}; tried for {timeout:.0f} s); is it started, with "
                    "the same --coordinator?"
                ) from error
            time.sleep(0.2)
    with connection:
        # Process 0 gives up after as long as this process would, and says why.
        connection.settimeout(max(deadline - time.monotonic(), 0.01) + timeout)
        try:
            connection.sendall(json.dumps(claim).encode() + b"\n")
            answer = connection.makefile("rb").readline()
        except OSError:
            answer = b""
    if answer.startswith(_ERROR):
        raise UserError(answer.removeprefix(_ERROR).decode().strip())
    if answer != _START:
        raise UserError(
            f"--coordinator={place.coordinator}: process 0 has ended while this one waited, or "
            "another program, or another run, has this port"
        )
