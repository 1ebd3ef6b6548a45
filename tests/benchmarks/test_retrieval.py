"""The other code bases' ways find what ours finds, and each side is measured."""

import numpy as np
import pytest

from benchmarks import retrieval
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval import evaluate_retrieval, k_reciprocal_distances


@pytest.mark.parametrize("peer", [retrieval.classic, retrieval.dense, retrieval.sparse_encodings])
def test_every_way_of_re_ranking_gives_the_same(peer):
    query, gallery = retrieval.embeddings(30, 170, 16)
    expected = k_reciprocal_distances(query, gallery)
    np.testing.assert_allclose(peer(query, gallery), expected, atol=1e-5)


def test_sorting_gives_the_same_scores():
    distances = np.random.default_rng(0).random((50, 300))
    known = retrieval.labels(50, 300, 20)
    found = evaluate_retrieval(distances, *known)
    assert retrieval.sorted_scores(distances, *known) == pytest.approx(
        (found.mean_ap, found.cmc[0])
    )


def test_a_stored_gallery_gives_what_its_rows_give(monkeypatch):
    monkeypatch.setattr(retrieval, "MILLION", 20_000)
    query, rows = retrieval._million()
    found = retrieval._search_million(query, rows)
    stored = retrieval._search_stored(*retrieval._stored_million())
    np.testing.assert_array_equal(stored.indices, found.indices)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    expected = np.argsort(-(query.astype(np.float64) @ rows.T.astype(np.float64)), axis=1)
    np.testing.assert_array_equal(found.indices, expected[:, :10])


def test_memory_and_time_are_those_of_the_call(monkeypatch):
    side = (lambda: (np.float32(2),), lambda fill: np.full(2**23, fill).sum())
    monkeypatch.setitem(retrieval.TASKS, "fill", {"numpy": side})
    monkeypatch.setattr(retrieval, "ENOUGH", 0.0)
    found = retrieval.measure("fill", "numpy")
    assert 2**25 * 0.9 < found["peak_bytes"] < 2**25 * 1.5 and found["seconds"] > 0


def test_a_side_that_fails_is_named():
    with pytest.raises(UserError, match="a side, a task: ended with status 1"):
        retrieval.compare("a task", ["a side"])
