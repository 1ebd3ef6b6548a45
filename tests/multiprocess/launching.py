"""Start the processes of a run, as a user does."""

import re
import socket
import subprocess

from tests.runs import launch


def free_port():
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def train(workdir, *options, **changes):
    """Start ``main.py`` on the tiny set, in a changed environment."""
    config = "--config=configs/synthetic_tiny.py"
    return launch("main.py", config, f"--workdir={workdir}", *options, env=changes)


def two(port):
    """The flags of each of two processes."""
    return [
        [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}"]
        for i in range(2)
    ]


def finish(processes, timeout=600):
    """Exit status, standard output and standard error of each, without what JAX adds to them.

    All are killed if one hangs.
    """
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    return [
        (process.returncode, *map(_without_notes, output))
        for process, output in zip(processes, outputs, strict=True)
    ]


# JAX notes each connection, and a SIGTERM.
_NOTE = re.compile(
    r"\[Gloo\] Rank \d+ is connected to |.*preemption_notifier\.cc:\d+\] SIGTERM caught"
)


def _without_notes(text):
    return "".join(line for line in text.splitlines(keepends=True) if not _NOTE.match(line))


def waits(number, port, *, count=2, timeout=300):
    """The first line that a process prints."""
    place = f"localhost:{port}"
    return f"process {number} of {count} waits up to {timeout} s for the others at {place}\n"


def after_waiting(err):
    """A process's standard error after its first line."""
    first, _, rest = err.partition("\n")
    port = first.rpartition(":")[2]
    assert first + "\n" in [waits(number, port) for number in (0, 1)], err
    return rest
