"""Person retrieval: embed images, rank a gallery for every query, score the rankings."""

from pgfl_jax.retrieval.metrics import RetrievalMetrics, evaluate_retrieval

__all__ = ["RetrievalMetrics", "evaluate_retrieval"]
