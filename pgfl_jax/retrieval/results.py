"""The scores of an evaluation, ready for JSON."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgfl_jax.config import EvalConfig
from pgfl_jax.retrieval.metrics import RetrievalMetrics, bootstrap_interval
from pgfl_jax.retrieval.protocols import Images, Protocol

CMC_RANKS = (1, 3, 5, 10, 20)


def protocol_result(
    protocol: Protocol,
    splits: Mapping[str, Images],
    metrics: RetrievalMetrics,
    config: EvalConfig,
    *,
    seed: int,
    rerank: bool = False,
    **origin: Any,
) -> dict[str, Any]:
    """The content of one file of ``results/``, except for the time that it took.

    Args:
        protocol: names data set and splits.
        splits: by name.
        metrics: of the protocol's ranking.
        config: bins and number of resamples.
        seed: of the bootstrap.
        rerank: whether the rankings are re-ranked.
        **origin: where the embeddings come from: ``step``, ``embedding``, ``parameters``.
    """
    query, gallery = splits[protocol.query], splits[protocol.gallery]
    return {
        "dataset": protocol.dataset,
        "protocol": protocol.name,
        **origin,
        "distance": "cosine",
        "rerank": rerank,
        "num_query": len(query.identities),
        "num_gallery": len(gallery.identities),
        **scores(metrics, query.occlusion, config, seed=seed),
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


def _by_occlusion(
    average_precision: np.ndarray,
    rank1: np.ndarray,
    occlusion: np.ndarray,
    edges: Sequence[float],
) -> list[dict[str, Any]]:
    """Scores of the valid queries in each bin [lo, hi), the last one closed; no empty bins."""
    bins = []
    for lo, hi in itertools.pairwise(edges):
        below = occlusion <= hi if hi == edges[-1] else occlusion < hi
        inside = (occlusion >= lo) & below & ~np.isnan(average_precision)
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
