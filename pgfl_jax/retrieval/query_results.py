"""The result of each query: its scores and the nearest of its gallery."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from pgfl_jax.retrieval.blocks import Ranking
from pgfl_jax.retrieval.metrics import Labels, RetrievalMetrics
from pgfl_jax.retrieval.protocols import Images

TOP = 50
"""Gallery items that are kept of each ranking."""

RELATIONS = np.array(["impostor", "match", "junk"], object)


@dataclasses.dataclass(frozen=True, eq=False)
class QueryResults:
    """What became of each of Q queries.

    Attributes:
        facts: what was ranked, as in the scores' JSON.
        query: the queries.
        num_matches: (Q,) gallery items of the identity under other cameras.
        num_junk: (Q,) gallery items of the identity under the query's camera.
        average_precision: (Q,) in [0, 1]; NaN for a skipped query.
        first_match_rank: (Q,) from 1; NaN for a skipped query.
        nearest: (Q, T) gallery rows and distances; junk is among them.
        filenames: (Q, T) of the nearest.
        identities: (Q, T) of the nearest.
        cameras: (Q, T) of the nearest.
        relations: (Q, T) ``match``, ``junk`` or ``impostor``.
    """

    facts: Mapping[str, Any]
    query: Images
    num_matches: Int[np.ndarray, " queries"]
    num_junk: Int[np.ndarray, " queries"]
    average_precision: Float[np.ndarray, " queries"]
    first_match_rank: Float[np.ndarray, " queries"]
    nearest: Ranking
    filenames: Shaped[np.ndarray, "queries top"]
    identities: Shaped[np.ndarray, "queries top"]
    cameras: Shaped[np.ndarray, "queries top"]
    relations: Shaped[np.ndarray, "queries top"]


def query_results(
    query: Images,
    gallery: Images,
    metrics: RetrievalMetrics,
    nearest: Ranking,
    facts: Mapping[str, Any],
) -> QueryResults:
    """Join the scores of Q queries with what is known about the images.

    Args:
        query: Q images.
        gallery: G images.
        metrics: of the rankings.
        nearest: (Q, T) gallery rows and distances.
        facts: what was ranked.
    """
    labels = Labels(query.identities, gallery.identities, query.cameras, gallery.cameras)
    matches, junk = (
        np.bincount(pairs.row, minlength=len(query)) for pairs in labels.pairs(slice(None))
    )
    identities, cameras = gallery.identities[nearest.indices], gallery.cameras[nearest.indices]
    same = identities == query.identities[:, None]
    relations = same + (same & (cameras == query.cameras[:, None])).astype(int)
    return QueryResults(
        facts=facts,
        query=query,
        num_matches=matches,
        num_junk=junk,
        average_precision=metrics.average_precision,
        first_match_rank=metrics.first_match_rank,
        nearest=nearest,
        filenames=gallery.filenames[nearest.indices],
        identities=identities,
        cameras=cameras,
        relations=RELATIONS[relations],
    )
