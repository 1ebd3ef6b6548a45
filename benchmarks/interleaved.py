"""Times several programs in turn: each in a process of its own, which waits while others run."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Repeat = Callable[[int], None]


def serve(start: Callable[[], tuple[Repeat, Callable[[], dict[str, Any]]]]) -> None:
    """Run in the process of a program: prepare it, then run it as often as standard input says.

    Args:
        start: makes the program: a function that runs it a number of times and waits for the end,
            and one that describes the process afterwards.
    """
    started = time.perf_counter()
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    repeat, describe = start()
    repeat(1)
    print(json.dumps(time.perf_counter() - started), file=answers, flush=True)
    for line in sys.stdin:
        times = int(line)
        if not times:
            break
        began = time.perf_counter()
        repeat(times)
        print(json.dumps(time.perf_counter() - began), file=answers, flush=True)
    print(json.dumps(describe()), file=answers, flush=True)


class Program:
    """A program in its process.

    Attributes:
        name: as given.
        start_seconds: from nothing to the end of the first run, without imports.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; :meth:`ready` waits for its first run."""
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(env or {}),
        )
        self.start_seconds = math.nan
        self.seconds: list[float] = []

    def ready(self) -> None:
        """Wait for the end of the first run."""
        self.start_seconds = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def run(self, times: int) -> float:
        """Seconds of one of ``times`` runs."""
        self._send(times)
        return self._answer() / times

    def _send(self, number: int) -> None:
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)

    def finish(self) -> dict[str, Any]:
        """End it; what the process says about itself."""
        self._send(0)
        description = self._answer()
        self._process.wait()
        return description


def interleave(programs: Sequence[Program], *, rounds: int, seconds: float) -> None:
    """Run the programs round by round, each for about ``seconds``."""
    times = {program.name: max(1, round(seconds / program.run(1))) for program in programs}
    for program in programs:
        program.run(times[program.name])  # clocks and caches
    for _ in range(rounds):
        for program in programs:
            program.seconds.append(program.run(times[program.name]))
