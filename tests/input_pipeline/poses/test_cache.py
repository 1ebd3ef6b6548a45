import dataclasses

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.poses.cache import PoseCache, read_poses, write_poses


def digest(character):
    return character * 64


def made(**changes):
    keypoints = np.linspace(0, 1, 3 * 51, dtype=np.float32).reshape(3, 17, 3)
    keypoints[1] = 0
    part_maps = np.zeros((3, 4, 2, 8), np.uint8)
    part_maps[1, 2, 1, 7] = 255
    cache = PoseCache(
        image_sha256=np.array([digest("b"), digest("a"), digest("b")]),
        splits=np.array(["gallery", "query", "query"]),
        filenames=np.array(["x/1.jpg", "a.jpg", "é.jpg"]),
        keypoints=keypoints,
        sources=np.array(["1.json", "2.npy", "1.json"]),
        estimators=np.array(["openpose"] * 3),
        part_maps=part_maps,
        distractors=keypoints[:1] + 0,
        distractor_rows=np.array([2]),
    )
    return dataclasses.replace(cache, **changes)


def assert_equal(first, second):
    for field in dataclasses.fields(PoseCache):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_what_is_written_is_read(tmp_path):
    write_poses(tmp_path / "poses.npz", made())
    assert_equal(read_poses(tmp_path / "poses.npz"), made())
    assert [path.name for path in tmp_path.iterdir()] == ["poses.npz"]


def test_a_joint_at_the_origin_has_confidence_0_in_a_file_of_before(tmp_path):
    cache = made()
    cache.keypoints[0, 3, :2] = cache.distractors[0, 5, :2] = 0
    cache.keypoints[2, 3, 0] = 0  # the left border alone is a place like any other
    write_poses(tmp_path / "poses.npz", cache)
    found = read_poses(tmp_path / "poses.npz")
    cache.keypoints[0, 3, 2] = cache.distractors[0, 5, 2] = 0
    assert_equal(found, cache)


def test_optional_arrays_may_be_missing(tmp_path):
    rows = slice(2, 3)
    bare = PoseCache(
        *(
            getattr(made(), name)[rows]
            for name in ("image_sha256", "splits", "filenames", "keypoints")
        ),
        sources=np.array(["1.json"]),
        estimators=np.array(["kpr"]),
    )
    write_poses(tmp_path / "poses.npz", bare)
    assert_equal(read_poses(tmp_path / "poses.npz"), bare)


def test_equal_caches_are_equal_files(tmp_path):
    for name in ("first.npz", "second.npz"):
        write_poses(tmp_path / name, made())
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_the_documented_arrays_are_what_numpy_finds(tmp_path):
    write_poses(tmp_path / "poses.npz", made())
    with np.load(tmp_path / "poses.npz", allow_pickle=False) as file:
        assert file["format_version"] == 1 and file["format_version"].shape == ()
        assert file["keypoints"].shape == (3, 17, 3) and file["keypoints"].dtype == np.float32
        assert file["part_maps"].max() == 255 and file["distractor_rows"].tolist() == [2]
        assert len(file.files) == 10


def test_lookup_finds_each_image_and_no_other():
    rows = made().lookup(np.array([digest("c"), digest("a"), digest("b"), digest("0")]))
    # b is in two rows: the first counts.
    assert rows.tolist() == [-1, 1, 0, -1]
    assert rows.dtype == np.int64


def test_lookup_equals_a_dictionary():
    rng = np.random.default_rng(0)
    digests = np.array([f"{number:064x}" for number in rng.permutation(200)])
    cache = made(image_sha256=digests[:100])
    places = {value: row for row, value in enumerate(digests[:100])}
    wanted = digests[rng.integers(0, 200, 500)]
    assert cache.lookup(wanted).tolist() == [places.get(value, -1) for value in wanted]


def test_lookup_of_nothing_and_in_nothing():
    assert made().lookup(np.array([], "U64")).tolist() == []
    empty = made(image_sha256=np.array([], "U64"))
    assert empty.lookup(np.array([digest("a")])).tolist() == [-1]


def nan_keypoints():
    keypoints = made().keypoints.copy()
    keypoints[0, 0, 0] = np.nan
    return keypoints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": np.zeros((3, 18, 3), np.float32)}, r"keypoints has shape .*, not \(3, 17, "),
        ({"keypoints": made().keypoints.astype(float)}, "keypoints is float64, not float32"),
        ({"keypoints": made().keypoints * 2}, "keypoints must be finite, with confidences in"),
        ({"keypoints": nan_keypoints()}, "keypoints must be finite"),
        ({"keypoints": made().keypoints * 0}, "either keypoints or part maps"),
        ({"part_maps": np.full((3, 4, 2, 8), 1, np.uint8)}, "either keypoints or part maps"),
        ({"part_maps": np.zeros((3, 4, 2, 7), np.uint8)}, r"part_maps .*, not \(3, 4, 2, 8\)"),
        ({"part_maps": np.zeros((3, 0, 2, 8), np.uint8)}, "part_maps has shape"),
        ({"sources": np.array(["1.json"])}, r"sources has shape \(1,\), not \(3\)"),
        ({"sources": np.array([1, 2, 3])}, "sources is int64, not text"),
        ({"image_sha256": np.array(["short"] * 3)}, "not SHA-256 digests"),
        ({"image_sha256": np.array([digest("x")] * 3)}, "not SHA-256 digests"),
        ({"splits": np.array(["query"] * 3)}, "not sorted by split and file name, each once"),
        ({"filenames": np.array(["a", "b", "a"])}, "not sorted by split and file name"),
        ({"distractors": None}, "distractors or distractor_rows is missing"),
        ({"distractor_rows": np.array([3])}, "distractor_rows point outside"),
        ({"distractor_rows": np.array([-1])}, "distractor_rows point outside"),
        ({"distractor_rows": np.array([0, 1])}, "distractor"),
        ({"distractors": np.full((1, 17, 3), np.inf, np.float32)}, "distractors must be finite"),
    ],
)
def test_wrong_values_are_neither_written_nor_read(tmp_path, change, message):
    path = tmp_path / "poses.npz"
    with pytest.raises(DataError, match=message):
        write_poses(path, made(**change))
    assert not list(tmp_path.iterdir())
    arrays = vars(made(**change))
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, format_version=np.array(1), **arrays)
    with pytest.raises(DataError, match=message) as error:
        read_poses(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "it has no format_version"),
        ({"format_version": np.array([1])}, "it has no format_version"),
        ({"format_version": np.array(2)}, "format version 2, not 1"),
        ({"format_version": np.array(1)}, "array image_sha256 is missing"),
        (
            {"format_version": np.array(1), **vars(made()), "more": np.zeros(1)},
            "unknown array more",
        ),
        ({"format_version": np.array(1), "sources": np.array([{}])}, "not a pose file, or a dam"),
    ],
)
def test_other_archives_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_poses(tmp_path / "other.npz")


def test_no_pickle_is_run(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="not a pose file"):
        read_poses(tmp_path / "evil.npy")


def test_every_truncation_is_one_line(tmp_path):
    write_poses(tmp_path / "poses.npz", made())
    whole = (tmp_path / "poses.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz: not a pose file, or a damaged one"):
            read_poses(tmp_path / "cut.npz")


def test_a_pointer_in_the_place_of_a_pose_file_is_named(tmp_path):
    (tmp_path / "p.npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"p\.npz: a Git LFS pointer, not the file itself; run"):
        read_poses(tmp_path / "p.npz")


def test_damaged_bytes_are_one_line_or_without_effect(tmp_path):
    write_poses(tmp_path / "poses.npz", made())
    whole = (tmp_path / "poses.npz").read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            assert_equal(read_poses(tmp_path / "bad.npz"), made())
        except DataError as error:
            assert str(error).startswith(f"{tmp_path / 'bad.npz'}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz: no such pose file"):
        read_poses(tmp_path / "nowhere.npz")
