"""Stopping a training from outside, without losing a step."""

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
    """Hears SIGTERM, which schedulers send before they kill, and the first Ctrl-C.

    While the context is open they only ask to stop; a second Ctrl-C does what it did before. With
    several processes JAX itself hears SIGTERM, in any of them, and agrees on a step at which all
    stop; Ctrl-C is left alone there.
    """

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        # Python lets no other thread set handlers.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop; every process asks once before each step, and all get one answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt if it was Ctrl-C that asked to stop: its sender expects it."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first = self._received is None
        self._received = number
        if number == signal.SIGINT and first:
            # Not print, which may be what the signal interrupts, and must not be entered twice.
            with contextlib.suppress(OSError):
                os.write(1, b"stopping after this step; once more to stop at once\n")
        elif number == signal.SIGINT:
            before = self._before[number]
            self._restore()
            if callable(before):  # not where it was ignored, as in a shell's background jobs
                before(number, frame)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
