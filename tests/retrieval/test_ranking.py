import subprocess
import sys

import jax
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.retrieval import blocks, evaluate_retrieval, rank
from pgfl_jax.retrieval.metrics import Labels
from pgfl_jax.retrieval.ranking import cosine_distances
from pgfl_jax.retrieval.sharded import evaluate_embeddings


def halves(rng, count):
    """Rows of length 1 whose products are exact in any order: 0 and ±1/2; many are equal."""
    places = rng.permuted(np.tile([1.0] * 4 + [0.0] * 4, (count, 1)), axis=1)
    return (places * rng.choice([-0.5, 0.5], (count, 8))).astype(np.float32)


def check(query, gallery, top, **options):
    """Against a stable sort of all distances."""
    found = rank(query, gallery, top=top, **options)
    distances = cosine_distances(query, gallery)
    order = np.argsort(distances, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, order, axis=1))


def test_hundreds_of_rankings_with_ties(monkeypatch):
    rng = np.random.default_rng(0)
    for case in range(300):
        queries, gallery = rng.integers(1, 9), int(rng.choice([1, 2, 30, 700]))
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 if case % 3 == 0 else 2**28)
        dtype = np.float64 if case % 2 else np.float32
        rows = halves(rng, queries).astype(dtype), halves(rng, gallery).astype(dtype)
        check(*rows, top=int(rng.integers(1, 60)))


def test_random_embeddings_are_ranked_by_their_cosine():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(20, 16)), 3 * rng.normal(size=(3000, 16))
    found = rank(query, gallery)
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    order = np.argsort(1 - query @ gallery.T / lengths, axis=1)
    np.testing.assert_array_equal(found.indices, order[:, :50])
    assert found.distances.dtype == np.float64
    narrow = rank(query.astype(np.float16), gallery.astype(np.float32))
    assert narrow.distances.dtype == np.float32 and narrow.indices.shape == (20, 50)


def test_float64_is_not_rounded_to_ties():
    angles = np.array([3e-5, 2e-5, 1e-5, 0.0])  # their cosines are equal in float32
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert rank([[1.0, 0.0]], gallery).indices.tolist() == [[3, 2, 1, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [[0.0, np.nan]]}, "row 0 of query is zero or not finite"),
        ({"gallery": [[0.0, 1.0], [0.0, 0.0]]}, "row 1 of gallery is zero or not finite"),
        ({"gallery": [[0.0, np.inf]]}, "row 0 of gallery is zero or not finite"),
        # Its square is a denormal number with a handful of bits.
        (
            {"gallery": np.float32([[3e-22, 1e-22]]), "query": np.float32([[0, 1]])},
            "row 0 of galle",
        ),
        ({"gallery": np.empty((0, 2))}, r"gallery has shape \(0, 2\); there is nothing to rank"),
        ({"gallery": [[1.0]]}, "query and gallery have rows of 2 and 1 numbers"),
        ({"query": [1.0, 0.0]}, r"query has shape \(2,\)"),
        ({"query": [[1.0, 1j]]}, "query are complex128; expected an array of real numbers"),
        ({"gallery": np.ma.masked_less([[1.0, 0.0]], 0.5)}, "gallery hold masked values"),
        ({"top": 0}, "top is 0; it must be at least 1"),
    ],
)
def test_what_has_no_ranking_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rank(**{"query": [[0.0, 1.0]], "gallery": [[1.0, 0.0]]} | change)


def test_no_queries():
    found = rank(np.empty((0, 2)), [[1.0, 0.0]])
    assert found.indices.shape == found.distances.shape == (0, 1)


@pytest.mark.parametrize(("queries", "gallery"), [(37, 101), (1, 1), (3, 300)])
@pytest.mark.parametrize("block_bytes", [2**28, 2000])
def test_eight_devices_rank_and_score_as_numpy_does(queries, gallery, block_bytes, monkeypatch):
    rng = np.random.default_rng(queries)
    rows = halves(rng, queries), halves(rng, gallery)
    labels = [rng.integers(n, size=s) for n in (5, 2) for s in (queries, gallery)]
    labels[2][0], labels[3][0], labels[1][0] = 0, 1, labels[0][0]  # a match at least
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    mesh = make_mesh(jax.devices()[:8], model=2)
    check(*rows, top=20, mesh=mesh)
    expected = evaluate_retrieval(cosine_distances(*rows), *labels)
    found = evaluate_embeddings(*rows, Labels(*labels), mesh)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    np.testing.assert_array_equal(found.first_match_rank, expected.first_match_rank)
    np.testing.assert_array_equal(found.cmc, expected.cmc)
    assert found.mean_inp == expected.mean_inp


MEMORY = """
import tracemalloc
import numpy as np
from pgfl_jax.retrieval import blocks, rank
from pgfl_jax.retrieval.metrics import Labels, evaluate_blocks
from pgfl_jax.retrieval.pairs import PairCounter
from pgfl_jax.retrieval.ranking import cosine_blocks, rank_and_score
blocks.BLOCK_BYTES = 2**22
rng = np.random.default_rng(0)
rows = [rng.normal(size=(count, 8)).astype(np.float32) for count in (3000, 8000)]
rows = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in rows]
labels = Labels(*(rng.integers(n, size=s) for n in (400, 6) for s in (3000, 8000)))
tracemalloc.start()
rank(*rows)
print(tracemalloc.get_traced_memory()[1])
tracemalloc.reset_peak()
evaluate_blocks(cosine_blocks(*rows), labels)
print(tracemalloc.get_traced_memory()[1])
tracemalloc.reset_peak()
rank_and_score(cosine_blocks(*rows), labels, max_rank=50, pairs=PairCounter(labels, exact=0))
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_is_that_of_two_blocks():
    command = [sys.executable, "-c", MEMORY]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ranked, scored, counted = map(int, printed.split())
    whole = 3000 * 8000 * 4
    assert ranked < 2 * 2**22 + 3 * 3000 * 50 * 12 < whole / 5  # beside it, the result, twice
    assert scored < 5 * 2**22 < whole / 4  # and what the threads copy
    # The nearest, and histograms of 400 people and 6 x 6 cameras.
    tables = 8 * 2048 * (400 + 7 * 7 + 32)
    assert counted < 5 * 2**22 + 3 * 3000 * 50 * 12 + tables < whole / 2
