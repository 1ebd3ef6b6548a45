"""Retrieval: from embeddings to distances, rankings and scores."""
