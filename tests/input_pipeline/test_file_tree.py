import io
import pickle
import re
import zipfile

import pytest

from input_pipeline import file_tree
from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree
from tests.input_pipeline.trees import write_bytes

FILES = {"a/query/1.jpg": b"one", "a/query/sub/2.jpg": b"two", "a/list.txt": b"three"}


@pytest.fixture(autouse=True)
def closed_archives():
    yield
    file_tree.close_archives()


def archive(files, **options):
    """A zip archive's bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return stream.getvalue()


def contents(tree):
    return {path: tree.read(path) for path in tree.files}


def test_a_folder(tmp_path):
    for path, data in FILES.items():
        write_bytes(tmp_path / path, data)
    (tmp_path / "empty").mkdir()
    tree = FileTree.scan(tmp_path)
    assert contents(tree) == FILES
    assert list(tree.files) == ["a/list.txt", "a/query/1.jpg", "a/query/sub/2.jpg"]
    assert tree.folders == {"", "a", "a/query", "a/query/sub", "empty"}
    assert tree.files_in("a/query") == ["1.jpg", "sub/2.jpg"]
    assert tree.files_in("") == list(tree.files)
    assert tree.files_in("a/que") == []
    assert tree.display("a") == f"{tmp_path}/a" and tree.display("") == str(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive(compression, tmp_path):
    file = tmp_path / "set.zip"
    file.write_bytes(archive({**FILES, "a/empty/": b""}, compression=compression))
    tree = FileTree.scan(file)
    assert contents(tree) == FILES
    assert tree.folders == {"", "a", "a/query", "a/query/sub", "a/empty"}


def test_archives_in_a_folder_and_in_archives(tmp_path):
    inner = archive(FILES)
    write_bytes(tmp_path / "x/outer.ZIP", archive({"y/inner.zip": inner, "z.txt": b"z"}))
    write_bytes(tmp_path / "top.txt", b"top")
    tree = FileTree.scan(tmp_path)
    assert contents(tree) == {
        "top.txt": b"top",
        "x/outer.ZIP": (tmp_path / "x/outer.ZIP").read_bytes(),
        "x/outer.ZIP/z.txt": b"z",
        "x/outer.ZIP/y/inner.zip": inner,
        **{f"x/outer.ZIP/y/inner.zip/{path}": data for path, data in FILES.items()},
    }
    assert {"x/outer.ZIP", "x/outer.ZIP/y", "x/outer.ZIP/y/inner.zip/a/query"} <= tree.folders
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["outer.ZIP", "top.txt", "x"]


def test_locations_can_be_read_by_another_process(tmp_path):
    write_bytes(tmp_path / "o.zip", archive({"i.zip": archive({"f": b"data"})}))
    location = FileTree.scan(tmp_path).files["o.zip/i.zip/f"]
    assert location == (str(tmp_path / "o.zip"), "i.zip", "f")
    file_tree.close_archives()  # another process has none open
    assert file_tree.read_file(pickle.loads(pickle.dumps(location))) == b"data"


def test_the_parts_of_a_download_are_one_tree(tmp_path):
    first, second = dict(list(FILES.items())[:2]), dict(list(FILES.items())[2:])
    write_bytes(tmp_path / "in/set-001.zip", archive(first))
    write_bytes(tmp_path / "in/set-002.ZIP", archive(second))
    write_bytes(tmp_path / "in/sets-003.zip", archive({"a/other.txt": b"4"}))
    packed = archive({"set-002.zip": archive(second), "set-001.zip": archive(first)})
    write_bytes(tmp_path / "out.zip", packed)
    unpacked = {
        path: data
        for path, data in contents(FileTree.scan(tmp_path / "in")).items()
        if not path.lower().endswith(".zip")
    }
    # The suffix's case differs between parts, and sets-003.zip is no part.
    assert unpacked == {
        **{f"set-001.zip/{path}": data for path, data in first.items()},
        **{f"set-002.ZIP/{path}": data for path, data in second.items()},
        "sets-003.zip/a/other.txt": b"4",
    }
    (tmp_path / "in/set-002.ZIP").rename(tmp_path / "in/set-002.zip")
    tree = FileTree.scan(tmp_path / "in")
    assert tree.files_in("set-001.zip") == sorted(FILES)
    assert {path: tree.read(f"set-001.zip/{path}") for path in FILES} == FILES
    assert tree.files_in("set-002.zip") == []
    for part in ("set-001.zip", "set-002.zip"):  # one part given stands for all
        assert contents(FileTree.scan(tmp_path / "in" / part)) == FILES
    nested = FileTree.scan(tmp_path / "out.zip")
    assert nested.files_in("set-002.zip") == sorted(FILES)  # the first in the archive's order


def test_archives_with_a_file_in_common_are_not_parts(tmp_path):
    for number, text in ((1, b"old"), (2, b"new")):
        write_bytes(tmp_path / f"set-00{number}.zip", archive({"a.txt": text, f"{number}": b""}))
    write_bytes(tmp_path / "set-003.zip", b"no zip")
    tree = FileTree.scan(tmp_path)
    assert tree.read("set-001.zip/a.txt") == b"old" and tree.read("set-002.zip/a.txt") == b"new"
    assert list(tree.problems) == ["set-003.zip"]
    assert list(FileTree.scan(tmp_path / "set-002.zip").files) == ["2", "a.txt"]


def compressed_by(method, name, data):
    """An archive of one file that claims a compression."""
    packed = bytearray(archive({name: data}))
    for place in (8, packed.rindex(b"PK\1\2") + 10):
        packed[place : place + 2] = method.to_bytes(2, "little")
    return bytes(packed)


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (98, "PPMd"), (6, "method 6")])
def test_a_compression_that_python_lacks_is_named(method, name, tmp_path):
    write_bytes(tmp_path / "set.zip", compressed_by(method, "a.jpg", b"pixels"))
    remedy = f"which Python cannot read; unpack {tmp_path}/set.zip with 7-Zip or unzip, and give"
    expected = f"{tmp_path}/set.zip/a.jpg: compressed by {name}, {remedy}"
    with pytest.raises(DataError, match=f"^{re.escape(expected)} the folder$"):
        FileTree.scan(tmp_path / "set.zip").read("a.jpg")
    write_bytes(tmp_path / "out.zip", compressed_by(method, "in.zip", archive(FILES)))
    problem = FileTree.scan(tmp_path / "out.zip").problems["in.zip"]
    assert problem.startswith(expected.replace("set.zip", "out.zip").replace("a.jpg", "in.zip"))


def test_unwanted_archives_stay_closed(tmp_path):
    write_bytes(tmp_path / "no.zip", b"not even a zip")
    write_bytes(tmp_path / "yes.zip", archive({"no.zip": b"nor this", "f": b"1"}))
    tree = FileTree.scan(tmp_path, lambda path: "no" not in path)
    assert list(tree.files) == ["no.zip", "yes.zip", "yes.zip/f", "yes.zip/no.zip"]
    assert not tree.problems


def test_files_of_operating_systems_are_ignored(tmp_path):
    junk = {
        "__MACOSX/a/1.jpg": b"",
        "a/.DS_Store": b"",
        "a/THUMBS.DB": b"",
        "a/Thumbs.db": b"",
        "a/._1.jpg": b"",
    }
    for path, data in {**junk, "a/1.jpg": b"1", "a/.hidden/2.jpg": b"2"}.items():
        write_bytes(tmp_path / "in" / path, data)
    write_bytes(tmp_path / "in.zip", archive({**junk, "a/1.jpg": b"1", "a/.hidden/2.jpg": b"2"}))
    for source in (tmp_path / "in", tmp_path / "in.zip"):
        tree = FileTree.scan(source)
        assert list(tree.files) == ["a/.hidden/2.jpg", "a/1.jpg"]
        assert tree.folders == {"", "a", "a/.hidden"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_may_occur_twice_with_the_same_contents_only(tmp_path):
    packed = tmp_path / "set.zip"
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, data in (("a/1.jpg", b"one"), ("a\\1.jpg", b"one"), ("a/1.jpg", b"one")):
            zipped.writestr(name, data)
    assert contents(FileTree.scan(packed)) == {"a/1.jpg": b"one"}
    file_tree.close_archives()
    with zipfile.ZipFile(packed, "a") as zipped:
        zipped.writestr("a/1.jpg", b"other")
    assert FileTree.scan(packed).problems == {
        "": f"{packed}/a/1.jpg: the archive holds it twice, with different contents; unpack it, "
        "keep the right one and give the folder"
    }


def test_backslashes_of_windows(tmp_path):
    data = archive({"a/b.txt": b"1"}).replace(b"a/b.txt", b"a\\b.txt")
    write_bytes(tmp_path / "w.zip", data)
    assert contents(FileTree.scan(tmp_path / "w.zip")) == {"a/b.txt": b"1"}


def test_links_are_followed_but_not_endlessly(tmp_path):
    write_bytes(tmp_path / "far/1.jpg", b"1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/near").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "in")
    assert contents(FileTree.scan(tmp_path / "in")) == {"near/1.jpg": b"1"}


@pytest.mark.parametrize("link", ["a", "z"])
def test_a_link_and_its_target_beside_it_are_both_seen(link, tmp_path):
    write_bytes(tmp_path / "in/m/q/1.jpg", b"1")
    (tmp_path / f"in/{link}").symlink_to(tmp_path / "in/m")
    tree = FileTree.scan(tmp_path / "in")
    assert contents(tree) == {f"{link}/q/1.jpg": b"1", "m/q/1.jpg": b"1"}
    assert tree.distinct(["m/q", f"{link}/q", "m", link]) == ["m/q", "m"]


def test_roots(tmp_path):
    for path in ("a/x/q/1", "a/x/t/w/1", "b/q/1", "q/1", "c/qq/1", "c/t/1"):
        write_bytes(tmp_path / path, b"")
    tree = FileTree.scan(tmp_path)
    assert tree.roots(["q", "t/w"]) == {"": ["t/w"], "a/x": [], "b": ["t/w"]}
    assert tree.roots(["none"]) == {}


def test_an_archive_in_itself_ends(tmp_path):
    data = archive({"f": b""})
    for _ in range(6):
        data = archive({"n.zip": data})
    write_bytes(tmp_path / "n.zip", data)
    depths = [path.count("n.zip") for path in FileTree.scan(tmp_path).files]
    assert max(depths) == 4


def encrypted():
    """An archive whose member carries the flag of encryption."""
    data = bytearray(archive({"f": b"secret"}))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no zip at all", r"bad\.zip: not a readable zip archive \(File is not a zip file\)"),
        (archive({"f": b"1" * 99})[:-30], r"bad\.zip: not a readable zip archive"),
        (encrypted(), r"bad\.zip: encrypted; unpack it and give the folder"),
        (b"", r"bad\.zip: not a readable zip archive"),
        (
            b"<!DOCTYPE html><html>",
            r"bad\.zip: a saved web page, not the file itself; use the page",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", r"bad\.zip: a Git LFS pointer, not the"),
    ],
)
def test_archives_that_cannot_be_opened(data, message, tmp_path):
    write_bytes(tmp_path / "in/bad.zip", data)
    for source in (tmp_path / "in", tmp_path / "in/bad.zip"):
        tree = FileTree.scan(source)
        (problem,) = tree.problems.values()
        assert "\n" not in problem
        with pytest.raises(DataError, match=message):
            raise DataError(problem)
    nested = tmp_path / "nested.zip"
    nested.write_bytes(archive({"bad.zip": data}))
    assert FileTree.scan(nested).problems["bad.zip"].startswith(f"{nested}/bad.zip: ")


def test_an_unreadable_archive_does_not_end_the_scan(tmp_path):
    write_bytes(tmp_path / "a.txt", b"a")
    (tmp_path / "old.zip").symlink_to(tmp_path / "gone")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    tree = FileTree.scan(tmp_path)
    assert tree.read("a.txt") == b"a"
    assert tree.problems == {
        "old.zip": f"{tmp_path}/old.zip: not a readable zip archive (No such file or directory); "
        "get it again"
    }
    with pytest.raises(DataError, match=r"self: cannot be read \(.+\); repair or remove the file"):
        tree.read("self")


def test_an_unreadable_folder_is_a_problem(tmp_path, monkeypatch):
    """Simulated, because root could read it."""
    write_bytes(tmp_path / "shut/f", b"1")
    write_bytes(tmp_path / "f", b"2")
    scandir = file_tree.os.scandir

    def guarded(folder):
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(file_tree.os, "scandir", guarded)
    tree = FileTree.scan(tmp_path)
    assert contents(tree) == {"f": b"2"}
    assert tree.problems == {
        "shut": f"{tmp_path}/shut: cannot be read (Permission denied); allow it"
    }


@pytest.mark.parametrize(
    ("compression", "reason"),
    [
        (zipfile.ZIP_STORED, "Bad CRC-32"),
        (zipfile.ZIP_DEFLATED, "Error -3"),
        (zipfile.ZIP_BZIP2, "Invalid data stream"),
        (zipfile.ZIP_LZMA, "Corrupt input data"),
    ],
)
def test_a_damaged_member_is_named(compression, reason, tmp_path):
    data = bytearray(archive({"a.jpg": bytes(range(256)) * 9}, compression=compression))
    start = data.index(b"a.jpg") + 5
    data[start + 12 : start + 100] = b"\xff" * 88
    file = tmp_path / "set.zip"
    file.write_bytes(data)
    pattern = rf"set\.zip/a\.jpg: cannot be read \({reason}.*\); get the archive again"
    with pytest.raises(DataError, match=pattern):
        FileTree.scan(file).read("a.jpg")


def test_a_member_at_an_impossible_place_is_named(tmp_path):
    """The directory's offset is too large, so the file would start before the archive does."""
    data = bytearray(archive({"a.jpg": b"pixels"}))
    data[-6:-2] = (2 * len(data)).to_bytes(4, "little")
    (tmp_path / "set.zip").write_bytes(data)
    tree = FileTree.scan(tmp_path)
    with pytest.raises(DataError, match=r"/set\.zip/a\.jpg: cannot be read \(.*\); get the arc"):
        tree.read("set.zip/a.jpg")


def test_a_member_without_a_name_is_left_out(tmp_path):
    (tmp_path / "set.zip").write_bytes(archive({"X": b"1", "f": b"2"}).replace(b"X", b"\0"))
    assert contents(FileTree.scan(tmp_path / "set.zip")) == {"f": b"2"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "config.data.manual_dir: no folder or zip archive .*none"),
        ("a.tar.gz", r"a\.tar\.gz: only zip archives can be read; unpack it"),
        ("a.tar.zst", r"a\.tar\.zst: only zip archives can be read; unpack it"),
        ("a.TBZ2", r"a\.TBZ2: only zip archives can be read; unpack it"),
        ("a.zip.001", r"a\.zip\.001: part of a split archive; join and unpack"),
        ("a.z01", r"a\.z01: part of a split archive; join and unpack"),
        ("a.zip.crdownload", r"a\.zip\.crdownload: a download that has not ended; get it"),
        ("a.zip.part", r"a\.zip\.part: a download that has not ended; get it again"),
        ("a.jpg", r"a\.jpg: neither a folder nor a zip archive"),
    ],
)
def test_sources_that_are_neither_folder_nor_archive(name, message, tmp_path):
    if name != "none":
        write_bytes(tmp_path / name, b"?")
    with pytest.raises(DataError, match=message):
        FileTree.scan(tmp_path / name)
