"""How a training run writes its files and prints its lines."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pgfl_jax.distributed.collectives import is_primary
from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing

# What is added to the names of results of a checkpoint that was chosen by its number.
STEP_SUFFIX = "step[0-9]+"
BRANCHES = ("_main", "_foreground", "_parts")


class MetricWriter:
    """Writes scalars to ``metrics.jsonl``, and scalars and pictures as TensorBoard events.

    One line of ``metrics.jsonl`` is ``{"step": …, "name": value, …}``. A resumed run first drops
    the lines after its checkpoint, so that the file equals that of an uninterrupted run. The
    events, in ``metrics/``, keep both the lost steps and those that replaced them.
    """

    def __init__(self, workdir: Path, restored_step: int | None) -> None:
        """Open the files of a run that continues after ``restored_step`` steps; None: a new one.

        Raises:
            UserError: a whole line of ``metrics.jsonl`` is no such object; names file and line.
        """
        # Through TensorBoard's hyperparameters, clu would import Keras for a callback: seconds.
        unused = ModuleType("tensorboard.plugins.hparams._keras")
        vars(unused)["Callback"] = None
        sys.modules.setdefault(unused.__name__, unused)
        # clu's writer imports TensorFlow, which the package does not need otherwise.
        from clu.metric_writers import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        self._keep_until(-1 if restored_step is None else restored_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._summary = SummaryWriter(str(workdir / "metrics"))

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        # A killed process may leave half a line at the end.
        *whole, _ = self._path.read_bytes().split(b"\n")
        kept = []
        for number, line in enumerate(whole, 1):
            try:
                text = line.decode()
                if json.loads(text)["step"] <= step:
                    kept.append(f"{text}\n")
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self._path}, line {number}: not the metrics of a step; remove that line, or "
                    "move the file away"
                ) from error
        replace_text(self._path, "".join(kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._summary.write_scalars(step, dict(values))
        self._summary.flush()

    def write_picture(
        self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]
    ) -> None:
        """Write an RGB picture to the events."""
        self._summary.write_images(step, {name: picture})
        self._summary.flush()

    def close(self) -> None:
        """Flush and close both files."""
        try:
            self._file.close()
        finally:
            self._summary.close()


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_primary():
        print(line, flush=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text as :func:`replace_bytes` does, in UTF-8."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a temporary file and rename it, so that nobody ever sees half of ``path``."""
    try:
        with replacing(path) as beside:
            beside.write_bytes(content)
    except OSError as error:  # a full disk; the system's error does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    The file's folder is made, but none above it: a run does not bring back a workdir that was
    deleted or moved away.
    """
    path.parent.mkdir(exist_ok=True)
    replace_text(path, json.dumps(value, indent=2) + "\n")


def progress_line(step: int, num_steps: int, terms: Mapping[str, float], pace: str) -> str:
    """The line that training prints: step, losses by name, speed and time left.

    A loss that all three branches have is one entry, ``id 4.57/4.41/4.38`` for main, foreground and
    parts; a loss of the two teachers has two values.
    """
    groups: dict[str, list[str]] = {"total": []}
    for suffix in (*BRANCHES, ""):
        for name, value in terms.items():
            if name.endswith(suffix) and (suffix or not name.endswith(BRANCHES)):
                groups.setdefault(name.removesuffix(suffix), []).append(f"{value:.3g}")
    groups.pop("gradient_norm", None)  # not a loss
    losses = " ".join(f"{name} {'/'.join(values)}" for name, values in groups.items())
    return f"step {step:{len(str(num_steps))}d}/{num_steps} | {losses} | {pace}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def embedding_label(result: Mapping[str, Any]) -> str:
    """``main``; ``main.average`` for averaged parameters; ``main.rerank`` after re-ranking."""
    average = ".average" if result["parameters"] == "average" else ""
    return result["embedding"] + average + (".rerank" if result["rerank"] else "")


def _shown_label(result: Mapping[str, Any]) -> str:
    """The label, and what else is not as usual: ``main flip euclidean``."""
    flip = " flip" if result.get("flip") else ""
    distance = result.get("distance", "cosine")
    return embedding_label(result) + flip + ("" if distance == "cosine" else f" {distance}")


def score_table(results: list[dict]) -> str:
    """The scores of an evaluation as a table for the terminal, in percent."""
    labels = [_shown_label(result) for result in results]
    width = max(10, *map(len, labels))
    lines = [
        f"{'protocol':<28} {'embedding':<{width}} {'mAP':>6} {'(95 %)':>13} {'Rank-1':>7} "
        f"{'Rank-5':>7} {'mINP':>6} {'queries':>8}"
    ]
    for label, result in zip(labels, results, strict=True):
        lo, hi = (100 * end for end in result["ci95"]["mAP"])
        lines.append(
            f"{result['protocol']:<28} {label:<{width}} {100 * result['mAP']:6.1f} "
            f"{f'({lo:.1f}–{hi:.1f})':>13} {100 * result['cmc']['1']:7.1f} "
            f"{100 * result['cmc']['5']:7.1f} {100 * result['mINP']:6.1f} "
            f"{result['num_valid_queries']:8d}"
        )
    return "\n".join(lines)
