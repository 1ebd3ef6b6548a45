import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pgfl_jax.config import EvalConfig
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval import evaluate_retrieval, rank
from pgfl_jax.retrieval.protocols import Images, Protocol, fingerprint
from pgfl_jax.retrieval.queries import encode_queries, read_queries
from pgfl_jax.retrieval.query_results import query_results
from pgfl_jax.retrieval.ranking import rank_protocol
from pgfl_jax.retrieval.results import protocol_facts

ORIGIN = {"step": 7, "embedding": "main", "parameters": "trained"}


def _images(count, prefix, rng, occlusion=None):
    return Images(
        np.array([f"{prefix}/{i}.jpg" for i in range(count)], object),
        rng.integers(5, size=count),
        rng.integers(3, size=count),
        np.full(count, np.nan, np.float32) if occlusion is None else occlusion,
    )


def _results(num_query=20, num_gallery=64, seed=0):
    """Random embeddings with ties, some identities without matches."""
    rng = np.random.default_rng(seed)
    occlusion = np.where(rng.random(num_query) < 0.5, np.nan, 0.25).astype(np.float32)
    query, gallery = (
        _images(num_query, "q", rng, occlusion),
        _images(num_gallery, "g", rng),
    )
    query.identities[0] = 99  # skipped
    rows = {
        "query": np.eye(8, dtype=np.float32)[rng.integers(8, size=num_query)],
        "gallery": np.eye(8, dtype=np.float32)[rng.integers(8, size=num_gallery)],
    }
    protocol, splits = (
        Protocol("toy", "by chance", "query", "gallery"),
        {"query": query, "gallery": gallery},
    )
    ranked = rank_protocol(rows, protocol, splits, max_rank=20)
    facts = protocol_facts(protocol, splits, EvalConfig(), rerank=False, **ORIGIN)
    results = query_results(query, gallery, ranked.metrics, ranked.nearest, facts)
    return results, rows, splits


def _reversed(images):
    parts = images.filenames, images.identities, images.cameras, images.occlusion
    return Images(*(part[::-1] for part in parts))


@pytest.mark.parametrize("num_gallery", [64, 30])
def test_what_is_written_is_what_a_reader_finds(tmp_path, num_gallery):
    results, rows, splits = _results(num_gallery=num_gallery)
    query, gallery = splits["query"], splits["gallery"]
    (tmp_path / "toy.queries.parquet").write_bytes(encode_queries(results))
    found = read_queries(tmp_path / "toy.queries.parquet")
    metrics = evaluate_retrieval(
        1 - rows["query"] @ rows["gallery"].T,
        query.identities, gallery.identities, query.cameras, gallery.cameras,
    )  # fmt: skip
    np.testing.assert_array_equal(found.average_precision, metrics.average_precision)
    np.testing.assert_array_equal(found.first_match_rank, metrics.first_match_rank)
    assert np.isnan(found.average_precision[0])
    nearest = rank(rows["query"], rows["gallery"], top=50)
    np.testing.assert_array_equal(found.nearest.indices, nearest.indices)
    np.testing.assert_array_equal(found.nearest.distances, nearest.distances)
    assert found.nearest.distances.dtype == np.float32
    for name in ("filenames", "identities", "cameras", "occlusion"):
        np.testing.assert_array_equal(getattr(found.query, name), getattr(query, name))
    for row in range(len(query)):
        relations = [
            "impostor" if gallery.identities[item] != query.identities[row]
            else "junk" if gallery.cameras[item] == query.cameras[row]
            else "match"
            for item in range(num_gallery)
        ]  # fmt: skip
        top = nearest.indices[row]
        assert found.relations[row].tolist() == [relations[item] for item in top]
        assert found.filenames[row].tolist() == [f"g/{item}.jpg" for item in top]
        assert found.cameras[row].tolist() == gallery.cameras[top].tolist()
        assert found.num_matches[row] == relations.count("match")
        assert found.num_junk[row] == relations.count("junk")
    assert found.facts == results.facts


def test_the_columns_are_those_that_are_documented(tmp_path):
    path = tmp_path / "toy.queries.parquet"
    path.write_bytes(encode_queries(_results()[0]))
    table = pyarrow.parquet.read_table(path)
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "query": "int32",
        "filename": "string",
        "identity": "int64",
        "camera": "int64",
        "occlusion": "float",
        "num_matches": "int32",
        "num_junk": "int32",
        "average_precision": "double",
        "first_match_rank": "int32",
        "top_index": "list<element: int32>",
        "top_filename": "list<element: string>",
        "top_identity": "list<element: int64>",
        "top_camera": "list<element: int64>",
        "top_distance": "list<element: float>",
        "top_relation": "list<element: string>",
    }
    for name in ("occlusion", "average_precision", "first_match_rank"):
        assert table[name].null_count > 0
    assert table["average_precision"].null_count == table["first_match_rank"].null_count


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, content):
    path = tmp_path / "toy.queries.parquet"
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"toy\.queries\.parquet: damaged, or not the queries"):
        read_queries(path)


def test_a_fingerprint_changes_with_what_is_ranked():
    protocol = Protocol("toy", "by chance", "query", "gallery")
    _, _, splits = _results()
    first = fingerprint(protocol, splits)
    assert (first["num_query"], first["num_gallery"]) == (20, 64)
    assert fingerprint(protocol, _results()[2]) == first
    others = [
        {**splits, "gallery": splits["gallery"].select(np.arange(64) > 0)},
        {**splits, "gallery": _reversed(splits["gallery"])},
        {**splits, "query": splits["gallery"], "gallery": splits["query"]},
    ]
    seen = {fingerprint(protocol, other)["sha256"] for other in others}
    splits["query"].cameras[3] += 1
    seen |= {first["sha256"], fingerprint(protocol, splits)["sha256"]}
    assert len(seen) == 5
