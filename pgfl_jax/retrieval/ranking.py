"""Rank the gallery of a protocol for each of its queries."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from pgfl_jax.retrieval.metrics import RetrievalMetrics, evaluate_retrieval
from pgfl_jax.retrieval.protocols import EvaluationError, Images, Protocol


def cosine_distances(
    query: Float[np.ndarray, "queries channels"], gallery: Float[np.ndarray, "gallery channels"]
) -> Float[np.ndarray, "queries gallery"]:
    """1 − cosine of every pair, for rows of unit length: (Q, G) in [0, 2].

    >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> cosine_distances(query, gallery)
    array([[1., 2.]])
    """
    return 1 - query @ gallery.T


def rank_protocol(
    embeddings: Mapping[str, Float[np.ndarray, "images channels"]],
    protocol: Protocol,
    splits: Mapping[str, Images],
    *,
    max_rank: int,
) -> RetrievalMetrics:
    """Rank a protocol's gallery by cosine distance, and score the rankings.

    Args:
        embeddings: (N, D) of unit length, by the split's name.
        protocol: names the two splits.
        splits: by name.
        max_rank: length of the CMC.

    Raises:
        EvaluationError: no query has a match under another camera.
    """
    query, gallery = splits[protocol.query], splits[protocol.gallery]
    distances = cosine_distances(embeddings[protocol.query], embeddings[protocol.gallery])
    try:
        return evaluate_retrieval(
            distances,
            query.identities,
            gallery.identities,
            query.cameras,
            gallery.cameras,
            max_rank=max_rank,
        )
    except ValueError as error:
        raise EvaluationError(f"protocol {protocol.name}: {error}") from error
