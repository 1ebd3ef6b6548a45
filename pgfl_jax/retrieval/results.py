"""The scores of an evaluation, ready for JSON."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pgfl_jax.config import EvalConfig
from pgfl_jax.report.writers import embedding_label
from pgfl_jax.retrieval.metrics import RetrievalMetrics, bootstrap_interval
from pgfl_jax.retrieval.protocols import Images, Protocol, fingerprint
from pgfl_jax.retrieval.query_results import QueryResults

CMC_RANKS = (1, 3, 5, 10, 20)


class Evaluation(NamedTuple):
    """The results of one embedding on one protocol.

    Attributes:
        scores: ready for JSON; fractions in [0, 1].
        queries: the result of each query.
        calibration: ready for JSON; None after re-ranking, whose distances depend on the gallery.
    """

    scores: dict[str, Any]
    queries: QueryResults
    calibration: dict[str, Any] | None


def result_path(folder: Path, result: Mapping[str, Any], *, kind: str = "", suffix: str) -> Path:
    """The file of a result: ``<protocol>[.<embedding>][.<kind>][.<checkpoint>].<type>``.

    Args:
        folder: ``results`` of a run.
        result: the scores.
        kind: empty for the scores themselves, or what else the file holds.
        suffix: the checkpoint, if it is not the newest, and the type: ``.best.json``.

    >>> scored = {"protocol": "query", "embedding": "parts", "parameters": "trained"}
    >>> scored["rerank"] = False
    >>> result_path(Path("results"), scored, kind="queries", suffix=".best.parquet").name
    'query.parts.queries.best.parquet'
    """
    label = embedding_label(result).split(".")
    parts = [result["protocol"], *(part for part in label if part != "main"), kind]
    return folder / (".".join(part for part in parts if part) + suffix)


def protocol_facts(
    protocol: Protocol,
    splits: Mapping[str, Images],
    config: EvalConfig,
    *,
    rerank: bool,
    **origin: Any,
) -> dict[str, Any]:
    """What was ranked, for every file of a result.

    Args:
        protocol: names data set and splits.
        splits: by name.
        config: distance, and whether images are flipped.
        rerank: whether the rankings are re-ranked.
        **origin: where the embeddings come from: ``step``, ``embedding``, ``parameters``.
    """
    return {
        "dataset": protocol.dataset,
        "protocol": protocol.name,
        **origin,
        "distance": config.distance,
        "flip": config.flip,
        "rerank": rerank,
        "fingerprint": fingerprint(protocol, splits),
    }


def scores(
    metrics: RetrievalMetrics, occlusion: np.ndarray, config: EvalConfig, *, seed: int
) -> dict[str, Any]:
    """The scores of one ranking, with bootstrap intervals over queries and occlusion bins.

    Args:
        metrics: what :func:`pgfl_jax.retrieval.evaluate_retrieval` returned.
        occlusion: (Q,) hidden share of each query's person; NaN where unknown.
        config: bins and number of resamples.
        seed: of the bootstrap.
    """
    average_precision = metrics.average_precision
    rank1 = np.where(np.isnan(average_precision), np.nan, metrics.first_match_rank == 1)
    intervals = {
        name: bootstrap_interval(values, seed=seed, resamples=config.bootstrap_resamples)
        for name, values in (("mAP", average_precision), ("rank1", rank1))
    }
    return {
        "num_valid_queries": metrics.num_valid_queries,
        "mAP": metrics.mean_ap,
        "mINP": metrics.mean_inp,
        "cmc": {str(rank): float(metrics.cmc[rank - 1]) for rank in CMC_RANKS},
        "ci95": {name: list(interval) for name, interval in intervals.items()},
        "by_occlusion": _by_occlusion(average_precision, rank1, occlusion, config.occlusion_bins),
    }


def occlusion_bins(
    occlusion: Float[np.ndarray, " queries"], edges: Sequence[float | int]
) -> Iterator[tuple[float | int, float | int, Bool[np.ndarray, " queries"]]]:
    """The ends of each bin [lo, hi), the last one closed, and which queries are in it.

    >>> [inside.tolist() for *_, inside in occlusion_bins(np.array([0.0, 0.5, 1.0]), (0, 0.5, 1))]
    [[True, False, False], [False, True, True]]
    """
    for lo, hi in itertools.pairwise(edges):
        below = occlusion <= hi if hi == edges[-1] else occlusion < hi
        yield lo, hi, (occlusion >= lo) & below


def _by_occlusion(
    average_precision: np.ndarray,
    rank1: np.ndarray,
    occlusion: np.ndarray,
    edges: Sequence[float],
) -> list[dict[str, Any]]:
    """Scores of the valid queries in each bin; no empty bins."""
    bins = []
    for lo, hi, inside in occlusion_bins(occlusion, edges):
        inside &= ~np.isnan(average_precision)
        if inside.any():
            bins.append(
                {
                    "bin": [lo, hi],
                    "queries": int(inside.sum()),
                    "mAP": float(average_precision[inside].mean()),
                    "rank1": float(rank1[inside].mean()),
                }
            )
    return bins
