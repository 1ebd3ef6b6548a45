"""From a configuration to the data: poses from files, evaluation on other sets, errors."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from input_pipeline import from_config
from input_pipeline.builders import prepared_builder
from input_pipeline.catalog import read_catalog
from input_pipeline.errors import DataError
from input_pipeline.from_config import evaluation_data, open_catalog, training_data
from input_pipeline.poses.cache import PoseCache, write_poses
from tests.input_pipeline.trees import encoded_picture, occluded_duke_lists, write_bytes, write_tree

TINY = "synthetic_occluded_reid/tiny"


def write_cache(path, catalog, rows, keypoints, **changes):
    """A pose file for some images of a catalog."""
    order = sorted(rows, key=lambda row: catalog.filenames[row])
    text = np.array([""] * len(order))
    cache = PoseCache(
        image_sha256=catalog.image_sha256[order],
        splits=np.array(["train"] * len(order)),
        filenames=catalog.filenames[order].astype(str),
        keypoints=keypoints[order],
        sources=text,
        estimators=np.array(["by hand"] * len(order)),
        **changes,
    )
    write_poses(path, cache)
    return path


@pytest.fixture(scope="module")
def catalogs(tiny_data_dir):
    builder = prepared_builder(TINY, str(tiny_data_dir))
    return {split: read_catalog(builder, split) for split in sorted(builder.info.splits)}


def first_batch(training):
    batches = training.batches(0)
    batch = next(batches)
    batches.close()
    return batch


def test_cameras_are_described_if_they_change_the_batches(tiny_config, monkeypatch):
    read, config = from_config.open_catalog, tiny_config()

    def described(cameras):
        def reading(*args, **options):
            catalog = read(*args, **options)
            return dataclasses.replace(catalog, cameras=cameras(catalog.cameras))

        monkeypatch.setattr(from_config, "open_catalog", reading)
        training = training_data(config)
        return training.description, first_batch(training)["indices"]

    (before, chosen), renamed, other = map(
        described, (lambda c: c, lambda c: 2 * c + 5, lambda c: np.arange(len(c)) % 3)
    )
    assert renamed[0] == before and np.array_equal(renamed[1], chosen)
    assert {name for name in before if other[0][name] != before[name]} == {"cameras_sha256"}
    assert not np.array_equal(other[1], chosen)


def test_each_process_reads_its_slice_of_the_batch(tiny_config, monkeypatch):
    config = tiny_config()
    whole, slices = first_batch(training_data(config)), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        slices.append(first_batch(training_data(config)))
    assert whole["images"].shape[0] == 16
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in slices]), rows)


def test_poses_of_a_file_replace_the_data_sets_own(tiny_config, catalogs, tmp_path):
    train = catalogs["train"]
    moved = train.keypoints * np.float32([1, 1, 0]) + np.float32([0, 0, 0.9])
    path = write_cache(tmp_path / "poses.npz", train, range(len(train)), moved)
    own = first_batch(training_data(tiny_config()))
    training = training_data(tiny_config(**{"data.pose.files": (str(path),)}))
    given = first_batch(training)
    np.testing.assert_array_equal(own["images"], given["images"])
    visible = given["visibility"]
    assert set(np.unique(visible)) <= {np.float32(0), np.float32(0.9)} and visible.any()
    assert training.facts()["origin"]["pose_files"] == [
        {
            "name": "poses.npz",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "estimators": ["by hand"],
        }
    ]


def test_coverage_counts_own_and_given_poses(tiny_config, catalogs, tmp_path):
    train = catalogs["train"]
    posed = train.keypoints.any(axis=(1, 2))
    assert posed.all()  # exact poses: every image has one
    half = range(0, len(train), 2)
    path = write_cache(tmp_path / "poses.npz", train, half, train.keypoints)
    config = tiny_config(**{"data.pose.files": (str(path),)})
    same = training_data(config).description
    assert same == training_data(tiny_config()).description  # the same poses, from a file
    assert same["pose_coverage"] == 1.0


def test_coverage_counts_the_poses_that_are_drawn(tiny_config, catalogs, tmp_path, capsys):
    train = catalogs["train"]
    keypoints = train.keypoints.copy()
    keypoints[5:, :, 2] = 0.1
    path = write_cache(tmp_path / "poses.npz", train, range(len(train)), keypoints)
    training = training_data(tiny_config(**{"data.pose.files": (str(path),)}))
    assert training.description["pose_coverage"] == 5 / len(train)
    batch = first_batch(training)
    assert (batch["visibility"].max(axis=1) > 0).sum() <= 5
    line = f"5 of {len(train)} training images have a pose that is drawn; teachers learn from"
    assert line in capsys.readouterr().err


def test_a_missing_pose_file_is_named(tiny_config, tmp_path):
    config = tiny_config(**{"data.pose.files": (str(tmp_path / "gone.npz"),)})
    with pytest.raises(DataError, match=r"gone\.npz: no such pose file"):
        training_data(config)
    evaluation_data(config)  # the main branch is scored without poses
    config = tiny_config(
        **{
            "data.pose.files": config.data.pose.files,
            "eval.embeddings": ("main", "foreground", "parts"),
        }
    )
    with pytest.raises(DataError, match=r"gone\.npz"):
        evaluation_data(config)


def test_evaluation_on_named_sets_carries_their_names(tiny_config, catalogs):
    own = evaluation_data(tiny_config())
    assert [(p.name, p.query, p.gallery) for p in own.protocols] == [
        ("occluded", f"{TINY}/query", f"{TINY}/gallery"),
        ("holistic", f"{TINY}/query_holistic", f"{TINY}/gallery"),
    ]
    names = (f"{TINY}_noisy", TINY)
    crossed = evaluation_data(tiny_config(**{"eval.datasets": names}))
    assert [protocol.name for protocol in crossed.protocols] == [
        "synthetic_occluded_reid-tiny_noisy.occluded",
        "synthetic_occluded_reid-tiny_noisy.holistic",
        "synthetic_occluded_reid-tiny.occluded",
        "synthetic_occluded_reid-tiny.holistic",
    ]
    assert {protocol.dataset.split("/")[1] for protocol in crossed.protocols} == {
        "tiny",
        "tiny_noisy",
    }
    split = crossed.splits[f"{TINY}/query"]
    np.testing.assert_array_equal(split.identities, catalogs["query"].identities)


def table_of(folder, split, name):
    """A table NAME.csv in ``folder``: one person in train, a query split and the gallery."""
    lines = ["path,identity,camera,split"]
    for camera, row in enumerate(("train", split, "gallery")):
        write_bytes(folder / f"{name}/{row}.png", encoded_picture(f"{name}/{row}.png"))
        lines.append(f"{name}/{row}.png,{row == 'train'},{camera},{row}")
    (folder / f"{name}.csv").write_text("\n".join(lines))


def tables(tiny_config, tmp_path, **splits):
    for name, split in splits.items():
        table_of(tmp_path / "in", split, name)
    folders = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    return tiny_config(**folders, **{"eval.datasets": tuple(f"table/{name}" for name in splits)})


def test_two_protocols_cannot_share_a_results_file(tiny_config, tmp_path):
    config = tables(tiny_config, tmp_path, **{"shop": "queryx", "shop.queryx": "query"})
    with pytest.raises(DataError) as error:
        evaluation_data(config)
    assert str(error.value) == (
        "table/shop queryx and table/shop.queryx query: the results of both would be named "
        "table-shop.queryx.json; rename one of the data sets or splits"
    )


@pytest.mark.parametrize(
    "suffix", ["average", "best", "foreground", "parts", "step30", "untrained"]
)
def test_a_name_cannot_end_like_the_names_of_other_results(suffix, tiny_config, tmp_path):
    config = tables(tiny_config, tmp_path, **{f"shop.{suffix}": "query"})
    with pytest.raises(DataError) as error:
        evaluation_data(config)
    assert str(error.value) == (
        f"table/shop.{suffix} query: its results would be named table-shop.{suffix}.json, where "
        f".{suffix} has another meaning; rename the data set or the split"
    )


def test_a_query_that_finds_its_own_picture_is_a_warning(tiny_config, tmp_path, capsys):
    # Camera 0 repeats camera 1's picture of person 7 (ranked) and its own of person 8 (junk).
    rows = [
        ("query", "a", 7, 0), ("query", "b", 8, 0),
        ("gallery", "a", 7, 1), ("gallery", "b", 8, 0), ("gallery", "c", 8, 1),
    ]  # fmt: skip
    lines = ["path,identity,camera,split"]
    for split, content, identity, camera in rows:
        path = f"{split}_{identity}_{camera}.png"
        write_bytes(tmp_path / "in" / path, encoded_picture(f"{content}.png"))
        lines.append(f"{path},{identity},{camera},{split}")
    (tmp_path / "in/shop.csv").write_text("\n".join(lines))
    folders = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    evaluation_data(tiny_config(**folders, **{"eval.datasets": ("table/shop",)}))
    warned = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in warned if "rank" in line] == [
        "query: 2 queries are also in the gallery; for 1 of them all copies are junk (same "
        "identity and camera) and leave the ranking; for 1 a copy is ranked and distorts the "
        "scores: query_7_0.png; remove one of each pair"
    ]


def test_the_junk_copies_of_occluded_duke_are_no_warning(tiny_config, tmp_path, capsys):
    write_tree("occluded_duke", tmp_path / "in")
    folders = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    evaluation_data(tiny_config(**folders, **{"eval.datasets": ("occluded_duke",)}))
    assert "also in the gallery" not in capsys.readouterr().err


def test_another_source_of_prepared_data_is_a_warning(tiny_config, tmp_path, capsys):
    write_tree("partial_ilids", tmp_path / "one")
    evaluated = {"data.data_dir": str(tmp_path / "data"), "eval.datasets": ("partial_ilids",)}

    def warnings_of(manual_dir):
        evaluation_data(tiny_config(**evaluated, **{"data.manual_dir": str(manual_dir)}))
        return [line for line in capsys.readouterr().err.splitlines() if "prepared from" in line]

    same = tmp_path / "one", f"{tmp_path}/data/../one/", ""
    assert [warnings_of(manual_dir) for manual_dir in same] == [[], [], []]
    assert warnings_of(tmp_path / "none.zip") == [
        f"warning: {tmp_path}/data/partial_ilids was prepared from {tmp_path}/one; delete it to "
        f"prepare it from {tmp_path}/none.zip"
    ]
    shutil.rmtree(tmp_path / "one")
    assert len(warnings_of("~/none.zip")) == 1


def test_a_link_that_leads_elsewhere_now_is_another_source(tiny_config, tmp_path, capsys):
    for name in ("one", "two"):
        write_tree("partial_ilids", tmp_path / name)
    link = tmp_path / "link"
    config = tiny_config(
        **{
            "data.data_dir": str(tmp_path / "data"),
            "data.manual_dir": str(link),
            "eval.datasets": ("partial_ilids",),
        }
    )
    for target, warned in (("one", 0), ("one", 0), ("two", 1)):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        evaluation_data(config)
        line = (
            f"{tmp_path}/data/partial_ilids was prepared from {tmp_path}/one; delete it to prepare "
            f"it from {link}"
        )
        assert capsys.readouterr().err.count(line) == warned


@pytest.mark.parametrize("name", ["partial_ilids", "occluded_duke", "zip"])
def test_a_source_that_has_changed_is_a_warning(name, tiny_config, tmp_path, capsys):
    """Also if a list has; nothing else that lies beside the data set counts, and no times."""
    zipped = name == "zip"
    name = "partial_ilids" if zipped else name
    source, given = tmp_path / "in", tmp_path / "in.zip" if zipped else tmp_path / "in"
    if name == "occluded_duke":
        write_tree("dukemtmc_reid", source)
        for file, text in occluded_duke_lists().items():
            write_bytes(source / "lists" / file, text.encode())
    else:
        write_tree(name, source)

    def warned():
        if zipped:
            shutil.make_archive(str(source), "zip", source)
        config = tiny_config(
            **{
                "data.data_dir": str(tmp_path / "data"),
                "data.manual_dir": str(given),
                "eval.datasets": (name,),
            }
        )
        evaluation_data(config)
        lines = [line for line in capsys.readouterr().err.splitlines() if "prepared from" in line]
        assert lines in (
            [],
            [
                f"warning: {tmp_path}/data/{name} was prepared from {given}, whose images or lists "
                "have changed since; delete it to prepare them"
            ],
        )
        return bool(lines)

    assert [warned(), warned()] == [False, False]
    image = next(file for file in sorted(source.rglob("*.jpg")) if "query" not in str(file))
    if not zipped:
        write_bytes(source / "notes.md", b"mine")
        shutil.copy(image, tmp_path / "copy")
        (tmp_path / "copy").replace(image)
        assert not warned()
    if name == "occluded_duke":
        chosen = source / "lists" / "gallery.list"
        chosen.write_text("\n".join(reversed(chosen.read_text().splitlines())))
    else:
        image.write_bytes(image.read_bytes() + b"\0")
    assert warned()
    shutil.rmtree(tmp_path / "data")
    assert not warned()


def test_prepared_data_without_a_signature_are_as_they_were(tiny_config, tmp_path, capsys):
    write_tree("partial_ilids", tmp_path / "in")
    folders = {"data.data_dir": str(tmp_path / "data"), "data.manual_dir": str(tmp_path / "in")}
    config = tiny_config(**folders, **{"eval.datasets": ("partial_ilids",)})
    evaluation_data(config)
    (file,) = (tmp_path / "data").rglob("metadata.json")
    metadata = json.loads(file.read_text())
    del metadata["source_places"], metadata["source_sha256"]
    file.write_text(json.dumps(metadata))
    next((tmp_path / "in").rglob("*.jpg")).unlink()
    capsys.readouterr()
    evaluation_data(config)
    assert "prepared from" not in capsys.readouterr().err


def test_a_relative_source_is_the_same_from_another_folder(
    tiny_config, tmp_path, monkeypatch, capsys
):
    write_tree("partial_ilids", tmp_path / "one/in")
    evaluated = {"data.data_dir": str(tmp_path / "data"), "eval.datasets": ("partial_ilids",)}
    (tmp_path / "two").mkdir()
    for place, manual_dir in (("one", "in"), ("two", "../one/in"), ("two", "in")):
        monkeypatch.chdir(tmp_path / place)
        evaluation_data(tiny_config(**evaluated, **{"data.manual_dir": manual_dir}))
        warned = [line for line in capsys.readouterr().err.splitlines() if "prepared from" in line]
        assert warned == [
            f"warning: {tmp_path}/data/partial_ilids was prepared from {tmp_path}/one/in; delete "
            "it to prepare it from in"
        ] * (place == "two" and manual_dir == "in")


def test_a_table_may_move(tiny_config, tmp_path, capsys):
    config = tables(tiny_config, tmp_path, shop="query")
    evaluation_data(config)
    (tmp_path / "in").rename(tmp_path / "moved")
    data = dataclasses.replace(config.data, manual_dir=str(tmp_path / "moved"))
    evaluation_data(dataclasses.replace(config, data=data))
    assert "prepared from" not in capsys.readouterr().err


def test_the_dry_run_is_a_few_queries_and_their_people(tiny_config, catalogs):
    dry_run = evaluation_data(tiny_config()).dry_run
    assert len(dry_run.protocols) == 2
    for protocol, split in zip(dry_run.protocols, ("query", "query_holistic"), strict=True):
        query, gallery = dry_run.splits[protocol.query], dry_run.splits[protocol.gallery]
        np.testing.assert_array_equal(query.filenames, catalogs[split].filenames[:4])
        people = np.isin(catalogs["gallery"].identities, catalogs[split].identities[:4])
        np.testing.assert_array_equal(gallery.filenames, catalogs["gallery"].filenames[people])
        (batch,) = gallery.batches()
        assert batch["valid"].sum() == people.sum()


TEACHERS = {"eval.embeddings": ("main", "foreground")}


def _lose_poses(monkeypatch, lost):
    """Take the poses of images with these indices from every split."""

    def opened(*arguments, **options):
        catalog = open_catalog(*arguments, **options)
        keypoints = catalog.keypoints.copy()
        keypoints[lost] = 0
        return catalog.replace_poses(keypoints, None)

    monkeypatch.setattr(from_config, "open_catalog", opened)


def test_teachers_are_not_scored_without_any_pose(tiny_config, monkeypatch):
    _lose_poses(monkeypatch, slice(None))
    with pytest.raises(DataError) as error:
        evaluation_data(tiny_config(**TEACHERS))
    assert (
        "occluded: 0 of 16 queries and 0 of 48 gallery images have a pose that is drawn "
        "(config.data.pose.threshold=0.2), and no match among them, so that no "
        "teacher can be scored; give config.data.pose.files (docs/poses.md), or score main "
        "alone with config.eval.embeddings"
    ) in str(error.value)
    evaluation_data(tiny_config())  # the main branch needs none


def test_the_dry_run_of_teachers_is_of_images_with_poses(
    tiny_config, catalogs, monkeypatch, capsys
):
    _lose_poses(monkeypatch, slice(0, 6))
    dry_run = evaluation_data(tiny_config(**TEACHERS)).dry_run
    warned = "occluded: 10 of 16 queries and 42 of 48 gallery images have a pose that is drawn"
    assert warned in capsys.readouterr().err
    query = dry_run.splits[dry_run.protocols[0].query]
    gallery = dry_run.splits[dry_run.protocols[0].gallery]
    assert np.isin(query.filenames, catalogs["query"].filenames[6:]).all() and len(query) == 4
    assert not np.isin(gallery.filenames, catalogs["gallery"].filenames[:6]).any()
    for split in (query, gallery):
        (batch,) = split.batches()
        assert (batch["visibility"].max(axis=1) > 0).sum() == len(split)


def test_batches_of_a_split_and_of_its_dry_run_are_even(tiny_config):
    # On the eight devices of the tests, rows are rounded up to multiples of 8.
    data = evaluation_data(tiny_config(**{"eval.batch_size": 40}))
    rows = {
        name: [batch["valid"].tolist() for batch in split.batches()]
        for name, split in data.splits.items()
    }
    assert rows[f"{TINY}/query"] == rows[f"{TINY}/query_holistic"] == [[1] * 16]
    assert rows[f"{TINY}/gallery"] == [[1] * 24] * 2
    for protocol in data.dry_run.protocols:
        sizes = [
            [len(batch["valid"]) for batch in data.dry_run.splits[name].batches()]
            for name in (protocol.query, protocol.gallery)
        ]
        assert sizes == [[16], [24]]


def test_budget_reaches_the_catalog(tiny_config):
    in_memory = training_data(tiny_config(**{"data.memory_gib": 1.0}))
    on_demand = training_data(tiny_config(**{"data.memory_gib": 0.0}))
    assert in_memory.description == on_demand.description
    first, second = first_batch(in_memory), first_batch(on_demand)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
