"""Person retrieval: embed images, rank a gallery for every query, score the rankings."""

from pgfl_jax.retrieval.metrics import RetrievalMetrics, evaluate_retrieval
from pgfl_jax.retrieval.ranking import Ranking, rank
from pgfl_jax.retrieval.reranking import k_reciprocal_distances

__all__ = [
    "Ranking",
    "RetrievalMetrics",
    "evaluate_retrieval",
    "k_reciprocal_distances",
    "rank",
]
