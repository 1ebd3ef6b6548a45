"""Starting the processes of a run, as a user does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def environment(**changes):
    """That of a plain machine, with one CPU device for each process."""
    cluster = ("SLURM_", "OMPI_", "PMI_", "JAX_COORDINATOR")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    return plain | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **changes}


def spawn(command, **changes):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(**changes),
    )  # fmt: skip


def train(workdir, *options, **changes):
    """Start ``main.py`` on the tiny set."""
    config = "--config=configs/synthetic_tiny.py"
    return spawn(["main.py", config, f"--workdir={workdir}", *options], **changes)


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
