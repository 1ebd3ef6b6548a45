"""The builders of published data sets against fabricated copies of their layouts."""

import re
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import file_tree
from input_pipeline.builders import available_datasets, load_builder, prepared_builder
from input_pipeline.builders.folders import Published
from input_pipeline.catalog import read_catalog
from input_pipeline.copies import check_people, check_repeats
from input_pipeline.errors import DataError
from input_pipeline.validation import Findings, check_separate
from tests.input_pipeline.trees import (
    TREES,
    encoded_picture,
    occluded_duke_lists,
    picture,
    write_bytes,
    write_tree,
)


def read(builder):
    """Split → {file name: (identity, camera, encoded image)}."""
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        split: {
            row["filename"].decode(): (int(row["identity"]), int(row["camera"]), row["image"])
            for row in tfds.as_numpy(builder.as_dataset(split=split, decoders=skip))
        }
        for split in builder.info.splits
    }


def expected(name):
    tree = TREES[name]
    return {
        split: {path: (identity, camera, tree.image(path)) for path, identity, camera in images}
        for split, images in tree.splits.items()
    }


def without_images(splits):
    return {
        split: {path: record[:2] for path, record in images.items()}
        for split, images in splits.items()
    }


def refused(name, tmp_path, manual_dir):
    """The one-line error that refuses a data set; no files remain."""
    with pytest.raises(DataError) as caught:
        prepared_builder(name, str(tmp_path / "out"), str(manual_dir))
    folder = tmp_path / "out" / name
    assert not list(folder.glob("*")) if folder.exists() else True
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prepare(name, tmp_path, manual_dir, capsys=None):
    builder = prepared_builder(name, str(tmp_path / "out"), str(manual_dir))
    if capsys:
        captured = capsys.readouterr()
        assert not captured.out  # TFDS's own lines are silent
        return builder, captured.err
    return builder


def zip_folder(folder: Path, archive: Path, below: str = "") -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, f"{below}{file.relative_to(folder).as_posix()}")
    return archive


@pytest.mark.parametrize("name", TREES)
def test_records_are_those_of_the_layout(name, tmp_path, capsys, caplog):
    caplog.set_level("WARNING", logger="absl")  # which the command lines silence
    write_tree(name, tmp_path / "in")
    builder, err = prepare(name, tmp_path, tmp_path / "in", capsys)
    if name == "occluded_reid":  # TIFF is stored as PNG
        assert without_images(read(builder)) == without_images(expected(name))
    else:
        assert read(builder) == expected(name)
    for split, images in TREES[name].splits.items():
        warning = next(w for w in builder.info.metadata["warnings"] if f" {split}: " in w)
        folder = name.partition("/")[0]
        assert warning.startswith(f"{folder} {split}: {len(images)} images, ")
        assert warning in caplog.messages  # for `tfds build`
    assert "Generating" not in err and "Shuffling" not in err  # TFDS's progress
    assert builder.info.metadata["source"] == str(tmp_path / "in")
    assert builder.info.metadata["unmatched"] == []


def test_published_counts_are_those_of_the_papers():
    counts = {}
    for name in TREES:
        builder = load_builder(name, "unused")
        counts[name] = [builder.PUBLISHED[split].images for split in TREES[name].splits]
    assert counts == {
        "market1501": [12_936, 3_368, 15_913],
        "dukemtmc_reid": [16_522, 2_228, 17_661],
        "occluded_duke": [15_618, 2_210, 17_661],
        "occluded_reid": [1_000, 1_000],
        "partial_reid": [300, 300, 300],
        "partial_ilids": [119, 119],
        "p_dukemtmc_reid": [12_927, 2_163, 9_053],
        "msmt17/v1": [32_621, 11_659, 82_161],
        "msmt17/v2": [32_621, 11_659, 82_161],
    }
    assert {name.partition("/")[0] for name in TREES} < set(available_datasets())


def test_no_warning_when_the_counts_are_right(tmp_path, monkeypatch):
    write_tree("partial_ilids", tmp_path)
    builder = load_builder("partial_ilids", str(tmp_path / "out"))
    counts = {"query": Published(3, 3), "gallery": Published(3, 3)}
    monkeypatch.setattr(type(builder), "PUBLISHED", counts)
    assert prepare("partial_ilids", tmp_path, tmp_path).info.metadata["warnings"] == []


def test_protocols_of_partial_reid():
    protocols = load_builder("partial_reid", "unused").PROTOCOLS
    assert list(protocols.items()) == [
        ("partial", "query_partial"),
        ("occluded", "query_occluded"),
    ]
    for name, tree in TREES.items():
        assert tuple(getattr(load_builder(name, "unused"), "PROTOCOLS", ["query"])) == (
            tree.protocols
        )


@pytest.mark.parametrize("name", TREES)
def test_nothing_in_a_published_set_occurs_twice_wrongly(name, tmp_path):
    write_tree(name, tmp_path)
    builder = prepare(name, tmp_path, tmp_path)
    catalogs = {split: read_catalog(builder, split) for split in builder.info.splits}
    train = catalogs.get("train")
    found = Findings()
    for split, catalog in catalogs.items():
        found.add(check_repeats(split, catalog))
        if train is not None and split != "train":
            found.add(check_people(train.identities, split, catalog))
            found.add(check_separate("train", train.image_sha256, split, catalog))
    assert found == Findings()


def test_junk_is_dropped_and_counted_distractors_stay(tmp_path):
    write_tree("market1501", tmp_path)
    builder = prepare("market1501", tmp_path, tmp_path)
    assert builder.info.metadata["junk"] == {"gallery": 2}
    gallery = read(builder)["gallery"]
    assert sorted(record[0] for record in gallery.values()) == [0, 1, 1, 3]


def test_prepared_data_need_no_source(tmp_path):
    write_tree("partial_ilids", tmp_path / "in")
    first = prepare("partial_ilids", tmp_path, tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    again = prepared_builder("partial_ilids", str(tmp_path / "out"))
    assert read(again) == expected("partial_ilids")
    assert again.info.metadata["warnings"] == first.info.metadata["warnings"] != []


def test_without_a_source_the_line_says_what_to_give(tmp_path):
    line = refused("market1501", tmp_path, "")
    assert "market1501: not prepared in" in line
    assert "--config.data.manual_dir=DIR, where DIR holds the folder Market-1501-v15.09.15" in line
    assert f"no folder or zip archive {tmp_path}/no" in refused(
        "market1501", tmp_path, tmp_path / "no"
    )


def test_files_that_fit_no_pattern_are_all_listed(tmp_path, capsys):
    write_tree("market1501", tmp_path)
    root = tmp_path / TREES["market1501"].root
    odd = ["bounding_box_train/notes.txt", "query/0001.jpg", "query/sub/0001_c1s1_000001_00.jpg"]
    for path in [*odd, "query/Thumbs.db", "query/.DS_Store", "query/._0001_c1s1_001051_00.jpg"]:
        write_bytes(root / path, b"?")
    write_bytes(root / "query/__MACOSX/0001_c1s1_001051_00.jpg", b"?")
    write_bytes(root / "readme.txt", b"?")  # outside the splits' folders
    builder, _ = prepare("market1501", tmp_path, tmp_path, capsys)
    assert builder.info.metadata["unmatched"] == odd
    (warning,) = (w for w in builder.info.metadata["warnings"] if "not named or listed" in w)
    assert warning.startswith("market1501: 3 files are not named or listed as its images")
    assert read(builder) == expected("market1501")


def test_masks_and_copies_beside_the_images_are_left_out(tmp_path, capsys):
    write_tree("market1501", tmp_path)
    folder = tmp_path / TREES["market1501"].root / "query"
    first = min(folder.glob("*.jpg"))
    names = [
        first.with_suffix(".png"),
        *(f"{first.stem}{end}" for end in ("_mask.png", " (1).jpg")),
    ]
    for name in names:
        shutil.copy(first, folder / name)
    builder, _ = prepare("market1501", tmp_path, tmp_path, capsys)
    left_out = sorted(f"query/{(folder / name).name}" for name in names)
    assert builder.info.metadata["unmatched"] == left_out
    assert read(builder) == expected("market1501")


def test_suffixes_in_any_case(tmp_path):
    write_tree("partial_ilids", tmp_path)
    root = tmp_path / TREES["partial_ilids"].root
    (root / "Probe/1.jpg").rename(root / "Probe/1.JPG")
    (root / "Probe/2.jpg").rename(root / "Probe/2.Jpeg")
    query = read(prepare("partial_ilids", tmp_path, tmp_path))["query"]
    assert {path: record[0] for path, record in query.items()} == {
        "Probe/1.JPG": 1,
        "Probe/2.Jpeg": 2,
        "Probe/119.jpg": 119,
    }


def test_tiff_is_stored_without_loss(tmp_path):
    write_tree("occluded_reid", tmp_path)
    for split in read(prepare("occluded_reid", tmp_path, tmp_path)).values():
        for path, (_, _, image) in split.items():
            assert image.startswith(b"\x89PNG")
            decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(decoded, picture(path))


def test_a_tiff_that_cannot_be_decoded_is_named(tmp_path):
    write_tree("occluded_reid", tmp_path)
    file = tmp_path / "Occluded_REID/whole_body_images/200/200_06.tif"
    file.write_bytes(b"II*\0")
    assert f"{file}: the image cannot be decoded" in refused("occluded_reid", tmp_path, tmp_path)


def test_a_truncated_jpeg_is_stored_as_it_is(tmp_path):
    write_tree("partial_ilids", tmp_path)
    cut = encoded_picture("Probe/1.jpg")[:100]
    (tmp_path / "Partial_iLIDS/Probe/1.jpg").write_bytes(cut)
    assert read(prepare("partial_ilids", tmp_path, tmp_path))["query"]["Probe/1.jpg"][2] == cut


@pytest.mark.parametrize(
    ("name", "file", "cameras"),
    [
        ("market1501", "query/0002_c9s1_000451_03.jpg", "1 to 6"),
        ("market1501", "query/0002_c0s1_000451_03.jpg", "1 to 6"),
        ("dukemtmc_reid", "query/0002_c12_f0000451.jpg", "1 to 8"),
    ],
)
def test_a_camera_that_the_set_does_not_have(name, file, cameras, tmp_path):
    write_tree(name, tmp_path)
    write_bytes(tmp_path / TREES[name].root / file, b"?")
    line = refused(name, tmp_path, tmp_path)
    assert f"{TREES[name].root}/{file}: camera" in line and f"cameras {cameras}" in line


def test_an_identity_that_cannot_be_stored_is_named(tmp_path):
    write_tree("market1501", tmp_path)
    file = tmp_path / TREES["market1501"].root / "query/99999999999999999999_c1s1_000001_01.png"
    write_bytes(file, encoded_picture(file.name))
    assert refused("market1501", tmp_path, tmp_path) == (
        f"{file}: identity 99999999999999999999 is too large; rename or remove the file"
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_versions_of_an_image_is_named(tmp_path):
    write_tree("market1501", tmp_path / "in")
    archive = zip_folder(tmp_path / "in", tmp_path / "market.zip")
    name = f"{TREES['market1501'].root}/query/0001_c1s1_001051_00.jpg"
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, b"other")
    assert refused("market1501", tmp_path, archive).startswith(
        f"{archive}/{name}: the archive holds it twice, with different contents; unpack it"
    )


def test_a_missing_folder_and_an_empty_one(tmp_path):
    write_tree("market1501", tmp_path)
    root = tmp_path / TREES["market1501"].root
    shutil.rmtree(root / "query")
    line = refused("market1501", tmp_path, tmp_path)
    assert line.startswith(f"{root}: lacks query; --config.data.manual_dir must hold the folder")
    (root / "query").mkdir()
    line = refused("market1501", tmp_path, tmp_path)
    assert f"{root}/query: no image named like 0002_c1s1_000451_03.jpg" in line
    write_bytes(root / "query/-1_c1s1_000451_03.jpg", b"?")
    assert "for the split query" in refused("market1501", tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["partial_reid", "occluded_reid", "msmt17/v2"])
def test_folder_archive_and_nested_archive_give_the_same(name, tmp_path):
    root = TREES[name].root
    write_tree(name, tmp_path / "in")
    from_folder = read(prepare(name, tmp_path / "1", tmp_path / "in" / root))
    packed = zip_folder(tmp_path / "in", tmp_path / "packed" / f"{root}.zip")
    assert read(prepare(name, tmp_path / "2", packed)) == from_folder
    assert read(prepare(name, tmp_path / "3", tmp_path / "packed")) == from_folder
    # Without a folder inside the archive, and as an archive within an archive.
    flat = zip_folder(tmp_path / "in" / root, tmp_path / "flat" / f"{root}.ZIP")
    nested = zip_folder(flat.parent, tmp_path / "nested.zip", below="share/")
    assert read(prepare(name, tmp_path / "4", nested)) == from_folder


def test_a_truncated_archive_is_named(tmp_path):
    write_tree("partial_ilids", tmp_path / "in")
    whole = zip_folder(tmp_path / "in", tmp_path / "packed/Partial_iLIDS.zip")
    whole.write_bytes(whole.read_bytes()[:-100])
    line = refused("partial_ilids", tmp_path, whole.parent)
    assert line.startswith(f"{whole}: not a readable zip archive")


def test_the_parts_of_a_download_are_read_together(tmp_path):
    write_tree("market1501", tmp_path / "in")
    root = tmp_path / "in" / TREES["market1501"].root
    parts = tmp_path / "parts"
    name = "Market-1501-v15.09.15-20240131T101112Z"
    for number, folder in enumerate(("query", "bounding_box_train", "bounding_box_test"), 1):
        zip_folder(root / folder, parts / f"{name}-{number:03}.zip", f"Market-1501/{folder}/")
    for source in (parts, parts / f"{name}-002.zip"):
        builder = prepare("market1501", tmp_path / source.name, source)
        assert read(builder) == expected("market1501")


@pytest.mark.parametrize("name", ["market1501", "dukemtmc_reid", "msmt17/v1"])
def test_a_copy_with_a_folder_for_each_person_is_named(name, tmp_path):
    for path in ("train/0002", "train_all/0002", "val/0002", "query/0001", "gallery/0001"):
        write_bytes(tmp_path / f"in/pytorch/{path}/{path[-4:]}_c1s1_000451_03.jpg", b"")
    line = refused(name, tmp_path, tmp_path / "in")
    assert line.startswith(
        f"{tmp_path}/in/pytorch: a copy with a folder for each person (train_all/0002/…), as a "
        "baseline's prepare.py makes it; give the original, which is usually the folder above; "
    )


def test_a_folder_of_the_set_is_reported_before_an_unnamed_archive(tmp_path):
    write_tree("market1501", tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / TREES["market1501"].root / "query")
    write_bytes(tmp_path / "in/backup.zip", b"broken")
    write_bytes(tmp_path / "in/backup.tar.gz", b"?")
    assert "lacks query" in refused("market1501", tmp_path, tmp_path / "in")
    line = refused("msmt17/v1", tmp_path, tmp_path / "in")
    assert line.startswith(f"{tmp_path}/in: no msmt17 in it; it must hold the folder MSMT17_V1")
    assert f"(2 not looked into; {tmp_path}/in/backup.zip: not a readable zip archive" in line


def test_other_files_in_the_folder_do_not_matter(tmp_path, monkeypatch):
    """Archives named for no set are not opened if a folder contains the data set."""
    write_tree("partial_ilids", tmp_path / "in")
    (tmp_path / "in/old.zip").symlink_to(tmp_path / "gone")
    inner = zip_folder(tmp_path / "in/Partial_iLIDS", tmp_path / "inner/a.zip").parent
    zip_folder(inner, tmp_path / "in/work.zip")
    opened = []
    original = file_tree._Listing.add_archive

    def add_archive(self, path, location):
        opened.append(path)
        original(self, path, location)

    monkeypatch.setattr(file_tree._Listing, "add_archive", add_archive)
    assert read(prepare("partial_ilids", tmp_path, tmp_path / "in")) == expected("partial_ilids")
    assert not opened
    shutil.rmtree(tmp_path / "in/Partial_iLIDS")  # now they are opened
    again = prepare("partial_ilids", tmp_path / "2", tmp_path / "in")
    assert read(again) == expected("partial_ilids")
    assert opened == ["old.zip", "work.zip", "work.zip/a.zip"]


def test_a_tar_archive_must_be_unpacked(tmp_path):
    write_bytes(tmp_path / "in/Market-1501.tar.gz", b"?")
    line = refused("market1501", tmp_path, tmp_path / "in")
    words = "only zip archives can be read; unpack it, give the folder"
    assert line == f"{tmp_path}/in/Market-1501.tar.gz: {words}"


def test_many_sets_side_by_side(tmp_path):
    """Three sets with the same folders, three with others in common, two editions, an archive."""
    for name in TREES:
        write_tree(name, tmp_path / "in")
    root = TREES["market1501"].root
    zip_folder(tmp_path / "in" / root, tmp_path / f"in/{root}.zip", below=f"{root}/")
    write_bytes(tmp_path / "in/DukeMTMC-reID_broken.zip", b"not read for other sets")
    for name in TREES:
        found = read(prepare(name, tmp_path, tmp_path / "in"))
        assert without_images(found) == without_images(expected(name))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("market1501", "dukemtmc_reid"),
        ("dukemtmc_reid", "occluded_duke"),
        ("occluded_duke", "dukemtmc_reid"),
        ("occluded_duke", "market1501"),
        ("occluded_reid", "partial_reid"),
        ("occluded_reid", "p_dukemtmc_reid"),
    ],
)
def test_a_set_is_not_mistaken_for_another(name, other, tmp_path):
    write_tree(other, tmp_path / "in")
    line = refused(name, tmp_path, tmp_path / "in")
    assert f"no {name} in it (what it holds is named for {other}" in line


@pytest.mark.parametrize("lists", ["in/Occluded_Duke", "in", "in/lists"])
def test_dukes_folders_under_the_name_of_occluded_duke_are_noticed(lists, tmp_path):
    write_tree("dukemtmc_reid", tmp_path / "in")
    named = (tmp_path / "in/DukeMTMC-reID").rename(tmp_path / "in/Occluded_Duke")
    for name, text in occluded_duke_lists().items():
        write_bytes(tmp_path / lists / name, text.encode())
    # 4 of the 16 training images, both queries, and 1 of the 4 gallery images.
    line = refused("occluded_duke", tmp_path, tmp_path / "in")
    assert line.startswith(
        f"{named}: 7 of its images are not in the lists of {tmp_path / lists}, the first is "
        "bounding_box_train/2013_c1_f0044158.jpg; "
    )
    if lists == "in/Occluded_Duke":
        assert refused("occluded_duke", tmp_path, named) == line
    named.rename(tmp_path / "in/DukeMTMC-reID")  # as the line says
    found = read(prepare("occluded_duke", tmp_path, tmp_path / "in"))
    assert found == expected("occluded_duke")


def test_occluded_dukes_own_folder_may_have_the_lists_beside_it(tmp_path):
    write_tree("occluded_duke", tmp_path / "in")
    for name, text in occluded_duke_lists().items():
        write_bytes(tmp_path / "in/Occluded_Duke" / name, text.encode())
    found = read(prepare("occluded_duke", tmp_path, tmp_path / "in"))
    assert found == expected("occluded_duke")


def test_dukes_folders_are_noticed_by_their_size(tmp_path, monkeypatch):
    write_tree("dukemtmc_reid", tmp_path / "in")
    (tmp_path / "in/DukeMTMC-reID").rename(tmp_path / "in/Occluded_Duke")
    counts = {split: Published(len(s)) for split, s in TREES["dukemtmc_reid"].splits.items()}
    duke = type(load_builder("dukemtmc_reid", "unused"))
    monkeypatch.setattr(duke, "PUBLISHED", counts)
    assert refused("occluded_duke", tmp_path, tmp_path / "in").startswith(
        f"{tmp_path}/in/Occluded_Duke: has as many images as DukeMTMC-reID, from which "
    )


def test_a_folder_with_a_neutral_name_is_accepted(tmp_path):
    write_tree("market1501", tmp_path)
    (tmp_path / TREES["market1501"].root).rename(tmp_path / "people")
    assert read(prepare("market1501", tmp_path, tmp_path / "people")) == expected("market1501")


def test_a_link_is_named_for_itself_and_for_its_target(tmp_path):
    write_tree("occluded_duke", tmp_path)
    (tmp_path / "Occluded_Duke").rename(tmp_path / "duke_v2")
    for link in ("Occluded_Duke", "people"):
        (tmp_path / link).symlink_to(tmp_path / "duke_v2")
    found = prepare("occluded_duke", tmp_path, tmp_path / "Occluded_Duke")
    assert read(found) == expected("occluded_duke")
    assert "named for dukemtmc_reid" in refused("market1501", tmp_path, tmp_path / "people")


def test_a_link_beside_its_target_is_not_a_second_copy(tmp_path):
    write_tree("market1501", tmp_path / "in")
    for link in ("DukeMTMC-old", "market1501"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "in" / TREES["market1501"].root)
    assert read(prepare("market1501", tmp_path, tmp_path / "in")) == expected("market1501")


def test_a_linked_folder_belongs_to_both_sets(tmp_path):
    for name in ("dukemtmc_reid", "occluded_duke"):
        write_tree(name, tmp_path / "in")
    shutil.rmtree(tmp_path / "in/Occluded_Duke/bounding_box_test")
    link = tmp_path / "in/Occluded_Duke/bounding_box_test"
    link.symlink_to("../DukeMTMC-reID/bounding_box_test")
    gallery = {"gallery": expected("dukemtmc_reid")["gallery"]}
    for name in ("dukemtmc_reid", "occluded_duke"):
        assert read(prepare(name, tmp_path, tmp_path / "in")) == expected(name) | gallery


def test_two_copies_are_ambiguous(tmp_path):
    write_tree("market1501", tmp_path / "in/a")
    write_tree("market1501", tmp_path / "in/b")
    line = refused("market1501", tmp_path, tmp_path / "in")
    root = TREES["market1501"].root
    assert f"several folders could be market1501: {tmp_path}/in/a/{root}, " in line


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "lists/", "Occluded_Duke/", "DukeMTMC-reID/"])
def test_occluded_duke_from_duke_and_the_lists(place, packed, tmp_path):
    write_tree("dukemtmc_reid", tmp_path / "duke")
    if packed:
        zip_folder(tmp_path / "duke", tmp_path / "in/DukeMTMC-reID.zip")
    else:
        shutil.move(tmp_path / "duke", tmp_path / "in")
    for name, text in occluded_duke_lists().items():
        write_bytes(tmp_path / "in" / f"{place}{name}", text.encode())
    assert read(prepare("occluded_duke", tmp_path, tmp_path / "in")) == expected("occluded_duke")


def test_occluded_duke_from_folders_with_neutral_names_and_the_lists(tmp_path):
    write_tree("dukemtmc_reid", tmp_path)
    (tmp_path / "DukeMTMC-reID").rename(tmp_path / "in")
    for name, text in occluded_duke_lists().items():
        write_bytes(tmp_path / "in" / name, text.encode())
    assert read(prepare("occluded_duke", tmp_path, tmp_path / "in")) == expected("occluded_duke")


def test_occluded_duke_prefers_its_own_folder_to_the_lists(tmp_path):
    for name in ("dukemtmc_reid", "occluded_duke"):
        write_tree(name, tmp_path / "in")
    for name in occluded_duke_lists():
        write_bytes(tmp_path / "in" / name, b"not read")
        write_bytes(tmp_path / "in/again" / name, b"nor these")
    write_tree("dukemtmc_reid", tmp_path / "in/second_copy")
    assert read(prepare("occluded_duke", tmp_path, tmp_path / "in")) == expected("occluded_duke")


def test_occluded_duke_without_one_of_the_lists(tmp_path):
    write_tree("dukemtmc_reid", tmp_path / "in")
    for name in ("train.list", "gallery.list"):
        write_bytes(tmp_path / "in/lists" / name, occluded_duke_lists()[name].encode())
    line = refused("occluded_duke", tmp_path, tmp_path / "in")
    assert line == f"{tmp_path}/in/lists: lacks query.list; put the three lists together there"


def test_occluded_duke_lists_twice(tmp_path):
    write_tree("dukemtmc_reid", tmp_path / "in")
    for name, text in occluded_duke_lists().items():
        for place in ("a", "b"):
            write_bytes(tmp_path / "in" / place / name, text.encode())
    line = refused("occluded_duke", tmp_path, tmp_path / "in")
    assert f"several folders hold train.list: {tmp_path}/in/a, {tmp_path}/in/b; leave one" in line


def test_occluded_duke_lists_that_do_not_fit(tmp_path):
    write_tree("dukemtmc_reid", tmp_path / "in")
    for name, text in occluded_duke_lists().items():
        write_bytes(tmp_path / "in" / name, text.encode())
    list_file = tmp_path / "in/query.list"
    list_file.write_text("0009_c1_f0000001.jpg\n\n0009_c1_f0000002.jpg\n")
    line = refused("occluded_duke", tmp_path, tmp_path / "in")
    assert line.startswith(f"{list_file}: names 2 files that {tmp_path}/in/DukeMTMC-reID does not")
    assert "the first is 0009_c1_f0000001.jpg" in line
    list_file.write_text("\n")
    assert f"{list_file}: names no file" in refused("occluded_duke", tmp_path, tmp_path / "in")
    list_file.write_text("0003_c2_f0044278.jpg\n" * 2)
    line = refused("occluded_duke", tmp_path, tmp_path / "in")
    assert "query/0003_c2_f0044278.jpg is listed twice in the split query" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0000/0000_000_14_0303morning_0015_9.jpg 0", "names 1 files that"),
        ("0000/0000_000_14_0303morning_0015_0.jpg", "line 1: not like '0000/0000_000_01"),
        ("0000/0000_000_14_0303morning_0015_0.jpg zero", "line 1: not like"),
        ("", "names no file"),
    ],
)
def test_msmt17_lists_that_do_not_fit(text, message, tmp_path):
    write_tree("msmt17/v1", tmp_path / "in")
    list_file = tmp_path / "in/MSMT17_V1/list_query.txt"
    list_file.write_text(text)
    line = refused("msmt17/v1", tmp_path, tmp_path / "in")
    assert line.startswith(str(list_file)) and message in line


def test_an_msmt17_list_must_agree_with_the_folders(tmp_path):
    write_tree("msmt17/v1", tmp_path / "in")
    (file,) = (tmp_path / "in").rglob("list_query.txt")
    first, second = file.read_text().splitlines()
    file.write_text(f"{first}\n{second[:-1]}7\n")
    assert refused("msmt17/v1", tmp_path, tmp_path / "in") == (
        f"{file}, line 2: identity 7, but the image is in the folder 0001; get the list again"
    )


def test_msmt17_camera_and_files_that_no_list_names(tmp_path):
    write_tree("msmt17/v2", tmp_path / "in")
    root = tmp_path / "in/MSMT17_V2"
    extra = "mask_test_v2/0001/0001_009_02_0303morning_0015_9.jpg"
    write_bytes(root / extra, b"?")
    assert prepare("msmt17/v2", tmp_path, root).info.metadata["unmatched"] == [extra]
    name = "0000/0000_000_16_0303morning_0015_0.jpg"
    write_bytes(root / "mask_train_v2" / name, b"?")
    write_bytes(root / "list_val.txt", f"{name} 0".encode())
    line = refused("msmt17/v2", tmp_path / "again", root)
    assert re.search(r"0000_000_16_\w+\.jpg: camera 16, but msmt17 has cameras 1 to 15", line)


def test_the_edition_that_is_not_there(tmp_path):
    write_tree("msmt17/v2", tmp_path / "in")
    line = refused("msmt17/v1", tmp_path, tmp_path / "in")
    assert line.startswith(f"{tmp_path}/in/MSMT17_V2: lacks train, test; ")
