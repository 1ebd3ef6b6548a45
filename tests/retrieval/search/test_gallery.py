"""The gallery file: what is written is read, and equal rows are equal bytes."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.search import gallery
from pgfl_jax.retrieval.search.gallery import gallery_table, read_gallery, write_gallery
from pgfl_jax.retrieval.search.pictures import Picture


def test_what_is_written_is_read(make_gallery, unit_rows, tmp_path):
    rows = unit_rows(5, 8)
    found = read_gallery(make_gallery(rows))
    np.testing.assert_array_equal(found.embeddings(), rows)
    assert found.picture(2) == Picture(tmp_path / "2.png", "p2")
    assert len(found) == 5 and found.picture(3).identity is None
    assert found.sha256 == hashlib.sha256(rows.tobytes()).hexdigest()
    assert found.pictures() == {tmp_path / f"{at}.png" for at in range(5)}


def test_other_programs_read_it(make_gallery, unit_rows):
    rows = unit_rows(5, 8)
    table = pd.read_parquet(make_gallery(rows))
    assert table.path.tolist() == [f"{at}.png" for at in range(5)]
    np.testing.assert_array_equal(np.stack(table.embedding), rows)


def test_the_pieces_that_it_is_written_in_do_not_matter(
    make_gallery, unit_rows, tmp_path, monkeypatch
):
    rows = unit_rows(100, 8)
    monkeypatch.setattr(gallery, "_GROUP_BYTES", 32 * 7)  # seven rows in a group
    whole = read_gallery(make_gallery(rows))
    sizes = [0, 1, 3, 10, 11, 60, 100]
    pieces = [
        gallery_table([whole.picture(at) for at in range(start, end)], rows[start:end], tmp_path)
        for start, end in itertools.pairwise(sizes)
    ]
    count = write_gallery(tmp_path / "pieces.parquet", whole.origin, pieces)
    assert count == 100
    assert (tmp_path / "pieces.parquet").read_bytes() == whole.path.read_bytes()
    np.testing.assert_array_equal(whole.embeddings(), rows)


def test_pictures_and_file_move_together(make_gallery, unit_rows, tmp_path):
    path = make_gallery(unit_rows(2, 8))
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    assert read_gallery(moved).picture(1).path == tmp_path / "elsewhere" / "1.png"
    table = gallery_table([Picture(tmp_path / "x.png")], unit_rows(1, 8), tmp_path / "elsewhere")
    assert table["path"][0].as_py() == str(tmp_path / "x.png")  # not below: absolute


def test_embeddings_of_two_networks_are_not_compared(make_gallery, unit_rows):
    origin = read_gallery(make_gallery(unit_rows(2, 8))).origin
    origin.require_same(dataclasses.replace(origin, run="a copy"), "a", "b")
    for change in ({"sha256": "b"}, {"parameters": "average"}):
        with pytest.raises(UserError, match=r"a holds embeddings of .* b of .*cannot be compared"):
            origin.require_same(dataclasses.replace(origin, **change), "a", "b")


def test_damage_is_named(make_gallery, unit_rows, tmp_path):
    path = make_gallery(unit_rows(50, 8))
    content = bytearray(path.read_bytes())
    with pytest.raises(UserError, match=r"x\.parquet: no such file"):
        read_gallery(tmp_path / "x.parquet")
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"crops\.parquet: damaged, or not a Parquet file"):
        read_gallery(path)
    content[len(content) // 2] ^= 1  # in the embeddings, which are most of the file
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"crops\.parquet: damaged, or not a Parquet file"):
        read_gallery(path).embeddings()
    pd.DataFrame({"path": ["a"]}).to_parquet(path)
    with pytest.raises(UserError, match=r"crops\.parquet: no gallery"):
        read_gallery(path)
