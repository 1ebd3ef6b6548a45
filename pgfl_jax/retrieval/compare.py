"""Which of two runs ranks better, and by how much: a paired bootstrap over queries.

Both runs rank the same gallery for the same queries, so each query has two scores, and hard
queries are hard for both. With :math:`s_q` a query's score in one run minus that in the other, the
difference of the runs is the mean of :math:`s_q`, and its 95 % interval is that of the means of
resampled queries (:func:`pgfl_jax.retrieval.metrics.bootstrap_interval`). It is narrower than the
intervals of the two scores suggest, as what makes a query hard cancels out. It holds for these
checkpoints and this gallery, not over training seeds.

Reference: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; T. Sakai,
"Evaluating Evaluation Metrics based on the Bootstrap", SIGIR 2006 (paired, over queries).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.metrics import bootstrap_interval
from pgfl_jax.retrieval.queries import read_queries
from pgfl_jax.retrieval.query_results import QueryResults

MEASURES = "mAP", "Rank-1", "Rank-5"
RESAMPLES = 2_000
# How results were ranked whose version had no such option.
_BEFORE = {"distance": "cosine", "flip": False, "rerank": False}


class Difference(NamedTuple):
    """A measure of a run, and how it differs from the first run's; fractions.

    Attributes:
        score: of the run.
        difference: the run minus the first one; in [-1, 1].
        low: lower end of the 95 % interval of the difference.
        high: upper end.
    """

    score: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` if the interval excludes 0, else ``undecided``."""
        if self.low <= 0 <= self.high:
            return "undecided"
        return "better" if self.low > 0 else "worse"


def query_scores(results: QueryResults) -> dict[str, Float[np.ndarray, " queries"]]:
    """(Q,) the score of each query by measure; NaN for a skipped query."""
    first = results.first_match_rank
    hit = {rank: np.where(np.isnan(first), np.nan, first <= rank) for rank in (1, 5)}
    return {"mAP": results.average_precision, "Rank-1": hit[1], "Rank-5": hit[5]}


def compare(
    first: QueryResults, other: QueryResults, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Compare two runs query by query.

    Args:
        first: the run that is compared with.
        other: the run that is compared.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        The difference in each of :data:`MEASURES`.

    Raises:
        UserError: they are not of the same images, by the same rules.
    """
    _check_same(first, other)
    scores, found = (query_scores(results) for results in (first, other))
    compared = {}
    for name in MEASURES:
        differences = found[name] - scores[name]
        interval = bootstrap_interval(differences, seed=seed, resamples=resamples)
        compared[name] = Difference(
            float(np.nanmean(found[name])), float(np.nanmean(differences)), *interval
        )
    return compared


def unlike(first: QueryResults, other: QueryResults) -> str:
    """How another run was scored otherwise than the first; empty if in the same way.

    What differs may explain the difference of the scores: a mirror image, a distance, re-ranking.
    """
    ours, theirs = ({**_BEFORE, **results.facts} for results in (first, other))
    return ", ".join(
        f"{name} = {theirs[name]} (not {ours[name]})"
        for name in ("embedding", "parameters", *_BEFORE)
        if theirs[name] != ours[name]
    )


def describe(runs: Sequence[Path], *, checkpoint: str = "newest", embedding: str = "main") -> str:
    """Tables that compare runs with the first one, a table for each protocol.

    Args:
        runs: at least two folders of runs, or files of query results.
        checkpoint: ``newest``, ``best``, ``untrained`` or a step, of the folders.
        embedding: ``main``, ``parts``, ``average``, ``rerank``: what was scored, of the folders.

    A note names each run that was scored by other options than the first.

    Raises:
        FileNotFoundError: a folder or file is not there.
        UserError: the runs have no protocol in common, or not of the same images.
    """
    found = {str(run): _of_run(run, checkpoint, embedding) for run in runs}
    if len(found) < len(runs):
        raise UserError("a run is given twice; files results/*.queries.parquet may be of one run")
    (first, baseline), *others = found.items()
    shared = [name for name in baseline if all(name in protocols for _, protocols in others)]
    if not shared:
        each = "; ".join(f"{run}: {', '.join(protocols)}" for run, protocols in found.items())
        raise UserError(f"no protocol that all runs were scored on ({each})")
    tables, notes = [], []
    for name in shared:
        results = baseline[name]
        compared = {first: compare(results, results, resamples=1)}
        for run, protocols in others:
            try:
                compared[run] = compare(results, protocols[name])
            except UserError as error:
                raise UserError(f"{name} of {first} and {run}: {error}") from error
            if words := unlike(results, protocols[name]):
                notes.append(f"note: {name}: {run} was scored with {words}, unlike {first}")
        tables.append(_table(name, results, compared))
    left_out = sorted({name for protocols in found.values() for name in protocols} - {*shared})
    notes += [f"not compared, since not all runs have it: {name}" for name in left_out]
    return "\n\n".join([*tables, *notes])


def _of_run(run: Path, checkpoint: str, embedding: str) -> Mapping[str, QueryResults]:
    """The query results of a run by protocol; or a file's, by its protocol."""
    if run.is_file():
        results = read_queries(run)
        return {results.facts["protocol"]: results}
    middle = "" if embedding == "main" else f".{embedding}"
    step = f"step{checkpoint}" if checkpoint.isdecimal() else checkpoint
    end = f"{middle}.queries{'' if step == 'newest' else f'.{step}'}.parquet"
    paths = sorted((run / "results").glob(f"[!.]*{end}"))  # macOS adds ._occluded.…
    every = [(path, read_queries(path)) for path in paths]
    found = {
        results.facts["protocol"]: results
        for path, results in every
        if path.name == f"{results.facts['protocol']}{end}"
    }
    if not found:
        raise FileNotFoundError(
            f"{run / 'results'}: no *{end}; evaluate the run again (pgfl evaluate {run})"
        )
    return found


def _check_same(first: QueryResults, other: QueryResults) -> None:
    """UserError if scores of queries cannot be paired; says what differs."""
    ours, theirs = first.facts["fingerprint"], other.facts["fingerprint"]
    if ours["sha256"] == theirs["sha256"]:
        return
    names = {
        "camera_rule": "the camera rule",
        "junk_rule": "the junk rule",
        "query_sha256": "the queries",
        "gallery_sha256": "the gallery",
    }
    differing = [words for name, words in names.items() if ours[name] != theirs[name]]
    raise UserError(
        f"cannot be compared: they differ in {' and '.join(differing)}; score both runs on the "
        "same data (pgfl evaluate)"
    )


def _table(
    name: str, results: QueryResults, compared: Mapping[str, Mapping[str, Difference]]
) -> str:
    """One line per run: its scores, and the differences from the first run, in percent."""
    valid = int((~np.isnan(results.average_precision)).sum())
    width = max(map(len, (*compared, "run")))
    head = "".join(f" {measure:>7} {'difference (95 %)':>23} {'':<9}" for measure in MEASURES)
    lines = [
        f"{name} ({results.facts['dataset']}): {valid} queries",
        f"{'run':<{width}}{head}".rstrip(),
    ]
    for number, (run, differences) in enumerate(compared.items()):
        line = f"{run:<{width}}"
        for measure in MEASURES:
            score, *parts = (100 * value for value in differences[measure])
            difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*parts) if number else ""
            verdict = differences[measure].verdict if number else ""
            line += f" {score:7.1f} {difference:>23} {verdict:<9}"
        lines.append(line.rstrip())
    return "\n".join(lines)
