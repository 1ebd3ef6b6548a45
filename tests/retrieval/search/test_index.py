"""``pgfl index``: what it finds against brute force, and how it keeps up with its gallery."""

import json
import resource
import signal

import numpy as np
import pytest

from pgfl_jax import cli
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.search.gallery import gallery_table, read_gallery, write_gallery
from pgfl_jax.retrieval.search.index import build_index, search_index
from pgfl_jax.retrieval.search.pictures import Picture

pytest.importorskip("faiss")


def brute_force(queries, rows, top):
    return np.argsort(-(queries.astype(np.float64) @ rows.T.astype(np.float64)), axis=1)[:, :top]


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_what_the_index_finds(kind, make_gallery, unit_rows):
    rows, queries = unit_rows(2100, 16), unit_rows(100, 16, seed=1)
    gallery = read_gallery(make_gallery(rows[:2000]))
    built = build_index(gallery, kind=kind)
    assert (built.kind, built.pictures) == (kind, 2000)
    found, description = search_index(gallery, queries, 10)
    assert description == built
    expected = brute_force(queries, rows[:2000], 10)
    same = [len(set(a) & set(b)) / 10 for a, b in zip(found.indices, expected, strict=True)]
    # Of queries that the recall was not measured with.
    assert np.mean(same) > (0.999 if kind == "exact" else 0.97)
    products = np.einsum("qd,qtd->qt", queries, rows[found.indices])
    np.testing.assert_allclose(found.distances, 1 - products, atol=1e-6)
    assert built.recall >= 0.99 and built.queries == 200


def test_the_recall_is_measured_as_said(make_gallery, unit_rows, monkeypatch):
    rows = unit_rows(2000, 16)
    gallery = read_gallery(make_gallery(rows))
    built = build_index(gallery, kind="ivf", recall=0.0)  # the least effort: one cell
    assert built.effort == 1
    sample = np.sort(np.random.default_rng(1).permutation(2000)[:200])
    found, _ = search_index(gallery, rows[sample], 11)
    expected = brute_force(rows[sample], rows, 11)
    shares = [
        len((set(a) & set(b)) - {own}) / 10
        for a, b, own in zip(found.indices, expected, sample, strict=True)
    ]
    assert built.recall == pytest.approx(np.mean(shares), abs=1e-3)
    assert built.recall < 0.9


def test_the_index_keeps_up_with_its_gallery(make_gallery, unit_rows, tmp_path, capsys):
    rows = unit_rows(120, 16)
    gallery = read_gallery(make_gallery(rows[:100]))
    assert cli.main(["index", str(gallery.path), "--kind=hnsw"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("hnsw index of 100 pictures: recall of the nearest 10 1.0000 against")
    more = gallery_table(
        [Picture(tmp_path / f"+{at}.png") for at in range(20)], rows[100:], tmp_path
    )
    write_gallery(gallery.path, gallery.origin, [*gallery.tables(), more])
    gallery = read_gallery(gallery.path)
    with pytest.raises(UserError, match=r"crops\.parquet has changed since; bring it up to date"):
        search_index(gallery, rows[:1], 3)
    assert build_index(gallery).kind == "hnsw"  # as it was; 120 alone would be exact
    found, description = search_index(gallery, rows[100:], 1)
    assert found.indices[:, 0].tolist() == [*range(100, 120)] and description.pictures == 120
    stored = json.loads((tmp_path / "crops.index/index.json").read_text())
    assert stored["recall"] == description.recall == 1.0
    # Other rows in the place of the old ones: built again.
    write_gallery(gallery.path, gallery.origin, [more])
    gallery = read_gallery(gallery.path)
    assert build_index(gallery).kind == "exact"
    assert search_index(gallery, rows[100:], 1)[0].indices[:, 0].tolist() == [*range(20)]


def test_an_index_that_cannot_be_used_is_named(make_gallery, unit_rows, tmp_path):
    gallery = read_gallery(make_gallery(unit_rows(20, 16)))
    with pytest.raises(UserError, match=r"crops\.index: no index; build it with pgfl index"):
        search_index(gallery, gallery.embeddings(), 3)
    build_index(gallery)
    (tmp_path / "crops.index" / "index.faiss").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"crops\.index: damaged; remove it"):
        search_index(gallery, gallery.embeddings(), 3)
    few = read_gallery(make_gallery(unit_rows(10, 16), name="few"))
    with pytest.raises(UserError, match=r"few\.parquet: 10 pictures need no index"):
        build_index(few)


def test_a_full_disk_leaves_the_index_that_was_there(make_gallery, unit_rows, tmp_path, capsys):
    rows = unit_rows(120, 16)
    gallery = read_gallery(make_gallery(rows[:60]))
    build_index(gallery, kind="exact")
    more = gallery_table(
        [Picture(tmp_path / f"+{at}.png") for at in range(60)], rows[60:], tmp_path
    )
    write_gallery(gallery.path, gallery.origin, [*gallery.tables(), more])
    before = {path.name: path.read_bytes() for path in (tmp_path / "crops.index").iterdir()}
    # 7,725 bytes, of which the C library writes the last 3,629 when FAISS closes the file.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        assert cli.main(["index", str(gallery.path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in capsys.readouterr().err
    folder = tmp_path / "crops.index"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
