"""Start runs in processes of their own, and read what they leave behind."""

import contextlib
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from pgfl_jax.models.backbones import BACKBONES, ConvNeXt, ResNet, Swin, ViT
from pgfl_jax.models.backbones.resnet import BasicBlock

ROOT = Path(__file__).parent.parent
GOLDEN_RUN = ROOT / "tests" / "golden" / "run_0cfe576"
# What its version's tiny configuration had, and today's has not.
GOLDEN_OPTIONS = {"model.pooling": "gap", "loss.teachers": "both", "loss.feature_kd": 3.0}


def start(data_dir, workdir, *options, **how):
    """Train on the tiny set by ``main.py``: 40 steps unless ``options`` say otherwise."""
    return launch(
        "main.py", "--config=configs/synthetic_tiny.py", f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}", *options, **how,
    )  # fmt: skip


# No preexec_fn, which would fork a process that has JAX's threads.
LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def launch(*command, env=None, file_size=None, ctrl_c=signal.SIG_DFL):
    """Start a program of the repository.

    ``env`` is added to the environment, without what launchers set in it. No file may grow beyond
    ``file_size`` bytes. ``ctrl_c`` is the SIGINT handler that it inherits.
    """
    cluster = "SLURM_", "OMPI_", "PMI_", "JAX_COORDINATOR", "WORLD_SIZE", "JOB_COMPLETION_INDEX"
    alone = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    if file_size is not None:
        command = "-c", LIMITED, file_size, *command
        # Python would not notice that a module's bytecode was cut short, and leave it to others.
        alone["PYTHONDONTWRITEBYTECODE"] = "1"
    # Pytest itself may ignore SIGINT, as a background job does, and would hand that on.
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=alone | (env or {}),
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process):
    """Exit status, standard output and standard error."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@contextlib.contextmanager
def shared_by_workers(tmp_path_factory, name):
    """A folder of this session that one worker at a time may work in."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / name).mkdir(exist_ok=True)
        yield root / name


def own_rows(batch):
    """This process's rows of a global batch."""

    def own(rows):
        size = len(rows) // jax.process_count()
        return rows[jax.process_index() * size :][:size]

    return {name: own(rows) for name, rows in batch.items()}


def history(workdir):
    """metrics.jsonl without the timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def results(workdir):
    """Every result, without its timing."""
    paths = (workdir / "results").glob("*.json")
    found = {path.name: json.loads(path.read_text()) for path in paths}
    return {name: value | {"seconds": 0} for name, value in found.items() if "mAP" in value}


def steps(workdir):
    """The steps that have a checkpoint."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def leaves(workdir, step):
    """The arrays of a checkpoint, by name, as Orbax reads them without knowing what they are."""
    folder = workdir.absolute() / "checkpoints" / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), handler.metadata(folder).tree)
    stored = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    found = by_name(stored)
    assert len(found) > 20 and found["step"] == step
    return found


def by_name(tree):
    """The leaves of a tree, as ``params/trunk/bn1/scale``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def one_block():
    """A context in which ResNet-8 has one block of 16 channels, and other kinds one or two.

    For what does not depend on the network: tracing and compiling it takes a third of the time.
    """
    small = ResNet(BasicBlock, (1,), (16,), (2,), patch_stem=True)
    others = {
        "vit_tiny": ViT(16, 2, 2),
        "swin_tiny": Swin(16, (2,), (1,), 8),
        "convnext_tiny": ConvNeXt(16, (2,), (1,)),
    }
    return mock.patch.dict(BACKBONES, resnet8=small, **others)


# What holds for any network holds for one of each kind, and for what is random in it.
NETWORKS = {
    "resnet8": {},
    "vit_tiny": {"model.backbone": "vit_tiny", "model.drop_path": 0.5},
}
# They train as these do.
OTHERS = {
    "swin_tiny": {"model.backbone": "swin_tiny", "model.drop_path": 0.5},
    "convnext_tiny": {"model.backbone": "convnext_tiny", "model.drop_path": 0.5},
}


def code_of_users():
    """A context in which functions are jitted for the code generator that XLA takes by default.

    The tests' one (see conftest.py) rounds otherwise, and not the same way on every mesh.
    """
    options = {"xla_cpu_use_fusion_emitters": True}
    return mock.patch.object(jax, "jit", functools.partial(jax.jit, compiler_options=options))


def assert_same_end(workdir, undisturbed, step):
    """Parameters, optimizer, statistics, metrics and results are the same, bit for bit."""
    assert steps(workdir)[-1] == steps(undisturbed)[-1] == step
    ours, theirs = leaves(workdir, step), leaves(undisturbed, step)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert history(workdir) == history(undisturbed)
    assert results(workdir) == results(undisturbed)


def delete(path):
    """Harm a file."""
    path.unlink()


def halve(path):
    """Harm a file: its second half is lost."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    """Harm a file: one bit changes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
