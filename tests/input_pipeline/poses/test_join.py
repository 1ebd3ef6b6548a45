import pytest

from input_pipeline.poses.join import AMBIGUOUS, UNMATCHED, ImageIndex, bare_path


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("0002_c1s1_000451_03.jpg", "0002_c1s1_000451_03"),
        ("Probe/1_keypoints.json", "Probe/1"),
        ("Probe/1.jpg_keypoints.json", "Probe/1"),
        ("Probe/1.jpg.json", "Probe/1"),
        ("1.JPG.npy", "1"),
        ("query/1_openpose.json", "query/1"),
        ("query/1.jpg.predictions.json", "query/1"),
        ("query/1.jpg.pifpaf.json", "query/1"),
        ("predictions.json", "predictions"),
        ("a.b.tif", "a.b"),
        ("1.jpg.jpg", "1"),
        ("keypoints.json", "keypoints"),
        ("v1.json/2", "v1.json/2"),
    ],
)
def test_bare_path(name, bare):
    assert bare_path(name) == bare


def found(images, *paths):
    """For each path the content of the image found, as (split, filename) of its first image."""
    index = ImageIndex(images)
    results = []
    for path in paths:
        content = index.find(path).content
        rows = [row for row in range(len(images)) if index.contents[row] == content]
        results.append([f"{images.splits[row]}:{images.filenames[row]}" for row in rows] or content)
    return results


def test_poses_find_images_by_stem(make_images):
    images = make_images(("train", "t/a.jpg", 1), ("train", "t/b.png", 2), ("query", "q/c.jpg", 3))
    assert found(images, "/x/a.json", "b_keypoints.json", "/q/c.jpg", "d.json", "A.json") == [
        ["train:t/a.jpg"],
        ["train:t/b.png"],
        ["query:q/c.jpg"],
        UNMATCHED,
        UNMATCHED,
    ]


def test_folders_decide_where_stems_repeat(make_images):
    images = make_images(
        ("query", "Probe/1.jpg", 1),
        ("gallery", "Gallery/1.jpg", 2),
        ("other", "more/Probe/1.jpg", 3),
    )
    assert found(
        images,
        "/poses/Gallery/1_keypoints.json",
        "more/Probe/1.json",
        "Probe/1.json",  # two images end in Probe/1
        "1.json",
        "Nowhere/1.json",
    ) == [["gallery:Gallery/1.jpg"], ["other:more/Probe/1.jpg"], AMBIGUOUS, AMBIGUOUS, AMBIGUOUS]


def test_one_content_in_two_splits_is_one_image(make_images):
    images = make_images(
        ("query", "query/a.jpg", "same"),
        ("gallery", "bounding_box_test/a.jpg", "same"),
        ("gallery", "bounding_box_test/b.jpg", "other"),
    )
    both = ["gallery:bounding_box_test/a.jpg", "query:query/a.jpg"]
    assert found(images, "a.json", "query/a.json") == [both, both]


def test_the_longest_run_counts_from_the_end(make_images):
    # Sharing more folders, but not next to the stem, does not count.
    images = make_images(("a", "set/x/id/1.jpg", 1), ("b", "set/y/dir/1.jpg", 2))
    assert found(images, "x/set/dir/1.json") == [["b:set/y/dir/1.jpg"]]
    assert found(images, "set/x/dir/1.json") == [UNMATCHED]  # x is not y


def test_the_number_of_shared_components(make_images):
    index = ImageIndex(make_images(("q", "set/Probe/1.jpg", 1), ("q", "set/Probe/2.jpg", 2)))
    paths = ["1.json", "x/1.json", "Probe/1.json", "/a/set/Probe/1.json", "3.json"]
    assert [index.find(path).shared for path in paths] == [1, 1, 2, 3, 0]
    assert index.find("1.json", "/a/set/Probe").shared == 3


def test_a_pose_of_another_folder_of_the_data_set_is_unmatched(make_images):
    images = make_images(
        ("query", "Probe/2.jpg", 1),
        ("gallery", "Gallery/1.jpg", 2),
        ("train", "train/0002/a.jpg", 3),
        ("train", "train/0003/b.jpg", 4),
    )
    assert found(
        images,
        "Gallery/2.json",
        "Gallery/json/2.json",  # unknown folders between say nothing
        "Gallery/0002/a.json",  # 0002 agrees, the folder above does not
        "0003/a.json",
        "Probe/json/2.json",
        "train/json/0002/a.json",
        "poses/a.json",
    ) == [*[UNMATCHED] * 4, ["query:Probe/2.jpg"], *[["train:train/0002/a.jpg"]] * 2]


def test_of_the_folders_of_all_poses_the_last_alone_can_contradict(make_images):
    index = ImageIndex(make_images(("query", "Probe/2.jpg", 1), ("gallery", "Gallery/1.jpg", 2)))
    assert index.find("2.json", "/sets/Gallery").content == UNMATCHED
    assert index.find("2.json", "/Gallery/poses").content == index.contents[1]


def test_a_copy_in_another_folder_does_not_contradict(make_images):
    images = make_images(("query", "Probe/2.jpg", "same"), ("gallery", "Gallery/2.jpg", "same"))
    assert found(images, "Gallery/json/2.json")[0] == ["gallery:Gallery/2.jpg", "query:Probe/2.jpg"]
