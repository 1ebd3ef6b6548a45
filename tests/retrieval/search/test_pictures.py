"""Folders, patterns, lists and tables of pictures."""

import pytest

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.search.pictures import Picture, find_pictures


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a/1.png", "a/deep/2.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found, folder):
    return [picture.path.relative_to(folder).as_posix() for picture in found.pictures]


def test_a_folder_holds_its_pictures_in_order_and_counts_the_rest(folder):
    found = find_pictures([folder])
    assert names(found, folder) == ["a/1.png", "a/deep/2.jpg", "b.jpg"]
    assert (found.others, found.repeated) == (1, 0)


@pytest.mark.parametrize(
    ("pattern", "expected", "others"),
    [
        ("*.jpg", ["b.jpg"], 0),
        ("a/*", ["a/1.png"], 1),
        ("**/*.jpg", ["a/deep/2.jpg", "b.jpg"], 0),
        ("**", ["a/1.png", "a/deep/2.jpg", "b.jpg"], 1),
    ],
)
def test_a_pattern_is_expanded(folder, pattern, expected, others):
    found = find_pictures([folder / pattern])
    assert (names(found, folder), found.others) == (expected, others)


def test_a_picture_whose_name_looks_like_a_pattern_is_a_picture(folder):
    (folder / "[1].jpg").touch()
    assert names(find_pictures([folder / "[1].jpg"]), folder) == ["[1].jpg"]


def test_a_list_is_relative_to_its_folder(folder):
    (folder / "a/list.txt").write_text("1.png\n\n  ../b.jpg \n")
    assert names(find_pictures([folder / "a/list.txt"]), folder) == ["a/1.png", "b.jpg"]


def test_tables_say_who_is_seen(folder):
    (folder / "t.csv").write_text("identity, path,camera,split\n7,b.jpg,c1,query\n,a/1.png,,x\n")
    (folder / "t.jsonl").write_text('{"path": "b.jpg", "identity": 7}\n\n{"path": "a/1.png"}\n')
    assert find_pictures([folder / "t.csv"]).pictures == [
        Picture(folder / "b.jpg", "7", "c1"),
        Picture(folder / "a/1.png"),
    ]
    assert find_pictures([folder / "t.jsonl"]).pictures == [
        Picture(folder / "b.jpg", "7"),
        Picture(folder / "a/1.png"),
    ]


def test_what_is_given_twice_is_embedded_once_and_counted(folder):
    found = find_pictures([folder / "b.jpg", folder, folder / "a/../b.jpg"])
    assert names(found, folder) == ["b.jpg", "a/1.png", "a/deep/2.jpg"]
    assert found.repeated == 2


def test_a_table_labels_the_pictures_of_a_folder(folder):
    (folder / "t.csv").write_text("path,identity\nb.jpg,7\n")
    for given in ([folder, folder / "t.csv"], [folder / "t.csv", folder]):
        found = find_pictures(given)
        assert {one.path.name: one.identity for one in found.pictures}["b.jpg"] == "7"
        assert found.repeated == 1
    (folder / "u.csv").write_text("path,identity\na/../b.jpg,8\n")
    with pytest.raises(UserError, match=r"/b\.jpg: given twice, with identity 7 and 8; leave one"):
        find_pictures([folder / "t.csv", folder / "u.csv"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("*.gif", None, "matches no file"),
        ("a/n*", None, "matches no pictures"),
        ("x.csv", None, "no such file"),
        ("x.csv", "file,identity\nb.jpg,1\n", "no column path; it has file, identity"),
        ("x.csv", "path,identity\n,1\n", "line 2: no path"),
        ("x.csv", "path\n", "lists no pictures"),
        ("x.csv", "path,identity,identity\nb.jpg,1,2\n", "the column identity occurs twice"),
        ("x.csv", "path,identity\nb.jpg,NaN\n", "identity is 'NaN', as tools write a missing"),
        ("x.jsonl", '{"path": "b.jpg", "camera": NaN}', "camera nan is neither text nor a whole"),
        ("x.jsonl", '{"path": "b.jpg", "identity": false}', "identity False is neither text nor"),
        ("x.txt", "\n", "lists no pictures"),
        ("x.jsonl", "{\n", "line 1: broken JSON"),
        ("x.jsonl", '{"path": 1}\n', "line 1: not an object with a path"),
        ("x.csv", b"path\n\xff.jpg\n", "not UTF-8"),
    ],
)
def test_a_broken_source_is_named(folder, name, content, message):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        find_pictures([folder / name])
    assert str(folder / name) in str(error.value)
