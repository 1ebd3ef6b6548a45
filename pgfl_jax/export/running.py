"""Run exported models in processes of their own.

NumPy alone is needed here, so that an artifact can be verified where only its runtime is installed.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.errors import UserError

BATCHES = (1, 7, 32)
"""Sizes of the batches at which every model is compared."""

_MAIN = Path(__file__).parent / "runtimes" / "_main.py"


class RuntimeMissing(UserError):
    """The runtime is not installed."""


class RuntimeFailed(UserError):
    """The runtime cannot load or run the model; the message is its error."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, and what JAX makes of them.

    Attributes:
        name: for messages and the record.
        file: a .npy file with N pictures as the models take them.
        expected: (N, D) JAX's embeddings.
        sizes: of the batches in which a model gets them.
    """

    name: str
    file: Path
    expected: np.ndarray
    sizes: tuple[int, ...] = BATCHES


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One model on one runtime.

    Attributes:
        model: its entry in ``parity.json``.
        runtime: the runtime's name.
        rows: (N, D) for each size of batch, by the name of the pictures; empty after an error.
        versions: of the packages.
        error: why there are no rows.
    """

    model: Mapping[str, Any]
    runtime: str
    rows: Mapping[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: UserError | None = None


def run_models(
    folder: Path,
    models: Sequence[Mapping[str, Any]],
    pictures: Sequence[Pictures],
    *,
    python: str = sys.executable,
) -> Iterator[Run]:
    """Run each model of an artifact on each of its runtimes.

    Args:
        folder: of the artifact.
        models: for each ``file``, ``runtimes`` and ``precision``.
        pictures: what the models embed.
        python: the interpreter in whose environment the runtimes are.
    """
    jobs = [(given.file, size) for given in pictures for size in given.sizes]
    for model in models:
        for runtime in model["runtimes"]:
            try:
                found, versions = embed_with(runtime, folder / model["file"], jobs, python=python)
            except (RuntimeMissing, RuntimeFailed) as error:
                yield Run(model, runtime, error=error)
                continue
            rest = iter(found)
            rows = {given.name: [next(rest) for _ in given.sizes] for given in pictures}
            yield Run(model, runtime, rows, versions)


def embed_with(
    runtime: str,
    model: Path,
    jobs: Sequence[tuple[Path, int]],
    *,
    python: str = sys.executable,
) -> tuple[list[np.ndarray], dict[str, str]]:
    """The embeddings that a runtime gives in a fresh process.

    Args:
        runtime: the name of a module ``runtimes/run_<name>.py``.
        model: the file.
        jobs: for each a .npy file with pictures as the model takes them, and the batch's size.
        python: the interpreter in whose environment the runtime is.

    Returns:
        (N, D) rows for each job, and the versions of the packages.

    Raises:
        RuntimeMissing: the runtime is not installed there.
        RuntimeFailed: it cannot load or run the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{number}.npy" for number in range(len(jobs))]
        arguments = [
            str(argument)
            for (pictures, size), output in zip(jobs, outputs, strict=True)
            for argument in (pictures, output, size)
        ]
        command = [python, str(_MAIN), runtime, str(model), *arguments]
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_environment()
        )
        answer = _answer(ended)
        rows = [np.load(output, allow_pickle=False) for output in outputs]
    return rows, answer["versions"]


def _environment() -> dict[str, str]:
    """That of this process, with all runtimes on the CPU and TensorFlow quiet."""
    quiet = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **quiet}


def _answer(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the process printed last."""
    try:
        answer = json.loads(ended.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        answer = {}
    if "missing" in answer:
        raise RuntimeMissing(f"{answer['missing']} is not installed")
    if "failed" in answer:
        raise RuntimeFailed(answer["failed"])
    if "versions" not in answer:
        said = ended.stderr.strip().splitlines()
        last = f": {said[-1]}" if said else ""
        raise RuntimeFailed(f"the process ended with status {ended.returncode}{last}")
    return answer


def arranged(pictures: np.ndarray, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """Pictures as a model takes them.

    Args:
        pictures: (N, H, W, 3) uint8 RGB of the network's size.
        preprocessing: the content of ``preprocessing.json``.
    """
    wanted = preprocessing["input"]
    if wanted["dtype"] == "uint8":
        return pictures
    values: np.ndarray = pictures.astype(np.float32)
    if not wanted["normalised_inside"]:
        mean, std = (np.float32(preprocessing[name]) for name in ("mean", "std"))
        values = (values / np.float32(255) - mean) / std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def write_arranged(
    path: Path, pictures: np.ndarray, preprocessing: Mapping[str, Any], *, chunk: int = 256
) -> None:
    """Write a .npy file of :func:`arranged` pictures, ``chunk`` at a time."""
    wanted = preprocessing["input"]
    shape = (len(pictures), *wanted["shape"][1:])
    file = new_array(path, shape, wanted["dtype"])
    for start in range(0, len(pictures), chunk):
        file[start : start + chunk] = arranged(pictures[start : start + chunk], preprocessing)
    file.flush()


def new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """A .npy file to be filled.

    Its room on the disk is taken now: to run out of it later would kill the process.

    Raises:
        OSError: the disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
