"""Check an artifact again, anywhere that its runtime is installed. NumPy alone is needed."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.checksums import DIGESTS, sha256
from pgfl_jax.errors import UserError
from pgfl_jax.export.onnx_file import Graph, read_graph
from pgfl_jax.export.running import (
    Pictures,
    Run,
    RuntimeMissing,
    run_models,
    write_arranged,
)

RECORD = "parity.json"
PREPROCESSING = "preprocessing.json"
PROBE = "probe.npz"

LOWEST_COSINE = {"float32": 0.999999, "float16": 0.999, "bfloat16": 0.999, "int8": 0.9}
"""The worst cosine with JAX's embeddings that passes, by the model's precision."""

LARGEST_DISTANCE = 0.005
"""The largest distance from JAX's embedding that passes in float32, as a share of their spread.

Embeddings of a network that has learnt little are nearly equal. The cosine would find them alike
whatever an exported model did.
"""

# Float constants that are no parameters: mean and std of the pixels, sizes of maps.
_CONSTANTS = 32


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
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


def verify(
    folder: Path, *, run: Path | None = None, python: str = sys.executable
) -> Iterator[Finding]:
    """Check an artifact: its files, its graph, and every model on the probe's pictures.

    Args:
        folder: of the artifact.
        run: the training run that it must be of.
        python: the interpreter in whose environment the runtimes are.

    Raises:
        UserError: the folder holds no artifact.
    """
    record = read_record(folder, RECORD)
    try:
        files, models = record["files"], record["models"]
        main = Graph.from_json(record["main_branch"])
    except (LookupError, TypeError):
        raise UserError(f"{folder / RECORD}: damaged; export again") from None
    damage = list(_find_damage(folder, files))
    yield from damage or [Finding(f"{len(files)} files are as they were written", True)]
    if run is not None:
        yield _same_checkpoint(record, run)
    if damage:
        return
    for model in models:
        if model["file"].endswith(".onnx"):
            yield _check_onnx(model, folder, main)
    preprocessing = read_record(folder, PREPROCESSING)
    with (
        np.load(folder / PROBE, allow_pickle=False) as probe,
        tempfile.TemporaryDirectory() as scratch,
    ):
        source = Path(scratch) / "probe.npy"
        write_arranged(source, probe["pictures"], preprocessing)
        pictures = [Pictures("probe", source, probe["embeddings"])]
        found = [
            finding
            for made in run_models(folder, models, pictures, python=python)
            for finding in judge(made, pictures)
        ]
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not found; is {folder} the folder of an artifact?") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); export again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; export again")
    return content


def checkpoint_sha256(run: Path, step: int) -> str:
    """The digest of a checkpoint: that of the list of its files' digests.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    return sha256(run / "checkpoints" / str(step) / DIGESTS)


def _find_damage(folder: Path, digests: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each file that is not as it was written."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            yield Finding(f"{name} is missing", False)
        elif sha256(path) != digest:
            yield Finding(f"{name} is not as it was written", False)


def _same_checkpoint(record: Mapping[str, Any], run: Path) -> Finding:
    made_from = record["checkpoint"]
    try:
        same = checkpoint_sha256(run, made_from["step"]) == made_from["sha256"]
    except FileNotFoundError:
        return Finding(f"{run} has no checkpoint {made_from['step']}, of which this is", False)
    words = f"is checkpoint {made_from['step']} of {run}"
    return Finding(words if same else f"of another run: not what {words}", same)


def _check_onnx(model: Mapping[str, Any], folder: Path, main: Graph) -> Finding:
    try:
        graph = read_graph(folder / model["file"])
    except (LookupError, ValueError):
        return Finding(f"{model['file']}: cut short, or not an ONNX file with all shapes", False)
    return check_graph(model, graph, main)


def check_graph(model: Mapping[str, Any], graph: Graph, main: Graph) -> Finding:
    """Whether a graph is the main branch and nothing else, by its inputs and its size.

    Args:
        model: its entry in ``parity.json``.
        graph: of the file.
        main: the main branch as JAX computes it.
    """
    kinds = graph.operations
    wrong = [
        words
        for words, is_wrong in (
            (f"its inputs are {', '.join(graph.inputs)}", graph.inputs != main.inputs),
            (f"{graph.kernels:,} weights, not {main.kernels:,}", graph.kernels != main.kernels),
            (
                f"{graph.multiply_adds:,} multiply-adds, not {main.multiply_adds:,}",
                graph.multiply_adds != main.multiply_adds,
            ),
            (
                f"{graph.others:,} other numbers, at most {main.others + _CONSTANTS:,} are wanted",
                graph.others > main.others + _CONSTANTS and model["precision"] == "float32",
            ),
            ("BatchNormalization is not folded", kinds.get("BatchNormalization", 0) > 0),
            # Attention brings heads before tokens and back, at most once for each of its products.
            (
                f"{kinds.get('Transpose')} Transpose nodes",
                kinds.get("Transpose", 0) > 1 + kinds.get("MatMul", 0),
            ),
        )
        if is_wrong
    ]
    if wrong:
        return Finding(f"{model['file']}: not the main branch alone: {'; '.join(wrong)}", False)
    size = f"one input, {graph.kernels:,} weights, {graph.multiply_adds:,} multiply-adds a picture"
    return Finding(f"{model['file']}: {size}, as the main branch", True)


def judge(run: Run, pictures: Sequence[Pictures]) -> Iterator[Finding]:
    """What a run of a model says about it, for each set of pictures."""
    model, runtime = run.model, run.runtime
    label = f"{model['file']} on {runtime}"
    if run.error is not None:
        missing = isinstance(run.error, RuntimeMissing)
        line = f"{label}: not checked: {run.error}" if missing else f"{label}: {run.error}"
        yield Finding(line, None if missing else False)
        return
    bound = LOWEST_COSINE[model["precision"]]
    for given in pictures:
        found = run.rows[given.name]
        wrong = next((words for rows in found if (words := _unlike(rows, given.expected))), None)
        if wrong:
            yield Finding(f"{label}, {given.name}: {wrong}", False)
            continue
        by_size = {
            str(size): agreement(rows, given.expected)
            for size, rows in zip(given.sizes, found, strict=True)
        }
        worst = min(by_size, key=lambda size: by_size[size]["worst_cosine"])
        cosine = by_size[worst]["worst_cosine"]
        line = f"{label}, {given.name}: worst cosine {cosine:.8f}, in batches of {worst}"
        record = {
            "model": model["file"],
            "runtime": runtime,
            "versions": dict(run.versions),
            "pictures": given.name,
            "count": len(given.expected),
            "batches": by_size,
        }
        if cosine < bound:
            line += f"; wanted: {bound} at least"
        far = max(measured["of_spread"] for measured in by_size.values())
        wide = far > LARGEST_DISTANCE and model["precision"] == "float32"
        if wide:
            line += f"; {far:.1%} of the spread away, at most {LARGEST_DISTANCE:.1%} is wanted"
        yield Finding(line, cosine >= bound and not wide, record)


def _unlike(rows: np.ndarray, expected: np.ndarray) -> str | None:
    """What is wrong with an output that cannot be compared."""
    if rows.shape != expected.shape or rows.dtype != np.float32:
        return f"{rows.shape} {rows.dtype}, not {expected.shape} float32"
    if not np.isfinite(rows).all():
        return "values that are not finite"
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if np.abs(lengths - 1).max() > 1e-3:
        return f"rows of length {lengths.min():.4f} to {lengths.max():.4f}, not 1"
    return None


def agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far two sets of embeddings differ.

    Returns:
        ``largest`` and ``mean`` difference of two numbers, ``worst_cosine`` of two rows, and
        ``of_spread``: the largest distance of two rows, divided by the mean distance of the
        expected rows from their centre.
    """
    a, b = found.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(a - b)
    cosines = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    spread = float(np.linalg.norm(b - b.mean(axis=0), axis=1).mean()) if len(b) > 1 else 1.0
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "worst_cosine": float(cosines.min()),
        "of_spread": float(np.linalg.norm(a - b, axis=1).max()) / max(spread, 1e-3),
    }
