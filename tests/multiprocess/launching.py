"""Starting the processes of a run, as a user does."""

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


def finish(processes, timeout=300):
    """Exit status, standard output and standard error of each; all are killed if one hangs."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]
