import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.poses.annotation import Annotation, stack_people
from input_pipeline.poses.cache import read_poses, write_poses
from input_pipeline.poses.coverage import coverage, format_coverage, write_left_over
from input_pipeline.poses.importing import build_cache, join


def keypoints(image, *people, target=None):
    return Annotation(image, image, stack_people(list(people)), target)


def dense(image, value=200):
    return Annotation(image, image, stack_people([]), part_maps=np.full((3, 2, 8), value, np.uint8))


def built(images, *annotations, **options):
    joined = join(images, annotations, "/root")
    return build_cache(images, joined, estimator="tool", **options)[0]


def test_every_copy_of_an_image_gets_its_pose_and_no_other_image(make_images, make_person):
    images = make_images(
        ("train", "c.jpg", 1),
        ("query", "a.jpg", 2),
        ("gallery", "b.jpg", 2),
        ("gallery", "d.jpg", 3),
    )
    first, second = make_person(), make_person(3, 4)
    cache = built(images, keypoints("c.json", first), keypoints("a.json", second))
    rows = list(zip(cache.splits, cache.filenames, cache.sources, strict=True))
    assert rows == [
        ("gallery", "b.jpg", "a.json"),
        ("query", "a.jpg", "a.json"),
        ("train", "c.jpg", "c.json"),
    ]
    np.testing.assert_array_equal(cache.keypoints, [second, second, first])
    assert cache.estimators.tolist() == ["tool"] * 3
    assert cache.lookup(images.sha256).tolist() == [0, -1, 0, 2]


def test_the_target_and_the_distractors(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), ("query", "b.jpg", 2), ("query", "c.jpg", 3))
    near, far, nobody = make_person(14, 12), make_person(-30, 40), make_person()
    nobody[:, 2] = 0
    annotations = [
        keypoints("a", far, nobody, near),
        keypoints("b", near),
        keypoints("c", near, far, target=1),
    ]
    cache = built(images, *annotations, keep_distractors=True)
    np.testing.assert_array_equal(cache.keypoints, [near, near, far])
    np.testing.assert_array_equal(cache.distractors, [far, near])
    assert cache.distractor_rows.tolist() == [0, 2]
    assert built(images, *annotations).distractors is None


def test_distractors_may_be_none_at_all(make_images, make_person, tmp_path):
    cache = built(
        make_images(("q", "a.jpg", 1)), keypoints("a", make_person()), keep_distractors=True
    )
    write_poses(tmp_path / "poses.npz", cache)
    assert read_poses(tmp_path / "poses.npz").distractors.shape == (0, 17, 3)


def test_without_a_visible_target_there_is_no_pose(make_images, make_person):
    images = make_images(*(("query", f"{name}.jpg", name) for name in "abcd"))
    hidden = make_person()
    hidden[:, 2] = 0
    cache = built(
        images,
        keypoints("a"),
        keypoints("b", hidden, make_person(), target=0),
        dense("c", 0),
        keypoints("d", make_person()),
        keep_distractors=True,
    )
    assert cache.filenames.tolist() == ["d.jpg"] and len(cache.distractors) == 0


def test_keypoints_win_over_dense_maps_and_dense_maps_over_nothing(
    make_images, make_person, tmp_path
):
    images = make_images(*(("query", f"{name}.jpg", name) for name in "abc"))
    cache = built(
        images,
        dense("heatmaps/a.npy"),
        keypoints("sep-json/a.json", make_person()),
        keypoints("sep-json/b.json"),
        dense("heatmaps/b.npy", 100),
        keypoints("second/c.json", make_person(9, 9)),
        keypoints("first/c.json", make_person(7, 7)),
    )
    np.testing.assert_array_equal(
        cache.keypoints, [make_person(), np.zeros((17, 3)), make_person(7, 7)]
    )
    np.testing.assert_array_equal(cache.part_maps[:, 0, 0, 0], [0, 100, 0])
    assert cache.sources.tolist() == ["sep-json/a.json", "heatmaps/b.npy", "first/c.json"]
    write_poses(tmp_path / "poses.npz", cache)  # which checks the cache
    assert read_poses(tmp_path / "poses.npz").part_maps.shape == (3, 3, 2, 8)


def test_the_pose_of_the_exact_folder_wins_over_all_others(make_images, make_person):
    images = make_images(("query", "query/a.jpg", 1))
    exact, other = make_person(5, 5), make_person(9, 9)
    cache = built(images, keypoints("others/a.json", other), keypoints("query/a.json", exact))
    assert cache.sources.tolist() == ["query/a.json"]
    np.testing.assert_array_equal(cache.keypoints, [exact])
    cache = built(images, dense("query/a.npy"), keypoints("others/a.json", other))
    assert cache.sources.tolist() == ["query/a.npy"]


def test_keypoints_of_resized_images_are_scaled_back(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), size=(60, 50))
    person = make_person(0, 0)
    person[:, :2] = np.linspace(0, 99, 34).reshape(17, 2)
    # The middle of a pixel stays the middle: of 240 × 100, (x, y) = (49.5, 119.5) is the centre.
    person[0, :2] = 49.5, 119.5
    cache = built(images, keypoints("a", person), seen_size=(240, 100))
    assert cache.keypoints[0, 0, :2].tolist() == [24.5, 29.5]
    np.testing.assert_allclose(cache.keypoints[0, :, 0], (person[:, 0] + 0.5) / 2 - 0.5, atol=1e-5)
    np.testing.assert_allclose(cache.keypoints[0, :, 1], (person[:, 1] + 0.5) / 4 - 0.5, atol=1e-5)
    np.testing.assert_array_equal(cache.keypoints[0, :, 2], person[:, 2])


def test_keypoints_are_scaled_from_the_size_that_an_annotation_gives(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), ("query", "b.jpg", 2), size=(60, 50))
    person = make_person(5, 5)
    own = Annotation("b", "b", person[None], size=(60, 50))
    larger = Annotation("a", "a", person[None], size=(120, 100))
    joined = join(images, [larger, own], "/root")
    cache, warnings = build_cache(images, joined, estimator="tool")
    np.testing.assert_allclose(
        cache.keypoints[0, :, :2], (person[:, :2] + 0.5) / 2 - 0.5, atol=1e-5
    )
    np.testing.assert_array_equal(cache.keypoints[1], person)
    assert warnings == [
        "--input: it gives 1 images another size than they have (first: a.jpg, height × width "
        "120 × 100 there, 60 × 50 here); their keypoints are scaled"
    ]
    cache, warnings = build_cache(images, joined, estimator="tool", seen_size=(60, 50))
    assert not warnings and (cache.keypoints[0] == person).all()


def test_an_annotation_that_swaps_height_and_width_is_refused(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), size=(60, 50))
    turned = Annotation("a", "a", make_person()[None], size=(50, 60))
    with pytest.raises(DataError) as error:
        built(images, turned)
    assert str(error.value) == (
        "--input: it swaps height and width of 1 images (first: a.jpg, height × width 50 × 60 "
        "there, 60 × 50 here); correct them, or turn the images and make their poses again"
    )


def test_joints_outside_are_a_warning_of_the_import(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), size=(60, 50))
    person = make_person(5, 5)
    person[:, 2], person[:2, :2] = 0.9, 200
    joined = join(images, [keypoints("a", person)], "/root")
    assert build_cache(images, joined, estimator="tool")[1] == [
        "--input: 2 of 17 confident keypoints are outside their images: a.jpg; give the size at "
        "which the estimator saw the images as --seen-size HEIGHT WIDTH"
    ]


def test_the_input_folder_can_distinguish_stems(make_images, make_person):
    images = make_images(("query", "Probe/1.jpg", 1), ("gallery", "Gallery/1.jpg", 2))
    joined = join(images, [keypoints("1_keypoints.json", make_person())], "/poses/Probe")
    assert [annotation is not None for annotation in joined.annotations] == [False, True]
    joined = join(images, [keypoints("1_keypoints.json", make_person())], "/poses")
    assert joined.annotations == [None, None] and joined.ambiguous == ("1_keypoints.json",)


def test_nothing_found_is_one_line(make_images, make_person):
    images = make_images(("query", "Probe/1.jpg", 1), ("gallery", "Gallery/1.jpg", 2))
    with pytest.raises(
        DataError, match=r"none of its 2 poses belongs .* \(first: x\.json\); .*--dat"
    ):
        built(images, keypoints("x.json", make_person()), keypoints("1.json", make_person()))
    with pytest.raises(DataError, match="none shows a person"):
        built(images, keypoints("Probe/1.json"))


def test_coordinates_of_another_size_are_detected(make_images, make_person):
    images = make_images(("query", "a.jpg", 1), size=(60, 50))
    person = make_person(10, 10)
    person[:, 2] = 0.9
    person[:, :2] = 20
    person[:9, :2] = 200  # 9 of 17
    with pytest.raises(
        DataError, match=r"53% of the confident keypoints are outside .*--seen-size H"
    ):
        built(images, keypoints("a", person))
    with pytest.raises(DataError, match=r"are outside their images; check --seen-size"):
        built(images, keypoints("a", person), seen_size=(60, 50))
    person[8, :2] = -0.5, 59.5  # the very corner, which is inside
    built(images, keypoints("a", person))
    person[8, :2] = 200
    person[:3, 2] = 0.1  # doubtful ones do not count
    built(images, keypoints("a", person))


def test_poses_of_smaller_copies_are_a_warning_that_names_seen_size(make_images, make_person):
    names = [str(number) for number in range(12)]
    images = make_images(*(("query", f"{name}.jpg", name) for name in names), size=(120, 100))
    joined = join(images, [keypoints(name, make_person(20, 15)) for name in names], "/root")
    (warning,) = build_cache(images, joined, estimator="tool")[1]
    assert warning.startswith("--input: 99% of the confident keypoints are in the left 44% and the")
    assert warning.endswith(
        "give the size at which the estimator saw the images as --seen-size HEIGHT WIDTH"
    )
    assert build_cache(images, joined, estimator="tool", seen_size=(60, 50))[1] == []


def test_normalised_coordinates_are_detected(make_images, make_person):
    images = make_images(("query", "a.jpg", 1))
    person = make_person()
    person[:, :2] = np.linspace(-1, 1, 34).reshape(17, 2)
    with pytest.raises(DataError, match="--input: the keypoints of 1 of 1 images are between -1"):
        built(images, keypoints("a", person))


def test_coverage_counts(make_images, make_person, tmp_path):
    images = make_images(
        *(("train", f"{i}.jpg", f"t{i}") for i in range(8)),
        ("query", "q.jpg", "q"),
        ("gallery", "q.jpg", "q"),
        *((split, f"{split}/amb.jpg", split) for split in ("gallery", "query")),
    )
    sure, doubtful = make_person(), make_person()
    sure[:, 2], doubtful[:, 2] = 1.0, np.arange(17) / 34
    joined = join(
        images,
        [
            keypoints("0.json", sure),
            keypoints("1.json", doubtful, sure),
            keypoints("1.jpg.json", doubtful),
            keypoints("2.json"),
            dense("3.npy"),
            keypoints("q.json", sure),
            *(keypoints(f"lost/{i:02}.json", sure) for i in range(12)),
            keypoints("amb.json", sure),
        ],
        "/root",
    )
    cache = build_cache(images, joined, estimator="tool")[0]
    found = coverage(images, cache, joined)
    assert found.images == {"gallery": 2, "query": 2, "train": 8}
    assert found.posed == {"gallery": 1, "query": 1, "train": 3}
    # 1.jpg.json and 1.json are for the same image; the first by name is used. q counts twice.
    np.testing.assert_allclose(found.confidence, (3 + np.arange(17) / 34) / 4, rtol=1e-6)
    assert found.people == {0: 1, 1: 4} and found.mapped == 1 and found.superseded == 1
    assert list(found.left_over) == [
        "poses without an image",
        "poses with several possible images",
    ]

    text = format_coverage(found, tmp_path / "left.txt")
    assert "train                       8          3   37.5%" in text.splitlines()
    assert "all                        12          5   41.7%" in text.splitlines()
    assert "  nose        0.75" in text.splitlines()
    # left ankle: joint 15, right: 16
    assert f"  ankle       {(3 + 15 / 34) / 4:.2f} left  {(3 + 16 / 34) / 4:.2f} right" in text
    assert "people per image: 0 in 1, 1 in 4 images" in text
    assert "of these as part maps: 1" in text
    assert "poses without an image: 12 (lost/00.json, " in text
    assert "lost/09.json and 2 more)" in text and "lost/10.json" not in text
    assert "poses with several possible images: 1 (amb.json)" in text

    write_left_over(found, tmp_path / "left.txt")
    lines = (tmp_path / "left.txt").read_text().splitlines()
    assert len(lines) == 13
    assert lines[11] == "poses without an image\tlost/11.json"
    assert lines[12] == "poses with several possible images\tamb.json"


def test_the_list_of_an_earlier_import_is_deleted(make_images, make_person, tmp_path):
    images = make_images(("query", "a.jpg", 1))
    joined = join(images, [keypoints("a", make_person())], "/root")
    found = coverage(images, build_cache(images, joined, estimator="tool")[0], joined)
    (tmp_path / "left.txt").write_text("old")
    write_left_over(found, tmp_path / "left.txt")
    assert not list(tmp_path.iterdir())


def test_a_joint_at_the_origin_was_not_found_whatever_its_confidence(make_images, make_person):
    """Ultralytics sets x = y = 0 below a confidence of 0.5, and keeps the confidence."""
    images = make_images(("query", "a.jpg", 1), ("query", "b.jpg", 2), ("query", "c.jpg", 3))
    partly, never, whole = make_person(), make_person(), make_person()
    partly[[9, 15], :2] = 0
    partly[9, 2] = 0.45
    never[:, :2] = 0
    annotations = keypoints("a", partly), keypoints("b", never), keypoints("c", whole)
    for options in ({}, {"seen_size": (120, 100)}):  # scaled, such a joint would be elsewhere
        cache, warnings = build_cache(
            images, join(images, annotations, "/root"), estimator="tool", **options
        )
        assert cache.filenames.tolist() == ["a.jpg", "c.jpg"]
        expected = whole[:, 2].copy()
        expected[[9, 15]] = 0
        np.testing.assert_array_equal(cache.keypoints[..., 2], [expected, whole[:, 2]])
        assert [line for line in warnings if "(0, 0)" in line] == [
            "--input: 19 joints of 2 images are at (0, 0) with a confidence above 0; tools write "
            "this for joints that they did not find, so these have confidence 0"
        ]
