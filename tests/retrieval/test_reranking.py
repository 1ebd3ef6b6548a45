import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from pgfl_jax.distributed import collectives
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval import blocks, k_reciprocal_distances, reranking
from pgfl_jax.retrieval.reranking import k_reciprocal_blocks


def plain(query, gallery, k1, k2, lambda_value):
    """The published algorithm with whole matrices and loops; ties by index."""
    rows = np.concatenate([query, gallery])
    squares = (rows**2).sum(axis=1)
    d = np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0)
    largest = d.max(axis=1)
    d = d / np.where(largest == 0, 1, largest)[:, None]
    order = np.argsort(d, axis=1, kind="stable")

    def reciprocal(i, k):
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(axis=1)].tolist()

    encodings = np.zeros_like(d)
    for i in range(len(rows)):
        expanded = found = reciprocal(i, k1)
        for candidate in found:
            half = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(set(half) & set(found)) > 2 / 3 * len(half):
                expanded = expanded + half
        members = np.unique(expanded).astype(int)
        weights = np.exp(-d[i, members])
        encodings[i, members] = weights / weights.sum()
    if k2 != 1:
        encodings = np.stack([encodings[near[:k2]].mean(axis=0) for near in order])
    result = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        shared = np.minimum(encodings[i], encodings[len(query) :]).sum(axis=1)
        jaccard = 1 - shared / (2 - shared)
        result[i] = (1 - lambda_value) * jaccard + lambda_value * d[i, len(query) :]
    return result


def problem(seed):
    """Embeddings, of a third of the seeds with ties and duplicates, and options."""
    rng = np.random.default_rng(seed)
    queries, gallery, channels = rng.integers(1, 12), rng.integers(1, 60), rng.integers(1, 6)
    rows = rng.normal(size=(queries + gallery, channels))
    rows = np.round(rows) if seed % 3 == 0 else rows
    rows = rows.astype(np.float64 if seed % 2 else np.float32)
    options = {"k1": int(rng.integers(1, 30)), "k2": int(rng.integers(1, 9))}
    return rows[:queries], rows[queries:], options | {"lambda_value": float(rng.random())}


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_it_equals_the_plain_algorithm(first, monkeypatch):
    for seed in range(first, first + 50):
        query, gallery, options = problem(seed)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 400 if seed % 4 == 0 else 2**28)
        found = k_reciprocal_distances(query, gallery, **options)
        assert found.dtype == query.dtype
        tolerance = 2e-6 if found.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(found, plain(query, gallery, **options), atol=tolerance)


def test_the_defaults_on_people_seen_several_times():
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 16)), 8, axis=0) + 0.7 * rng.normal(size=(320, 16))
    rows = rng.permuted(rows, axis=0).astype(np.float32)
    expected = plain(rows[:60], rows[60:], 20, 6, 0.3)
    np.testing.assert_allclose(k_reciprocal_distances(rows[:60], rows[60:]), expected, atol=2e-6)


def test_equal_embeddings_and_a_single_pair():
    # All are at distance 0, so that each has the first k + 1 by index as neighbours.
    ones = np.ones((5, 3), np.float32)
    found = k_reciprocal_distances(ones[:2], ones[2:], k1=2, k2=1)
    np.testing.assert_allclose(found, plain(ones[:2], ones[2:], 2, 1, 0.3), atol=1e-6)
    pair = k_reciprocal_distances([[0.0, 1.0]], [[1.0, 0.0]])
    # Both see both: V = (1, 1/e) and (1/e, 1), each over their sum; then the mean of the two.
    np.testing.assert_allclose(pair, [[0.3]])


def test_embeddings_far_from_zero_keep_their_distances():
    rng = np.random.default_rng(2)
    rows = np.repeat(rng.normal(size=(12, 8)), 5, axis=0) + 0.3 * rng.normal(size=(60, 8))
    for offset in (1e3, 1e5):  # |q|² + |g|² − 2 q·g of these would round to 0.5 and 4,000
        moved = (rows + offset).astype(np.float32)
        found = k_reciprocal_distances(moved[:20], moved[20:], k1=6, k2=3)
        expected = plain(*(np.float64(part) for part in (moved[:20], moved[20:])), 6, 3, 0.3)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_blocks_are_the_rows(monkeypatch):
    query, gallery, options = problem(4)
    whole = k_reciprocal_distances(query, gallery, **options)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    parts = [*k_reciprocal_blocks(query, gallery, **options)]
    assert [part.shape for part in parts] == [(1, len(gallery))] * len(query)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [[0.0, np.nan]]}, "row 0 of query is not finite"),
        ({"gallery": [[0.0, 1.0], [np.inf, 0.0]]}, "row 1 of gallery is not finite"),
        (
            {"query": np.float32([[0, 2e-22]]), "gallery": np.float32([[1, 0]])},
            "row 0 of query has a length of 2",
        ),
        ({"gallery": [[1.0]]}, "query and gallery have rows of 2 and 1 numbers"),
        ({"query": [["1", "0"]]}, "query are <U1; expected an array of real numbers"),
        ({"query": np.ma.masked_less([[1.0, 0.0]], 0.5)}, "query hold masked values"),
        ({"gallery": np.empty((0, 2))}, r"gallery has shape \(0, 2\); expected"),
        ({"k1": 0}, "k1=0, k2=6, lambda_value=0.3; re-ranking needs"),
        ({"k2": 0}, "k1=20, k2=0"),
        ({"lambda_value": 1.5}, "lambda_value=1.5"),
    ],
)
def test_what_means_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        k_reciprocal_distances(**{"query": [[0.0, 1.0]], "gallery": [[1.0, 0.0]]} | change)


def test_too_little_memory_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(reranking, "_available_bytes", lambda: 2**20)
    with pytest.raises(UserError) as error:
        k_reciprocal_distances(np.zeros((10, 2)), np.zeros((2000, 2)))
    assert re.fullmatch(
        r"re-ranking 2,010 images needs 0\.0 GiB of memory beside the embeddings, and 0\.0 GiB are "
        "available", str(error.value),
    )  # fmt: skip


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    need = reranking.check_memory(1000, 29000)
    monkeypatch.setattr(reranking, "_available_bytes", lambda: 3 * need)
    assert reranking.check_memory(1000, 29000, processes=3) == need
    with pytest.raises(UserError, match=r"0\.2 GiB of memory in each of 4 processes beside"):
        reranking.check_memory(1000, 29000, processes=4)

    monkeypatch.setattr(jax, "process_count", lambda: 5)
    hosts = [collectives._digest(name) for name in ("a", "b", "a", "a", "c")]
    monkeypatch.setattr(
        collectives.multihost_utils, "process_allgather", lambda own: np.stack([*hosts[:4], own])
    )
    monkeypatch.setattr(collectives.platform, "node", lambda: "a")
    assert collectives.processes_here() == 4


def test_what_takes_long_is_said_beforehand(monkeypatch, capsys):
    monkeypatch.setattr(reranking, "_LONG", 0)
    k_reciprocal_distances(*np.random.default_rng(0).normal(size=(2, 30, 4)))
    said = capsys.readouterr().err
    assert re.match(r"re-ranking 60 images: about 0:00 and 0\.0 GiB of memory\n", said), said
    [*k_reciprocal_blocks([[0.0]], [[1.0]], quiet=True)]
    assert capsys.readouterr().err == ""


MEMORY = """
import tracemalloc
import numpy as np
from pgfl_jax.retrieval.reranking import check_memory, k_reciprocal_blocks, k_reciprocal_distances
rng = np.random.default_rng(0)
people = rng.normal(size=(500, 32))[rng.integers(500, size=5000)]
rows = (people + rng.normal(size=(5000, 32))).astype(np.float32)
tracemalloc.start()
result = k_reciprocal_distances(rows[:900], rows[900:])
print(tracemalloc.get_traced_memory()[1])
del result
tracemalloc.reset_peak()
for block in k_reciprocal_blocks(rows[:900], rows[900:]):
    pass
print(tracemalloc.get_traced_memory()[1], check_memory(900, 4100))
"""


def test_memory_is_a_small_part_of_the_matrix():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    whole, streamed, announced = map(int, done.stdout.split())
    assert whole < 5000**2 * 4 / 4
    assert streamed < 5000**2 * 4 / 5
    assert streamed < announced < 2.5 * streamed  # people who overlap take twice as much
