import dataclasses
import hashlib
import io
import os

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from input_pipeline.catalog import Catalog, _check_columns, joined_catalogs, read_catalog
from input_pipeline.encoded_images import EncodedImages, exif_orientation, image_size, open_shard
from input_pipeline.errors import DataError
from input_pipeline.poses.cache import PoseCache, join_poses


def encode(height, width, extension=".jpg", options=()):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, image, options)[1].tobytes()


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


RECORDS = [
    {"filename": "b.jpg", "image": encode(10, 5), "identity": 70, "camera": 1},
    {"filename": "c.jpg", "image": encode(20, 8), "identity": 3, "camera": 2},
    {"filename": "a.jpg", "image": encode(30, 9), "identity": 70, "camera": 3},
]
POSES = np.arange(3 * 51, dtype=np.float32).reshape(3, 17, 3) / 200
OCCLUSION = np.array([0.1, 0.2, 0.3], np.float32)


def prepared(folder, records, extra=None):
    """A prepared TFDS set with the splits ``train`` (two shards) and ``query`` (empty)."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "identity": tfds.features.Scalar(np.int64),
        "camera": tfds.features.Scalar(np.int64),
        "filename": tfds.features.Text(),
    }
    features = tfds.features.FeaturesDict(features | (extra or {}))
    halves = [records[: len(records) // 2], records[len(records) // 2 :]]
    paths = [folder / f"fake-train.tfrecord-0000{shard}-of-00002" for shard in (0, 1)]
    for path, half in zip(paths, halves, strict=True):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in half:
                writer.write(features.serialize_example(features.encode_example(record)))
    (folder / "fake-query.tfrecord-00000-of-00001").touch()
    size = sum(path.stat().st_size for path in paths)
    train = tfds.core.SplitInfo(
        name="train", shard_lengths=[len(half) for half in halves], num_bytes=size
    )
    query = tfds.core.SplitInfo(name="query", shard_lengths=[0], num_bytes=0)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[train, query],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    return tfds.builder_from_directory(folder)


@pytest.fixture(params=[0.0, 1.0], ids=["on demand", "in memory"])
def catalog(request, tmp_path):
    keypoints = {"keypoints": tfds.features.Tensor(shape=(17, 3), dtype=np.float32)}
    occlusion = {"occlusion": tfds.features.Scalar(np.float32)}
    records = [
        record | {"keypoints": POSES[i], "occlusion": OCCLUSION[i]}
        for i, record in enumerate(RECORDS)
    ]
    builder = prepared(tmp_path, records, keypoints | occlusion)
    return read_catalog(builder, "train", memory_gib=request.param)


def test_reads_everything_sorted_by_file_name(catalog):
    assert list(catalog.filenames) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(catalog) == 3
    assert list(catalog.images) == [encode(30, 9), encode(10, 5), encode(20, 8)]
    np.testing.assert_array_equal(catalog.identities, [70, 70, 3])
    np.testing.assert_array_equal(catalog.cameras, [3, 1, 2])
    np.testing.assert_array_equal(catalog.keypoints, POSES[[2, 0, 1]])
    np.testing.assert_array_equal(catalog.image_sizes, [[30, 9], [10, 5], [20, 8]])
    np.testing.assert_array_equal(catalog.occlusion, np.float32([0.3, 0.1, 0.2]))
    assert catalog.identities.dtype == catalog.cameras.dtype == np.int64
    digests = [hashlib.sha256(image).hexdigest() for image in catalog.images]
    assert list(catalog.image_sha256) == digests


def test_a_joint_at_the_origin_has_confidence_0(tmp_path):
    poses = POSES + np.float32([0, 0, 0.1])
    poses[1, [4, 7], :2] = 0
    extra = {"keypoints": tfds.features.Tensor(shape=(17, 3), dtype=np.float32)}
    records = [row | {"keypoints": pose} for row, pose in zip(RECORDS, poses, strict=True)]
    found = read_catalog(prepared(tmp_path, records, extra), "train").keypoints
    poses[1, [4, 7], 2] = 0
    np.testing.assert_array_equal(found, poses[[2, 0, 1]])


def test_images_are_indexed_like_an_array(catalog):
    several = catalog.images[np.array([2, 0, 2])]
    assert several.dtype == object
    assert list(several) == [encode(20, 8), encode(30, 9), encode(20, 8)]
    assert list(catalog.images[catalog.identities == 3]) == [encode(20, 8)]


def test_images_beyond_the_budget_stay_on_disk(tmp_path):
    builder = prepared(tmp_path, RECORDS)
    size = builder.info.splits["train"].num_bytes
    shards = {
        gib: read_catalog(builder, "train", memory_gib=gib).images._shards
        for gib in ((size - 1) / 2**30, size / 2**30)
    }
    held = [all(isinstance(shard, bytes) for shard in shards[gib]) for gib in sorted(shards)]
    assert held == [False, True]


def test_what_a_data_set_lacks_is_filled_in(tmp_path):
    catalog = read_catalog(prepared(tmp_path, RECORDS), "train")
    assert catalog.keypoints.shape == (3, 17, 3) and not catalog.has_pose.any()
    assert np.isnan(catalog.occlusion).all() and catalog.part_maps is None


def test_labels_are_dense_and_follow_the_identities(catalog):
    np.testing.assert_array_equal(catalog.labels, [1, 1, 0])
    assert catalog.num_identities == 2


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"fake/1\.0\.0: no split 'test'; it has query, train"):
        read_catalog(prepared(tmp_path, RECORDS), "test")


def test_an_empty_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match="'query' is empty"):
        read_catalog(prepared(tmp_path, RECORDS), "query")


def test_a_damaged_shard_is_named(tmp_path):
    builder = prepared(tmp_path, RECORDS)
    path = tmp_path / "fake-train.tfrecord-00001-of-00002"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    remedy = f"{path}: damaged; delete the folder {tmp_path}, and the data set is prepared again"
    with pytest.raises(DataError, match=f"^{remedy}$"):
        read_catalog(builder, "train")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("memory_gib", [0.0, 1.0])
def test_a_lost_shard_is_named_with_the_remedy(tmp_path, memory_gib):
    builder = prepared(tmp_path, RECORDS)
    path = tmp_path / "fake-train.tfrecord-00001-of-00002"
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: missing; delete the folder {tmp_path}, and "):
        read_catalog(builder, "train", memory_gib=memory_gib)


def test_a_shard_that_lost_its_images_is_noticed(tmp_path):
    builder = prepared(tmp_path, RECORDS)
    paths = sorted(tmp_path.glob("fake-train*"))
    paths[1].write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{paths[0]}: incomplete \(\d of \d images\); delete"):
        read_catalog(builder, "train")
    paths[0].write_bytes(b"")
    with pytest.raises(DataError, match=f"^{paths[0]}: empty; delete the folder"):
        read_catalog(builder, "train")


@pytest.mark.parametrize(
    "extension, options",
    [(".jpg", ()), (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), (".png", ())],
)
def test_sizes_come_from_the_header(extension, options):
    assert image_size(encode(33, 17, extension, options)) == (33, 17)
    assert image_size(encode(300, 1, extension, options)) == (300, 1)
    assert image_size(encode(33, 17, extension, options) + b"what a phone appends") == (33, 17)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_a_file_cut_off_anywhere_has_no_size(extension):
    whole = encode(33, 17, extension)
    # The last bytes of a PNG are the checksum of an empty chunk.
    assert all(image_size(whole[:end]) is None for end in range(len(whole) - 8))


@pytest.mark.parametrize("image", [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG"])
def test_a_file_that_is_not_an_image_has_no_size(image):
    assert image_size(image) is None


def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path):
    catalog = read_catalog(prepared(tmp_path, RECORDS), "train")
    for path in tmp_path.glob("fake-train*"):
        os.truncate(path, 50)
    with pytest.raises(DataError, match=r"fake-train.*: truncated while it was read"):
        catalog.images[np.arange(3)]


def test_an_empty_shard_can_be_opened(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    shards = [open_shard(str(tmp_path / "empty"), in_memory) for in_memory in (False, True)]
    images = EncodedImages(shards, np.array([[0, 0, 0], [1, 0, 0]]))
    assert list(images) == [b"", b""]


def made(count=7):
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 80, (count, 2))
    keypoints = rng.uniform(0, 1, (count, 17, 3)).astype(np.float32)
    keypoints[..., :2] = keypoints[..., :2] * sizes[:, None, ::-1] - 0.5
    keypoints[2] = 0
    return Catalog(
        images=objects([b""] * count),
        filenames=objects([str(i) for i in range(count)]),
        identities=np.arange(count),
        cameras=np.arange(count),
        keypoints=keypoints,
        image_sizes=sizes,
        occlusion=np.full(count, np.nan, np.float32),
    )


def cache_of(catalog, rows, **changes):
    """A pose cache for some images, in another order."""
    rows = np.array(rows)
    keypoints = np.arange(len(rows) * 51, dtype=np.float32).reshape(-1, 17, 3) / 1000
    fields = {
        "image_sha256": catalog.image_sha256[rows],
        "splits": np.array(["train"] * len(rows)),
        "filenames": np.array([str(row) for row in rows]),
        "keypoints": keypoints,
        "sources": np.array([f"{row}.json" for row in rows]),
        "estimators": np.array(["by hand"] * len(rows)),
    }
    return PoseCache(**{**fields, **changes})


def with_content(catalog):
    return dataclasses.replace(catalog, images=objects([b"%d" % i for i in range(len(catalog))]))


def test_poses_of_a_cache_join_by_content():
    catalog = with_content(made())
    cache = cache_of(catalog, [4, 2])
    joined = join_poses(catalog, cache)
    np.testing.assert_array_equal(joined.keypoints[[4, 2]], cache.keypoints)
    others = [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(joined.keypoints[others], catalog.keypoints[others])
    assert joined.part_maps is None and joined.has_pose.all()


def test_a_cache_of_other_images_changes_nothing():
    catalog = with_content(made())
    other = dataclasses.replace(catalog, images=objects([b"other %d" % i for i in range(7)]))
    maps = np.ones((2, 4, 3, 8), np.uint8)
    assert join_poses(catalog, cache_of(other, [1, 2], part_maps=maps)) is catalog
    # Nor do maps of other images, if the images of this catalog have keypoints.
    maps[0] = 0
    mixed = cache_of(catalog, [1, 2], part_maps=maps)
    mixed.image_sha256[1] = other.image_sha256[2]
    assert join_poses(catalog, mixed).part_maps is None


def test_a_pose_without_confidence_is_none():
    keypoints = made().keypoints
    keypoints[4, :, 2] = 0
    catalog = dataclasses.replace(made(), keypoints=keypoints)
    np.testing.assert_array_equal(catalog.has_pose, [True, True, False, True, False, True, True])


def test_a_pose_is_drawn_from_the_threshold_on():
    catalog = made().without_poses()
    catalog.keypoints[0, 3, 2], catalog.keypoints[1, 3, 2] = 0.2, 0.19
    maps = np.zeros((len(catalog), 2, 2, 8), np.uint8)
    maps[2, 1, 1, 7], maps[3, 1, 1, 7] = 51, 50  # 51 / 255 = 0.2
    for threshold, drawn in ((0.2, [0, 2]), (0.0, [0, 1, 2, 3])):
        posed = catalog.replace_poses(catalog.keypoints, maps).drawn(threshold)
        assert np.flatnonzero(posed).tolist() == drawn
    assert np.flatnonzero(catalog.drawn(0.2)).tolist() == [0]


def test_images_that_viewers_turn_are_known_by_their_exif_tag():
    picture = Image.new("RGB", (4, 8))

    def encoded(kind, orientation):
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = orientation
        picture.save(file, kind, exif=exif)
        return file.getvalue()

    images = [encoded("JPEG", orientation) for orientation in (0, 1, 2, 6, 8, 9)]
    plain = io.BytesIO()
    picture.save(plain, "JPEG")
    images += [encoded("PNG", 3), plain.getvalue(), b"Exif\x00\x00 of no picture"]
    assert [exif_orientation(image) for image in images] == [1, 1, 2, 6, 8, 1, 3, 1, 1]
    catalog = dataclasses.replace(made(), images=np.array([*images[:5], *images[6:8]], object))
    assert np.flatnonzero(catalog.turned).tolist() == [2, 3, 4, 5]


def test_selected_images_keep_their_columns(catalog):
    chosen = catalog.select(np.array([2, 0]))
    assert list(chosen.images) == [catalog.images[2], catalog.images[0]]
    assert list(chosen.filenames) == ["c.jpg", "a.jpg"]
    np.testing.assert_array_equal(chosen.keypoints, catalog.keypoints[[2, 0]])
    assert list(chosen.image_sha256) == [catalog.image_sha256[i] for i in (2, 0)]


def test_joined_catalogs_are_one_after_the_other(catalog):
    first, second = catalog.select(np.array([2, 0])), catalog.select(np.array([1]))
    both = joined_catalogs([first, second])
    assert both.filenames.tolist() == catalog.filenames[[2, 0, 1]].tolist()
    assert both.images.tolist() == [catalog.images[row] for row in (2, 0, 1)]
    np.testing.assert_array_equal(both.keypoints, catalog.keypoints[[2, 0, 1]])
    assert both.part_maps is None

    def posed(few, rows, value):
        maps = np.full((len(few), rows, 2, 8), value, np.uint8)
        return few.replace_poses(few.keypoints, maps)

    given = joined_catalogs([first, posed(second, 4, 7), posed(second, 4, 9), posed(second, 5, 9)])
    assert given.part_maps[:, 0, 0, 0].tolist() == [0, 0, 7, 9, 0]


def test_part_maps_of_a_cache_join_too():
    catalog = with_content(made())
    maps = np.random.default_rng(0).integers(1, 256, (2, 6, 3, 8)).astype(np.uint8)
    cache = cache_of(catalog, [2, 5], keypoints=np.zeros((2, 17, 3), np.float32), part_maps=maps)
    joined = join_poses(catalog, cache)
    np.testing.assert_array_equal(joined.part_maps[[2, 5]], maps)
    assert not joined.part_maps[[0, 1, 3, 4, 6]].any() and joined.has_pose.all()
    assert not joined.keypoints[[2, 5]].any()  # one kind of pose for an image
    assert joined.without_poses().part_maps is None
    other = cache_of(catalog, [1], part_maps=np.ones((1, 5, 3, 8), np.uint8))
    with pytest.raises(DataError, match=r"config.data.pose.files: part maps on different grids"):
        join_poses(joined, other)


def test_without_poses():
    catalog = made()
    assert not catalog.without_poses().keypoints.any()
    assert catalog.keypoints.any()
    assert dataclasses.is_dataclass(catalog.without_poses())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": None}, "feature 'camera' is missing"),
        ({"camera": np.array([b"c1", b"c2"], object)}, "'camera' must be an integer"),
        ({"filename": np.array([b"a.jpg", b"a.jpg"], object)}, "a.jpg: this filename occurs more"),
        ({"keypoints": np.zeros((2, 18, 3))}, r"keypoints must be \(17, 3\), not \(18, 3\)"),
        ({"keypoints": np.full((2, 17, 3), 2.0)}, r"a.jpg: .* confidences in \[0, 1\]"),
        ({"keypoints": np.full((2, 17, 3), np.nan)}, r"a.jpg: keypoints must be finite"),
    ],
)
def test_impossible_features_are_named(change, message):
    columns = {
        "filename": np.array([b"a.jpg", b"b.jpg"], object),
        "identity": np.array([1, 2]),
        "camera": np.array([0, 1]),
        **change,
    }
    columns = {name: value for name, value in columns.items() if value is not None}
    with pytest.raises(DataError, match=message):
        _check_columns(columns)
