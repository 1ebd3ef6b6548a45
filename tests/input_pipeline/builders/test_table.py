"""A user's own data: a table as CSV or JSON lines."""

import hashlib
import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders import load_builder, prepared_builder
from input_pipeline.builders.table import reader
from input_pipeline.builders.table.names import alike
from input_pipeline.builders.table.reader import read_table
from input_pipeline.catalog import read_catalog
from input_pipeline.errors import DataError
from tests.input_pipeline.trees import encoded_picture, picture, write_bytes

POSE = [[float(joint), 2.5 * joint, joint / 20] for joint in range(17)]
FLAT = [number for joint in POSE for number in joint]
IMAGES = ("a/1.jpg", "a/2.JPG", "b/3.png", "b/4.bmp")

CSV = """path,identity,camera,split
a/1.jpg,anna,north,train
a/2.JPG,10,south,train
b/3.png,9,north,query
b/4.bmp,9,10,gallery
"""
JSON_LINES = """
{"path": "a/1.jpg", "identity": "anna", "camera": "north", "split": "train"}
{"path": "a/2.JPG", "identity": 10, "camera": "south", "split": "train"}
{"path": "b/3.png", "identity": 9, "camera": "north", "split": "query"}
{"path": "b/4.bmp", "identity": "9", "camera": 10, "split": "gallery"}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the images of the tables."""
    for path in IMAGES:
        write_bytes(tmp_path / "in" / path, encoded_picture(path))
    return tmp_path / "in"


def prepare(folder, name="mine"):
    return prepared_builder(f"table/{name}", str(folder.parent / "out"), str(folder))


def rows(builder):
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        (split, row["filename"].decode()): row
        for split in builder.info.splits
        for row in tfds.as_numpy(builder.as_dataset(split=split, decoders=skip))
    }


def with_columns(**values):
    """A CSV of one image with further columns."""
    cells = {"path": "a/1.jpg", "identity": "1", "camera": "1", "split": "train", **values}
    quoted = ['"' + str(cell).replace('"', '""') + '"' for cell in cells.values()]
    return ",".join(cells) + "\n" + ",".join(quoted) + "\n"


@pytest.mark.parametrize(("suffix", "text"), [("csv", CSV), ("jsonl", JSON_LINES)])
def test_a_table_becomes_a_data_set(suffix, text, folder):
    (folder / f"mine.{suffix}").write_text(text)
    builder = prepare(folder)
    stored = rows(builder)
    # Names are numbered in the order of their text: "10" < "9" < "anna".
    assert {key: (row["identity"], row["camera"]) for key, row in stored.items()} == {
        ("train", "a/1.jpg"): (2, 1),
        ("train", "a/2.JPG"): (0, 2),
        ("query", "b/3.png"): (1, 1),
        ("gallery", "b/4.bmp"): (1, 0),
    }
    for split, path in list(stored)[:3]:
        if not path.endswith("bmp"):
            assert stored[split, path]["image"] == encoded_picture(path)
    bmp = stored["gallery", "b/4.bmp"]["image"]
    assert bmp.startswith(b"\x89PNG")
    decoded = cv2.imdecode(np.frombuffer(bmp, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, picture("b/4.bmp"))
    metadata = builder.info.metadata
    assert metadata["identities"] == ["10", "9", "anna"]
    assert metadata["cameras"] == ["10", "north", "south"]
    digest = hashlib.sha256(b'["10", "9", "anna"]').hexdigest()
    assert metadata["identity_map_sha256"] == digest
    assert metadata["source"] == str(folder) and metadata["warnings"] == []
    assert set(builder.info.features) == {"image", "identity", "camera", "filename"}


@pytest.mark.parametrize(
    "text",
    [
        with_columns(keypoints=json.dumps(FLAT), occlusion=0.25),
        with_columns(keypoints=json.dumps(POSE), occlusion="0.25"),
        with_columns(keypoints=" ".join(map(str, FLAT)), occlusion=" 0.25 "),
        with_columns(keypoints=json.dumps(FLAT), occlusion=0.25)
        .replace('","', '"; "')
        .replace(",keypoints", ',"keypoints"')
        .replace("path,identity,camera,split,", '"path"; "identity"; "camera"; "split"; ')
        .replace('"keypoints",occlusion', '"keypoints"; "occlusion"'),
        "\ufeff" + with_columns(keypoints=json.dumps(FLAT), occlusion=0.25),
        with_columns(keypoints=" ".join(map(str, FLAT)), occlusion=0.25).replace(",", ";"),
    ],
    ids=["flat", "nested", "blanks", "quoted and spaced", "byte-order mark", "semicolons"],
)
def test_poses_and_occlusion_in_csv(text, folder):
    (folder / "mine.csv").write_text(text, encoding="utf-8")
    (row,) = rows(prepare(folder)).values()
    np.testing.assert_array_equal(row["keypoints"], np.float32(POSE))
    assert row["keypoints"].dtype == np.float32 and row["occlusion"] == np.float32(0.25)


def test_poses_and_occlusion_in_json_lines_may_be_missing(folder):
    common = {"identity": 1, "camera": 1, "split": "query_hard"}
    entries = [
        {"path": "a/1.jpg", "keypoints": FLAT, "occlusion": 1, **common},
        {"path": "a/2.JPG", "keypoints": POSE, "occlusion": None, **common},
        {"path": "b/3.png", "keypoints": [], **common},
        {"path": "b/4.bmp", **common},
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, entries)))
    stored = {path: row for (_, path), row in rows(prepare(folder)).items()}
    for path in ("a/1.jpg", "a/2.JPG"):
        np.testing.assert_array_equal(stored[path]["keypoints"], np.float32(POSE))
    for path in ("b/3.png", "b/4.bmp"):
        np.testing.assert_array_equal(stored[path]["keypoints"], np.zeros((17, 3)))
    occlusion = [stored[path]["occlusion"] for path in IMAGES]
    np.testing.assert_array_equal(occlusion, [1, np.nan, np.nan, np.nan])


def test_absolute_paths_and_the_same_image_in_two_splits(folder):
    path = folder / "a/1.jpg"
    (folder / "mine.csv").write_text(
        f"path,identity,camera,split\n{path},1,1,query\n{path},1,2,gallery\n"
    )
    assert set(rows(prepare(folder))) == {("query", str(path)), ("gallery", str(path))}


def test_a_change_is_never_mistaken_for_an_old_preparation(folder):
    file = folder / "mine.csv"
    file.write_text(CSV)
    versions = [prepare(folder).version]
    assert prepare(folder).version == versions[0]
    file.write_text(CSV.replace("anna", "anne"))
    versions.append(prepare(folder).version)
    image, status = folder / "a/1.jpg", (folder / "a/1.jpg").stat()
    other = bytearray(image.read_bytes())
    other[-10] ^= 1  # of the same size, with the same time
    image.write_bytes(other)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    versions.append(prepare(folder).version)
    assert rows(prepare(folder))["train", "a/1.jpg"]["image"] == other
    assert len(set(versions)) == 3


def test_equal_contents_are_equal_data_at_any_time_and_place(folder, tmp_path):
    (folder / "mine.csv").write_text(CSV)
    version = prepare(folder).version
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/a/1.jpg", ns=(1, 1))
    assert prepare(tmp_path / "copy").version == version
    assert len(list((tmp_path / "out/table/mine").iterdir())) == 1


@pytest.mark.parametrize("many", [1, 4])
def test_comparing_many_images_shows_a_bar(many, folder, monkeypatch):
    shown = []
    monkeypatch.setattr(reader, "_MANY_IMAGES", many)
    monkeypatch.setattr(reader, "progress", lambda files, task: shown.extend(files) or files)
    (folder / "mine.csv").write_text(CSV)
    read_table(folder / "mine.csv")
    assert shown == ([str(folder / path) for path in IMAGES] if many == 1 else [])


def row(**changes):
    entry = {"path": "a/1.jpg", "identity": "1", "camera": "1", "split": "train", **changes}
    return json.dumps(entry)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("csv", "path,identity,camera\na/1.jpg,1,1\n", "line 1: no column split"),
        ("csv", with_columns(pose="1"), "line 1: unknown column 'pose'; known: path, identity"),
        ("csv", CSV.replace("split\n", "split,path\n", 1), "line 1: a column occurs twice"),
        ("csv", CSV.replace(",south,", ",,"), "line 3: camera is empty"),
        ("csv", CSV.replace(",10,s", ",,s"), "line 3: identity is empty"),
        (
            "csv",
            CSV.replace("anna", "nan"),
            "line 2: identity is 'nan', as tools write a missing",
        ),
        ("csv", CSV.replace("south", "NaN"), "line 3: camera is 'NaN', as tools write a missing"),
        ("csv", CSV.replace("query", "<NA>"), "line 4: split is '<NA>', as tools write a missin"),
        ("csv", CSV.replace("b/4.bmp", "None"), "line 5: path is 'None', as tools write a missi"),
        ("jsonl", row(identity="NAN"), "line 1: identity is 'NAN', as tools write a missing value"),
        ("jsonl", row(identity=float("nan")), "line 1: identity must be a string or a whole numb"),
        *(
            ("csv", CSV.replace("south", word), f"line 3: camera is '{word}', as tools write")
            for word in ("NULL", "null", "N/A", "NA")
        ),
        *(
            ("csv", CSV.replace("anna", word), f"line 2: identity is '{re.escape(word)}', as a spr")
            for word in ("#N/A", "#NV", "#REF!", "#NAME?", "#DIV/0!", "#BEZUG!", "#ÜBERLAUF!")
        ),
        ("csv", CSV.replace("b/4.bmp", "#N/A"), "line 5: path is '#N/A', as a spreadsheet marks"),
        *(
            (
                "csv",
                CSV.replace("anna", f'"{word}"'),
                rf"line 2: identity is '{re.escape(word)}', as spreadsheets shorten long numbers",
            )
            for word in ("1.2E+12", "1,2E+12", "1E+05", "1e+16")
        ),
        ("csv", CSV.replace(",south,", ",a,b,"), "line 3: 5 cells, but 4 columns"),
        (
            "csv",
            CSV.replace("a/2", "a/x"),
            "images missing: 1, the first is .*a/x.JPG .line 3.; correct",
        ),
        (
            "csv",
            CSV.replace("a/2.JPG", "a/1.jpg"),
            r"line 3: a/1.jpg is already in train .line 2",
        ),
        *(
            (
                "csv",
                CSV.replace("a/2.JPG", other),
                rf"line 3: {other} is already in train as a/1.jpg .line 2",
            )
            for other in ("./a/1.jpg", "a//1.jpg", "a/../a/1.jpg")
        ),
        ("csv", CSV.replace("gallery", "test"), "line 5: unknown split 'test'; train, gallery or"),
        ("csv", '"path,identity', "line 1: not a header|broken CSV|no column"),
        ("csv", "path identity\n", "line 1: not a header of columns separated by commas"),
        ("csv", "", "line 1: not a header"),
        ("csv", "path,identity,camera,split\n", "lists no images"),
        ("csv", with_columns(keypoints="1 2 3"), "line 2: 3 keypoint numbers instead of 51"),
        ("csv", with_columns(keypoints="[1, 2"), "line 2: keypoints are not a list of numbers"),
        (
            "csv",
            with_columns(occlusion="half"),
            r"line 2: occlusion must be .* \[0, 1\], not 'half'",
        ),
        ("csv", with_columns(occlusion="0,5"), r"line 2: occlusion must be a number"),
        ("jsonl", row(occlusion=1.5), r"line 1: occlusion must be a number in \[0, 1\], not 1.5"),
        ("jsonl", row(keypoints=FLAT[:-1]), "line 1: 50 keypoint numbers instead of 51"),
        ("jsonl", row(keypoints=[*FLAT[:-1], 1.1]), r"line 1: keypoints must be finite, with conf"),
        ("jsonl", row(keypoints=[*FLAT[:-1], -0.1]), r"line 1: keypoints must be finite"),
        ("jsonl", row(keypoints=[float("nan"), *FLAT[1:]]), "line 1: keypoints must be finite"),
        ("jsonl", row(keypoints=[*POSE[:-1], [1]]), "line 1: keypoints are not a list of numbers"),
        ("jsonl", row(keypoints={"x": 1}), "line 1: keypoints are not a list of numbers"),
        ("jsonl", row(keypoints=[int("9" * 400), *FLAT[1:]]), "line 1: keypoints are not a list"),
        ("jsonl", row(keypoints=[1e300, *FLAT[1:]]), "line 1: keypoints must be finite"),
        ("csv", with_columns(keypoints="[" * 9999), "line 2: keypoints are not a list"),
        ("jsonl", row(occlusion=int("9" * 400)), "line 1: occlusion must be a number"),
        ("jsonl", row(identity=7).replace("7", "7" * 5000), "line 1: broken JSON: Exceeds"),
        ("jsonl", "[" * 99_999, "line 1: broken JSON: .*recursion"),
        ("csv", CSV.replace("query", "query/x"), "line 4: unknown split 'query/x'"),
        (
            "csv",
            CSV.replace("query", "query x"),
            "line 4: unknown split 'query x'.*letters",
        ),
        ("csv", CSV.replace("query", "query" + "x" * 41), "line 4: unknown split 'queryxx"),
        ("csv", CSV.replace("a/2", "a/2" * 999), "line 3"),
        ("jsonl", f"\n{row()}\n{{", "line 3: broken JSON"),
        ("jsonl", "[1]", "line 1: not a JSON object"),
        (
            "jsonl",
            f'{row()}\n{row()[:-1]}, "identity": 5}}',
            "line 2: broken JSON: 'identity' occurs twice; leave one",
        ),
        ("csv", "sep=;\npath;identity;camera\n", "line 2: no column split"),
        ("csv", "sep=;", "line 1: no column path, identity"),
        ("csv", CSV.replace("north", "\u200b\ufeff"), "line 2: camera is empty"),
        ("jsonl", '{"path": "a/1.jpg"}', "line 1: no column identity, camera, split"),
        (
            "jsonl",
            row(identity=None),
            "line 1: identity must be a string or a whole number, not None",
        ),
        (
            "jsonl",
            row(identity=1.5),
            "line 1: identity must be a string or a whole number, not 1.5",
        ),
        ("jsonl", row(camera=True), "line 1: camera must be a string or a whole number"),
        ("jsonl", row(identity=" "), "line 1: identity is empty"),
        ("jsonl", "\n", "lists no images"),
    ],
)
def test_errors_name_file_and_line(suffix, text, message, folder):
    file = folder / f"mine.{suffix}"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"^{file}(: |, ).*(?:{message})") as caught:
        prepare(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["#7", "na", "1e5", "E+12", "v1.2E+12", "nullo"])
def test_names_that_resemble_what_spreadsheets_write_are_names(name, folder):
    (folder / "mine.csv").write_text(CSV.replace("anna", name))
    assert read_table(folder / "mine.csv").rows[0].identity == name


def test_names_that_only_contain_nan_are_names(folder):
    (folder / "mine.csv").write_text(CSV.replace("anna", "nana").replace("north", "nan 1"))
    assert prepare(folder).info.metadata["identities"] == ["10", "9", "nana"]


def test_text_in_another_encoding(folder):
    (folder / "mine.csv").write_bytes(CSV.replace("anna", "änne").encode("latin-1"))
    with pytest.raises(DataError, match=r"mine\.csv, line 2: not UTF-8; save the file as UTF-8"):
        prepare(folder)


def test_a_pointer_in_the_place_of_a_table_is_named(folder):
    (folder / "mine.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"mine\.csv: a Git LFS pointer, not the file itself; run"):
        prepare(folder)


def test_the_longest_name_of_a_split(folder):
    split = "query" + "ä-_Z9" * 8
    (folder / "mine.csv").write_text(CSV.replace("query", split), encoding="utf-8")
    assert (split, "b/3.png") in rows(prepare(folder))


@pytest.mark.parametrize("name", ["änne", "a\u2028b", '"a, ""b"""'])
def test_names_with_other_letters(name, folder):
    text = CSV.replace("anna", name).replace("\n", "\r\n")  # the line ends of Windows
    (folder / "mine.csv").write_bytes(text.encode())
    expected = 'a, "b"' if name.startswith('"') else name
    assert prepare(folder).info.metadata["identities"] == ["10", "9", expected]


COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_names_that_look_equal_are_one_name(suffix, folder):
    text = CSV if suffix == "csv" else JSON_LINES.replace(" 10", ' "10"')
    text = text.replace("anna", COMPOSED).replace("10", f"{DECOMPOSED[:2]}\u200b{DECOMPOSED[2:]}")
    text = text.replace("south", "nor\ufeffth")
    (folder / f"mine.{suffix}").write_text(text, encoding="utf-8")
    metadata = prepare(folder).info.metadata
    assert metadata["identities"] == ["9", COMPOSED]
    assert metadata["cameras"] == [COMPOSED, "north"]
    assert metadata["warnings"] == []


def test_a_table_of_ordinary_names_keeps_its_version(folder):
    file = folder / "mine.csv"
    versions = []
    for name in ("anna", COMPOSED, DECOMPOSED):
        file.write_text(CSV.replace("anna", name), encoding="utf-8")
        digest = hashlib.sha256(file.read_bytes())
        for path in IMAGES:
            digest.update(hashlib.sha256((folder / path).read_bytes()).digest())
        as_before = int.from_bytes(digest.digest()[:4], "big")
        versions.append(read_table(file).fingerprint == as_before)
    assert versions == [True, True, False]


def test_names_that_look_alike_are_a_warning(folder):
    file = folder / "mine.csv"
    text = CSV.replace("10,south", "Anna,003").replace("9,10", "009,3.0").replace("9,north", "9,3")
    file.write_text(text)
    metadata = prepare(folder).info.metadata
    assert metadata["identities"] == ["009", "9", "Anna", "anna"]
    start = "differ from another only by case, spaces, leading zeros or the like, such as"
    assert metadata["warnings"] == [
        f"{file}: 2 identities {start} '009' and '9'; if they are the same, give them one name",
        f"{file}: 2 cameras {start} '003' and '3'; if they are the same, give them one name",
    ]


@pytest.mark.parametrize(
    "other",
    ["anna\u00a0b", "anna  b", "\uff41nna b", "'anna b", '="anna b"', "anna\u2003b", "Anna B"],
)
def test_names_that_a_tool_has_changed_look_alike(other):
    assert len(alike("identities", sorted([other, "anna b", "anna c", "annab"]))) == 1


def test_other_digits_and_hyphens_look_alike_too():
    for one, other in (("7-1", "7\u20111"), ("-1", "\u22121"), ("12", "\uff11\uff12")):
        (line,) = alike("cameras", [one, other])
        assert f"such as {one!a} and {other!a};" in line and line.isascii()
    assert alike("cameras", ["1.5", "15", "1-5", "1 5", "o'neil", "oneil"]) == []


def test_a_name_for_unknown_people_is_a_warning_where_it_is_learned_or_searched(folder):
    file = folder / "mine.csv"
    for name in ("-1", "Unknown", "?", "-", "unlabeled"):
        file.write_text(CSV.replace("anna,", f"{name},"))
        assert prepare(folder).info.metadata["warnings"] == [
            f"{file}: identity {name!r} (1 images) is one person here; if it marks people who are "
            "not known, leave its lines out of train and query"
        ]
    file.write_text(CSV.replace("b/4.bmp,9", "b/4.bmp,-1"))  # a distractor
    assert prepare(folder).info.metadata["warnings"] == []


@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
def test_accents_in_paths_may_be_encoded_otherwise(written, stored, folder):
    (folder / "a").rename(folder / stored)
    (folder / "mine.csv").write_text(CSV.replace("a/", f"{written}/"), encoding="utf-8")
    images = rows(prepare(folder))
    assert images["train", f"{written}/1.jpg"]["image"] == encoded_picture("a/1.jpg")


def test_the_path_as_written_comes_first(folder):
    for name in (COMPOSED, DECOMPOSED):
        write_bytes(folder / f"{name}.png", encoded_picture(f"{name}.png"))
    lines = [f"{name}.png,1,1,train" for name in (DECOMPOSED, COMPOSED)]
    text = "\n".join(["path,identity,camera,split", *lines])
    (folder / "mine.csv").write_text(text, encoding="utf-8")
    stored = {path: row["image"] for (_, path), row in rows(prepare(folder)).items()}
    names = (f"{COMPOSED}.png", f"{DECOMPOSED}.png")
    assert stored == {name: encoded_picture(name) for name in names}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line", ["sep={}\n", '"sep={}"\r\n'])
def test_excels_line_names_the_delimiter(line, delimiter, folder):
    text = line.format(delimiter) + CSV.replace(",", delimiter)
    (folder / "mine.csv").write_text(text, newline="")
    table = read_table(folder / "mine.csv")
    assert [(row.line, row.path) for row in table.rows] == list(enumerate(IMAGES, 3))


def test_there_must_be_exactly_one_table(folder):
    with pytest.raises(DataError, match=r"neither mine\.csv nor mine\.jsonl; give exactly one"):
        prepare(folder)
    (folder / "mine.csv").write_text(CSV)
    (folder / "mine.jsonl").write_text(JSON_LINES)
    with pytest.raises(DataError, match=r"both mine\.csv and mine\.jsonl; give exactly one"):
        prepare(folder)


@pytest.mark.parametrize(
    ("name", "manual_dir"), [("table", "x"), ("table/mine", ""), ("table/a/b", "x")]
)
def test_name_and_folder_must_be_given(name, manual_dir, tmp_path):
    with pytest.raises(DataError, match=r"table/NAME and --config\.data\.manual_dir=DIR"):
        prepared_builder(name, str(tmp_path), manual_dir)


def test_an_image_that_cannot_be_decoded_is_named(folder):
    (folder / "b/4.bmp").write_bytes(b"?")
    (folder / "mine.csv").write_text(CSV)
    with pytest.raises(DataError, match=r"b/4\.bmp: the image cannot be decoded"):
        prepare(folder)
    assert not list((folder.parent / "out/table/mine").glob("*"))


def test_the_table_keeps_order_and_lines(folder):
    (folder / "mine.jsonl").write_text(JSON_LINES)
    table = read_table(folder / "mine.jsonl")
    assert [(row.line, row.path) for row in table.rows] == list(enumerate(IMAGES, 2))
    assert load_builder("table/mine", "unused", str(folder)).version.patch == (table.fingerprint)


def test_joints_at_the_origin_are_a_warning_and_are_not_drawn(folder):
    pose = [[0, 0, 0.4]] * 5 + [[7.5, 9.5, 0.9]] * 12
    (folder / "mine.csv").write_text(with_columns(keypoints=json.dumps(pose)))
    builder = prepare(folder)
    assert builder.info.metadata["warnings"] == [
        f"{folder / 'mine.csv'}: 5 joints of 1 images are at (0, 0) with a confidence above 0; "
        "tools write this for joints that they did not find, so these have confidence 0"
    ]
    confidence = read_catalog(builder, "train").keypoints[0, :, 2]
    np.testing.assert_array_equal(confidence, np.float32([0] * 5 + [0.9] * 12))


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_occlusion(value, folder):
    entry = {"path": "a/1.jpg", "identity": 1, "camera": 1, "split": "train", "occlusion": value}
    (folder / "mine.jsonl").write_text(json.dumps(entry))
    with pytest.raises(DataError, match=rf"line 1: occlusion must be a number .*, not {value}$"):
        prepare(folder)


@pytest.mark.parametrize("suffix", ["tiff", "WebP"])
def test_a_table_of_pictures_that_were_once_turned_is_prepared_again(suffix, folder):
    """Before, TIFF and WebP images were turned by their orientation; this is another version."""
    file = folder / "mine.csv"
    (folder / "a/1.jpg").rename(folder / f"a/1.{suffix}")
    file.write_text(CSV.replace("a/1.jpg", f"a/1.{suffix}"))
    digest = hashlib.sha256(file.read_bytes())
    for path in (f"a/1.{suffix}", *IMAGES[1:]):
        digest.update(hashlib.sha256((folder / path).read_bytes()).digest())
    assert read_table(file).fingerprint != int.from_bytes(digest.digest()[:4], "big")
