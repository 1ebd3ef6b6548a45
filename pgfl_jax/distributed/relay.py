"""A small process between a training process and its terminal, when there are several.

When another process of the run dies, JAX's coordination client writes some forty lines of C++ trace
and aborts the process, from a thread of its own: nothing in the process can prevent it or come
before it. This one stands outside: it passes on what the process prints, puts one line in the place
of that trace, and drops what Gloo says of its connections. It reads until the process is gone.

Run: ``python relay.py STDOUT_FD STDERR_FD MESSAGE``, with the reading ends of two pipes. It imports
nothing but the standard library, so that it starts at once.
"""

import os
import re
import selectors
import signal
import sys
import time

# The process itself has told why it ends.
OWN_ERROR = b"error in process "
# Of JAX (xla/pjrt/distributed/client.h); the process is aborted right after it.
FATAL = b"Terminating process because the JAX distributed service detected fatal errors"
# What comes before it, and means nothing if it does not come.
OMEN = re.compile(
    rb"^[EW]\d{4} \S+ +\d+ (coordination_service(_agent)?|preemption_sync_manager)\.cc:"
)
NOISE = re.compile(
    rb"^\[Gloo\] Rank \d+ is connected to |.*preemption_notifier\.cc:\d+\] SIGTERM caught"
)
PATIENCE = 5.0  # seconds from the first omen to the end


class Relay:
    """Decides which lines of the standard error pass."""

    def __init__(self, message: bytes) -> None:
        """Begin; ``message`` is what takes the place of the trace."""
        self._message = message
        self._held: list[bytes] = []  # omens and what follows them, until their meaning is known
        self._held_since = 0.0
        self._told = False  # why the process ends
        self._fatal = False

    def lines(self, line: bytes) -> list[bytes]:
        """What to write when ``line`` is read."""
        if self._fatal or NOISE.match(line):
            return []
        if line.startswith(OWN_ERROR):
            self._told, self._held = True, []
            return [line]
        if FATAL in line:
            self._fatal, self._held = True, []
            return [] if self._told else [self._message]
        if self._held or OMEN.match(line):
            self._held_since = self._held_since if self._held else time.monotonic()
            self._held.append(line)
            return []
        return [line]

    def overdue(self) -> list[bytes]:
        """What was held back and has turned out to be no omen."""
        if not self._held or time.monotonic() - self._held_since < PATIENCE:
            return []
        return self.end()

    def end(self) -> list[bytes]:
        """What is left to write when nothing more can come."""
        held, self._held = self._held, []
        return [] if self._told else held


def main() -> None:
    """Pass on both streams until both end."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # sent to the whole group; the process decides
    relay = Relay(sys.argv[3].encode() + b"\n")
    targets = {int(sys.argv[1]): 1, int(sys.argv[2]): 2}
    rest = dict.fromkeys(targets, b"")
    with selectors.DefaultSelector() as selector:
        for source in targets:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(timeout=1.0):
                source, target = key.fd, targets[key.fd]
                chunk = os.read(source, 65536)
                *lines, rest[source] = (rest[source] + chunk).splitlines(keepends=True) or [b""]
                if rest[source].endswith((b"\n", b"\r")) or not chunk:
                    lines, rest[source] = [*lines, rest[source]], b""
                for line in lines:
                    passed = not NOISE.match(line)
                    _write(target, relay.lines(line) if target == 2 else [line] * passed)
                if not chunk:
                    selector.unregister(source)
            _write(2, relay.overdue())
    _write(2, relay.end())


def _write(target: int, lines: list[bytes]) -> None:
    data = b"".join(lines)
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError:  # nobody reads any more; the process must not notice
        pass


if __name__ == "__main__":
    main()
