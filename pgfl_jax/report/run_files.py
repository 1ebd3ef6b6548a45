"""What a run's folder holds for the report."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pgfl_jax.config import Config, Embedding
from pgfl_jax.report.manifest import read_config, read_json
from pgfl_jax.report.summary import CHECKPOINTS, checkpoint_of, read_results
from pgfl_jax.report.writers import embedding_label
from pgfl_jax.retrieval.queries import read_queries
from pgfl_jax.retrieval.query_results import QueryResults
from pgfl_jax.retrieval.results import result_path

EMBEDDINGS = get_args(Embedding)


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """The main branch's result on a protocol: the newest, else the best, else another.

    Attributes:
        scores: its JSON.
        queries: the result of each query; None if an older version wrote none.
        calibration: its JSON; None if there is none.
    """

    scores: Mapping[str, Any]
    queries: QueryResults | None
    calibration: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True, eq=False)
class RunFiles:
    """A run.

    Attributes:
        name: short, and different from those of the other runs.
        path: its folder.
        config: its configuration.
        manifest: its ``manifest.json``.
        results: checkpoint (a key of ``summary.CHECKPOINTS``) and scores of every result.
        shown: what the figures and the gallery show, by protocol.
        metrics: the lines of ``metrics.jsonl``.
    """

    name: str
    path: Path
    config: Config
    manifest: Mapping[str, Any]
    results: Sequence[tuple[str, Mapping[str, Any]]]
    shown: Mapping[str, Shown]
    metrics: Sequence[Mapping[str, Any]]


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read the folders of some runs.

    Raises:
        ConfigError: a file is damaged, or from a newer version.
        FileNotFoundError: a folder holds no run.
        UserError: the results of queries are damaged, or pyarrow is not installed.
    """
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read_run(path: Path, name: str) -> RunFiles:
    metrics = _metrics(path / "metrics.jsonl")
    stored = [(checkpoint_of(file), scores) for file, scores in read_results(path).items()]
    results = sorted(stored, key=lambda result: _place(result[0], result[1], metrics))
    shown: dict[str, Shown] = {}
    for checkpoint, scores in results:
        if embedding_label(scores) == "main" and scores["protocol"] not in shown:
            shown[scores["protocol"]] = _shown(path / "results", checkpoint, scores)
    return RunFiles(
        name=name,
        path=path,
        config=read_config(path),
        manifest=read_json(path / "manifest.json"),
        results=results,
        shown=shown,
        metrics=metrics,
    )


def _place(
    checkpoint: str, scores: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> tuple[int, int, int]:
    """Where a result comes: by checkpoint, by protocol as evaluated, main branch first."""
    order = dict.fromkeys(name.partition("/")[0] for line in metrics for name in line)
    protocols, protocol = [*order], scores["protocol"]
    place = protocols.index(protocol) if protocol in protocols else len(protocols)
    label = embedding_label(scores).split(".")
    return [*CHECKPOINTS].index(checkpoint), place, EMBEDDINGS.index(label[0]) + 10 * len(label)


def _shown(folder: Path, checkpoint: str, scores: Mapping[str, Any]) -> Shown:
    """A result with what is beside it."""
    end = (
        f".step{scores['step']}" if checkpoint == "step" else f".{checkpoint}" if checkpoint else ""
    )
    path = result_path(folder, scores, kind="queries", suffix=f"{end}.parquet")
    queries = read_queries(path) if path.exists() else None
    if queries and queries.facts["step"] != scores["step"]:  # an older version wrote the scores
        queries = None
    path = result_path(folder, scores, kind="calibration", suffix=f"{end}.json")
    return Shown(scores, queries, read_json(path) if path.exists() else None)


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a killed process may leave half a line at the end."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The last names of the folders, or whole paths if two are the same.

    >>> _names([Path("runs/a"), Path("runs/b")]), _names([Path("x/a"), Path("y/a")])
    (['a', 'b'], ['x/a', 'y/a'])
    """
    names = [path.absolute().name for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]
