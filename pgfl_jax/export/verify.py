"""Check an artifact again, anywhere that its runtime is installed. NumPy alone is needed."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.checksums import sha256
from pgfl_jax.errors import UserError
from pgfl_jax.export.running import (
    BATCHES,
    LOWEST_COSINE,
    RuntimeFailed,
    RuntimeMissing,
    agreement,
    arranged,
    embed_with,
)

RECORD = "parity.json"
PREPROCESSING = "preprocessing.json"
PROBE = "probe.npz"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        line: what was found.
        passed: False: it is wrong. None: it could not be checked here.
        record: for ``parity.json``; empty for what is no comparison.
    """

    line: str
    passed: bool | None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def verify(folder: Path, *, python: str = sys.executable) -> Iterator[Finding]:
    """Check an artifact: its files, then every model on the probe's pictures.

    Args:
        folder: of the artifact.
        python: the interpreter in whose environment the runtimes are.

    Raises:
        UserError: the folder holds no artifact.
    """
    record = read_record(folder, RECORD)
    damage = list(find_damage(folder, record["files"]))
    yield from damage or [Finding(f"{len(record['files'])} files are as they were written", True)]
    if damage:
        return
    preprocessing = read_record(folder, PREPROCESSING)
    with np.load(folder / PROBE, allow_pickle=False) as probe:
        pictures, expected = probe["pictures"], probe["embeddings"]
    found = list(
        compare(folder, record["models"], preprocessing, pictures, expected, python=python)
    )
    yield from found
    if not any(finding.passed is not None for finding in found):
        yield Finding("no runtime is installed that could check it", False)


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of an artifact.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; is {folder} the folder of an artifact?") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); export again") from error


def find_damage(folder: Path, digests: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each file that is not as it was written."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            yield Finding(f"{name} is missing", False)
        elif sha256(path) != digest:
            yield Finding(f"{name} is not as it was written", False)


def compare(
    folder: Path,
    models: list[dict[str, Any]],
    preprocessing: Mapping[str, Any],
    pictures: np.ndarray,
    expected: np.ndarray,
    *,
    name: str = "probe",
    python: str = sys.executable,
) -> Iterator[Finding]:
    """Run every model on every of its runtimes, at each of ``BATCHES``.

    Args:
        folder: of the artifact.
        models: for each ``file``, ``runtimes`` and ``precision``.
        preprocessing: the content of ``preprocessing.json``.
        pictures: (N, H, W, 3) uint8 RGB of the network's size.
        expected: (N, D) JAX's embeddings.
        name: of the pictures, for the record.
        python: the interpreter in whose environment the runtimes are.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "pictures.npy"
        np.save(source, arranged(pictures, preprocessing), allow_pickle=False)
        for model in models:
            for runtime in model["runtimes"]:
                yield _compared(folder, model, runtime, source, expected, name, python)


def _compared(
    folder: Path,
    model: Mapping[str, Any],
    runtime: str,
    source: Path,
    expected: np.ndarray,
    name: str,
    python: str,
) -> Finding:
    """One model on one runtime."""
    label = f"{model['file']} on {runtime}, {name}"
    jobs = [(source, size) for size in BATCHES]
    try:
        found, versions = embed_with(runtime, folder / model["file"], jobs, python=python)
        by_batch = [agreement(rows, expected) for rows in found]
    except RuntimeMissing as error:
        return Finding(f"{label}: not checked: {error}", None)
    except RuntimeFailed as error:
        return Finding(f"{label}: {error}", False)
    cosines = [measured["worst_cosine"] for measured in by_batch]
    lowest, bound = min(cosines), LOWEST_COSINE[model["precision"]]
    at = BATCHES[cosines.index(lowest)]
    line = f"{label}: worst cosine {lowest:.8f} (in batches of {at}; at least {bound} is wanted)"
    record = {
        "model": model["file"],
        "runtime": runtime,
        "versions": versions,
        "pictures": name,
        "count": len(expected),
        "batches": dict(zip(map(str, BATCHES), by_batch, strict=True)),
    }
    return Finding(line, lowest >= bound, record)
