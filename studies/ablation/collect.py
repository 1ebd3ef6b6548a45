"""The scores of the study's runs: one JSON, and a table with paired differences."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from studies.ablation.cells import Grid

PROTOCOLS = "occluded", "holistic"
EMBEDDINGS = "main", "foreground", "parts"
Run = Mapping[str, Any]


def folder(out: Path, grid: Grid) -> Path:
    """Where the runs are that were scored on a grid's data sets."""
    return out / "+".join(name.rpartition("/")[2] for name in grid.datasets)


def marker(workdir: Path) -> Path:
    """The file beside a run that says that it has ended, and in how many seconds."""
    return workdir.with_suffix(".json")


def collect(runs_folder: Path, cells: Iterable[str], seeds: int) -> list[Run]:
    """What is known of every finished run, ordered by cell and seed.

    Args:
        runs_folder: from :func:`folder`.
        cells: their names.
        seeds: 0 to ``seeds`` - 1.

    Returns:
        For each run: ``cell``, ``seed``, ``about``, the ``changes`` of its options, ``commit``,
        ``seconds`` of its last start and ``scores``: mAP and Rank-1 in [0, 1] by protocol and
        embedding.
    """
    runs = []
    for cell in cells:
        for seed in range(seeds):
            workdir = runs_folder / cell / f"seed{seed}"
            if marker(workdir).exists():
                runs.append(_read(workdir, cell, seed))
    return runs


def _read(workdir: Path, cell: str, seed: int) -> Run:
    manifest = json.loads((workdir / "manifest.json").read_text())
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(workdir.glob("results/*.json")):
        result = json.loads(path.read_text())
        if result["rerank"]:
            continue
        protocol = result["protocol"].rpartition(".")[2]
        label = result["embedding"] + (".average" * (result["parameters"] == "average"))
        scores.setdefault(protocol, {})[label] = {
            "mAP": result["mAP"],
            "Rank-1": result["cmc"]["1"],
        }
    return {
        "cell": cell,
        "seed": seed,
        "commit": manifest["commit"],
        **json.loads(marker(workdir).read_text()),
        "scores": scores,
    }


def table(runs: Sequence[Run], cells: Sequence[str]) -> str:
    """Mean and standard deviation over seeds in percent, and the difference to the first cell.

    The difference is paired by seed: its mean over the common seeds with a 95 % interval of
    Student's t.
    """
    lines = [
        "| cell | seeds | occluded mAP | Rank-1 | holistic mAP | Rank-1 | "
        f"occluded mAP: paired difference to {cells[0]} |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        found = [run for run in runs if run["cell"] == cell]
        embeddings = [name for name in EMBEDDINGS if found and name in _labels(found[0])]
        for embedding in embeddings:
            values = [
                spread([_score(run, protocol, embedding, name) for run in found])
                for protocol in PROTOCOLS
                for name in ("mAP", "Rank-1")
            ]
            apart = "" if embedding != "main" or cell == cells[0] else _paired(runs, cell, cells[0])
            name = cell if embedding == "main" else f"– {embedding}, with poses"
            lines.append(f"| {name} | {len(found)} | {' | '.join(values)} | {apart} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or a single value, in percent.

    >>> spread([0.25, 0.75]), spread([0.25])
    ('50.0 ± 35.4', '25.0')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """The mean difference over common seeds, with its 95 % interval, in percent points.

    >>> paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.375, 2: 0.5})
    '+31.2 (-48.2 to +110.7)'
    """
    differences = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs)]
    if not differences:
        return ""
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.1f}"
    quantile = float(scipy.stats.t.ppf(0.975, len(differences) - 1))
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def _paired(runs: Sequence[Run], cell: str, other: str) -> str:
    sides = [
        {run["seed"]: _score(run, "occluded", "main", "mAP") for run in runs if run["cell"] == name}
        for name in (cell, other)
    ]
    return paired_difference(*sides)


def _labels(run: Run) -> Mapping[str, Any]:
    return run["scores"][PROTOCOLS[0]]


def _score(run: Run, protocol: str, embedding: str, name: str) -> float:
    return float(run["scores"][protocol][embedding][name])
