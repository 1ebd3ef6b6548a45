"""Run an exported model in a process of its own, and compare its embeddings.

NumPy alone is needed here, so that an artifact can be verified where only its runtime is installed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.errors import UserError

BATCHES = (1, 7, 32)
"""Sizes of the batches at which every model is compared."""

LOWEST_COSINE = {"float32": 0.999999, "float16": 0.999, "bfloat16": 0.999, "int8": 0.9}
"""The worst cosine with JAX's embeddings that passes, by the model's precision."""

_MAIN = Path(__file__).parent / "runtimes" / "_main.py"


class RuntimeMissing(UserError):
    """The runtime is not installed."""


class RuntimeFailed(UserError):
    """The runtime cannot load or run the model; the message is the last line of its error."""


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
        answer = (ended.stdout.strip().splitlines() or [""])[-1]
        if ended.returncode == 3 and answer.startswith("{"):
            raise RuntimeMissing(f"{json.loads(answer)['missing']} is not installed")
        if ended.returncode:
            raise RuntimeFailed(_reason(ended))
        rows = [np.load(output, allow_pickle=False) for output in outputs]
    return rows, json.loads(answer)["versions"]


def _environment() -> dict[str, str]:
    """That of this process, with all runtimes on the CPU and TensorFlow quiet."""
    quiet = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **quiet}


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode < 0:
        return f"the process was ended by signal {-ended.returncode}"
    return (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]


def agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How two sets of embeddings differ: ``largest``, ``mean`` and ``worst_cosine``.

    Rows that are not finite or have no length count as a cosine of -1.

    Raises:
        RuntimeFailed: their shapes differ, or the type is not float32.
    """
    if found.shape != expected.shape or found.dtype != np.float32:
        raise RuntimeFailed(
            f"gives {found.shape} {found.dtype} where {expected.shape} float32 is wanted"
        )
    difference = np.abs(found.astype(np.float64) - expected)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    # Of unit length, which is part of the contract, the product is the cosine.
    product = np.sum(found.astype(np.float64) * expected, axis=1)
    product /= np.linalg.norm(expected.astype(np.float64), axis=1)
    fine = np.abs(lengths - 1) < 1e-4
    cosines = np.where(fine, product / np.where(fine, lengths, 1), -1.0)
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "worst_cosine": float(cosines.min()),
    }
