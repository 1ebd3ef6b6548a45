"""The scores of the study's runs: one JSON, and a table with paired differences."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from configs import study
from pgfl_jax.config import ConfigError, parse_config, stored_config
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.report.manifest import (
    FREE_OPTIONS,
    first_difference,
    read_config,
    read_run,
    without_places,
)
from pgfl_jax.report.summary import read_results
from pgfl_jax.report.writers import embedding_label
from studies.ablation.cells import Grid

PROTOCOLS = "occluded", "holistic"
EMBEDDINGS = "main", "foreground", "parts"
RANKED = {"distance": "cosine", "flip": False, "rerank": False}  # the scores that are collected
Run = Mapping[str, Any]


def folder(out: Path, grid: Grid) -> Path:
    """Where the runs are that were scored on a grid's data sets."""
    return out / "+".join(name.rpartition("/")[2] for name in grid.datasets)


def marker(workdir: Path) -> Path:
    """The file beside a run that holds what is known of it once it has ended."""
    return workdir.with_suffix(".json")


def collect(runs_folder: Path, cells: Iterable[str]) -> list[Run]:
    """What is known of every finished run, ordered by cell and seed.

    Args:
        runs_folder: from :func:`folder`.
        cells: their names.

    Returns:
        For each run: ``cell``, ``seed``, ``about``, the ``changes`` of its options, all
        ``options``, ``commit``, ``seconds`` of its last start and ``scores``: mAP and Rank-1 in
        [0, 1] by protocol and embedding.

    Raises:
        UserError: a run is of another definition of its cell, or its marker is damaged.
    """
    runs = []
    for cell in cells:
        seeds = sorted(int(path.stem[4:]) for path in runs_folder.glob(f"{cell}/seed*.json"))
        for seed in seeds:
            run = _read(marker(runs_folder / cell / f"seed{seed}"), cell)
            runs.append({"cell": cell, "seed": seed, **run})
    return runs


def _read(path: Path, cell: str) -> Run:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        stored = stored_config(run["options"])
    except (ConfigError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"{path}: damaged, or not of a finished run ({error}); delete it, and the run is read "
            "again"
        ) from error
    wanted = parse_config(study.get_config(cell))
    if difference := first_difference(stored, wanted, free=(*FREE_OPTIONS, "seed")):
        name, trained, now = difference
        raise UserError(
            f"{path.with_suffix('')}: trained with config.{name} = {trained!r}, where the "
            f"cell now says {now!r}; use another --out, or delete the run and {path.name}"
        )
    return run


def finished(workdir: Path, grid: Grid) -> Run | None:
    """What a run's folder says of it, as :func:`collect` returns it; None if it has not ended.

    Scores are read from the results at the last step on the grid's data sets. A user may have
    evaluated other checkpoints, or other data, in the same folder.
    """
    config = read_config(workdir)
    manifest = read_run(workdir, config)
    sizes = {name: manifest[name] for name in ("num_identities", "num_images")}
    last = Experiment.create(config, **sizes).num_steps
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for result in read_results(workdir).values():
        origin = result["dataset"].rpartition("/")[0]  # without the version
        ranked = {name: result[name] for name in RANKED}
        if result["step"] != last or ranked != RANKED or origin not in grid.datasets:
            continue
        protocol = result["protocol"].rpartition(".")[2]
        scores.setdefault(protocol, {})[embedding_label(result)] = {
            "mAP": result["mAP"],
            "Rank-1": result["cmc"]["1"],
        }
    if not scores:
        return None
    options = without_places(config).flat_options()
    return {"commit": manifest["commit"], "options": options, "scores": scores}


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
