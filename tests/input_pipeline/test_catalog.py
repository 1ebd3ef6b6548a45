import dataclasses
import types

import cv2
import numpy as np
import pytest

from input_pipeline.catalog import (
    Catalog,
    DataError,
    _check_columns,
    _image_sizes,
    _to_catalog,
    read_catalog,
)


def encode(height, width, extension=".jpg", options=()):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(extension, image, options)[1].tobytes()


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def columns():
    return {
        "filename": objects([b"b.jpg", b"c.jpg", b"a.jpg"]),
        "image": objects([encode(10, 5), encode(20, 8), encode(30, 9)]),
        "identity": np.array([70, 3, 70]),
        "camera": np.array([1, 2, 3]),
        "keypoints": np.arange(3 * 51, dtype=np.float32).reshape(3, 17, 3) / 200,
        "occlusion": np.array([0.1, 0.2, 0.3], np.float32),
    }


class FakeBuilder:
    """As much of a TFDS builder as ``read_catalog`` uses."""

    def __init__(self, columns, shape=(None, None, 3)):
        self.columns = columns
        features = {"image": types.SimpleNamespace(shape=shape)}
        self.info = types.SimpleNamespace(
            full_name="fake/1.0.0", splits={"train": None, "query": None}, features=features
        )

    def as_dataset(self, split, decoders, shuffle_files):
        import tensorflow as tf

        assert "image" in decoders and not shuffle_files
        return tf.data.Dataset.from_tensor_slices(
            {
                name: tf.constant(list(values)) if values.dtype == object else values
                for name, values in self.columns.items()
            }
        )


def test_reads_everything_sorted_by_file_name():
    catalog = read_catalog(FakeBuilder(columns()), "train")
    assert list(catalog.filenames) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(catalog) == 3 and catalog.images[0] == encode(30, 9)
    np.testing.assert_array_equal(catalog.identities, [70, 70, 3])
    np.testing.assert_array_equal(catalog.cameras, [3, 1, 2])
    np.testing.assert_array_equal(catalog.keypoints[0], columns()["keypoints"][2])
    np.testing.assert_array_equal(catalog.image_sizes, [[30, 9], [10, 5], [20, 8]])
    np.testing.assert_array_equal(catalog.occlusion, np.float32([0.3, 0.1, 0.2]))
    assert catalog.identities.dtype == catalog.cameras.dtype == np.int64


def test_what_a_data_set_lacks_is_filled_in():
    bare = {k: v for k, v in columns().items() if k not in ("keypoints", "occlusion")}
    catalog = _to_catalog(bare, (128, 64, 3))
    assert catalog.keypoints.shape == (3, 17, 3) and not catalog.keypoints.any()
    assert np.isnan(catalog.occlusion).all()
    np.testing.assert_array_equal(catalog.image_sizes, [[128, 64]] * 3)


def test_labels_are_dense_and_follow_the_identities():
    catalog = _to_catalog(columns(), (None, None, 3))
    np.testing.assert_array_equal(catalog.labels, [1, 1, 0])
    assert catalog.num_identities == 2


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(DataError, match=r"fake/1\.0\.0: no split 'test'; it has query, train"):
        read_catalog(FakeBuilder(columns()), "test")


def test_an_empty_split_is_an_error():
    empty = {name: values[:0] for name, values in columns().items() if values.dtype != object}
    with pytest.raises(DataError, match="'train' is empty"):
        read_catalog(FakeBuilder(empty), "train")


@pytest.mark.parametrize(
    "extension, options",
    [(".jpg", ()), (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), (".png", ())],
)
def test_sizes_come_from_the_header(extension, options):
    images = objects([encode(33, 17, extension, options), encode(300, 1, extension, options)])
    sizes = _image_sizes(images, objects(["a", "b"]), (None, None, 3))
    np.testing.assert_array_equal(sizes, [[33, 17], [300, 1]])


@pytest.mark.parametrize("image", [b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG"])
def test_a_file_that_is_no_image_is_named(image):
    with pytest.raises(DataError, match=r"bad\.jpg: neither a JPEG nor a PNG"):
        _image_sizes(objects([image]), objects(["bad.jpg"]), (None, None, 3))


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


def relative(catalog):
    """Poses as fractions of their image."""
    position = (catalog.keypoints[..., :2] + 0.5) / catalog.image_sizes[:, None, ::-1]
    return np.concatenate([position, catalog.keypoints[..., 2:]], axis=2)


def test_shuffled_poses_go_to_other_images_at_their_scale():
    catalog = made()
    shuffled = catalog.shuffle_poses(seed=4)
    assert shuffled.images is catalog.images and shuffled.keypoints.dtype == np.float32
    # Each pose is found once, and never where it was. Image 2's, which is none, stays none.
    before, after = relative(catalog), relative(shuffled)
    posed = [i for i in range(7) if i != 2]
    found = [[i for i in range(7) if np.allclose(after[i], before[j], atol=1e-5)] for j in posed]
    assert all(len(places) == 1 for places in found)
    assert all(places != [j] for places, j in zip(found, posed, strict=True))
    assert len({places[0] for places in found}) == 6
    missing = ~shuffled.keypoints.any(axis=(1, 2))
    assert missing.sum() == 1 and not missing[2]


def test_shuffling_is_a_function_of_its_seed():
    first, again, other = (made().shuffle_poses(seed).keypoints for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


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
        ({"filename": np.array([b"a.jpg", b"a.jpg"], object)}, "a.jpg: the filename stands more"),
        ({"keypoints": np.zeros((2, 18, 3))}, r"keypoints must be \(17, 3\), not \(18, 3\)"),
        ({"keypoints": np.full((2, 17, 3), 2.0)}, r"a.jpg: .* confidences in \[0, 1\]"),
        ({"keypoints": np.full((2, 17, 3), np.nan)}, r"a.jpg: keypoints must be finite"),
    ],
)
def test_features_that_cannot_be_right_are_named(change, message):
    columns = {
        "image": np.array([b"", b""], object),
        "filename": np.array([b"a.jpg", b"b.jpg"], object),
        "identity": np.array([1, 2]),
        "camera": np.array([0, 1]),
        **change,
    }
    columns = {name: value for name, value in columns.items() if value is not None}
    with pytest.raises(DataError, match=message):
        _check_columns(columns)
