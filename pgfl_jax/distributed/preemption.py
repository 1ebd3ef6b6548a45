"""Stopping training from outside without losing a step."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Turns SIGTERM, which schedulers send before they kill, and Ctrl-C into a request to stop.

    This holds while the context is open; a second Ctrl-C then acts as it did before. A process
    that was started with Ctrl-C ignored, as a shell's background job is, goes on ignoring it.

    With several processes, JAX itself catches SIGTERM in any of them and agrees on a step at which
    all stop; Ctrl-C is left alone there.
    """

    def __init__(self) -> None:
        """Catch nothing yet."""
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        # Python lets no other thread set handlers.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            caught = [number for number in SIGNALS if not (number == signal.SIGINT and ignored)]
            self._before = {number: signal.signal(number, self._catch) for number in caught}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop; each process asks once before each step, and all get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C asked to stop: the user expects that status."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt

    def _catch(self, number: int, frame: FrameType | None) -> None:
        first = self._received is None
        self._received = number
        if number == signal.SIGINT and first:
            # Not print: the signal may have interrupted it, and it is not reentrant.
            with contextlib.suppress(OSError):
                os.write(1, b"stopping after this step; press Ctrl-C again to stop at once\n")
        elif number == signal.SIGINT:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
