import numpy as np
import pytest

from input_pipeline import validation
from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.keypoints import JOINTS
from input_pipeline.poses.joints import OPENPOSE_25


def catalog(identities, cameras, sizes=None, posed=()):
    """Images a, b, c … of these identities and cameras."""
    count = len(identities)
    keypoints = np.zeros((count, 17, 3), np.float32)
    keypoints[list(posed)] = 0.5
    keypoints[..., :2] = 7.0  # a position without any confidence is not a pose
    return Catalog(
        images=np.array([b""] * count, object),
        filenames=np.array([chr(ord("a") + i) for i in range(count)], object),
        identities=np.array(identities),
        cameras=np.array(cameras),
        keypoints=keypoints,
        image_sizes=np.array(sizes or [[4, 2]] * count),
        occlusion=np.full(count, np.nan, np.float32),
    )


@pytest.mark.parametrize("seed", range(40))
def test_queries_without_match_are_those_of_a_search_by_hand(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 2)
    query, gallery = (
        catalog(rng.integers(-1, 4, size).tolist(), rng.integers(0, 3, size).tolist())
        for size in sizes
    )
    expected = []
    for q in range(len(query)):
        matches = [
            g
            for g in range(len(gallery))
            if gallery.identities[g] == query.identities[q]
            and gallery.cameras[g] != query.cameras[q]
        ]
        if not matches:
            expected.append(q)
    assert validation.queries_without_match(query, gallery).tolist() == expected


def test_files_that_are_cut_off_are_named():
    found = validation.check_images("X 1.0.0 train", catalog([1, 1], [0, 0], [[4, 2], [0, 0]]))
    assert len(found.errors) == 1 and not found.warnings
    assert found.errors[0].startswith(
        "X 1.0.0 train: 1 files are not complete JPEG or PNG images: b;"
    )
    assert validation.check_images("X", catalog([1], [0])) == validation.Findings()


def test_what_a_training_split_lacks():
    train = catalog([1, 1, 2, 3], [0, 1, 0, 0])
    assert validation.check_training("X", train) == validation.Findings(
        warnings=["X: 2 of 3 identities have a single image; a batch repeats it"]
    )


def test_a_split_without_poses_is_a_warning_and_an_error_if_files_were_given():
    bare = catalog([1, 1], [0, 1])
    (warning,) = validation.check_poses("X", bare, (), 0.2).warnings
    assert warning.startswith("X: no image has a pose, so the main branch alone is trained")
    (error,) = validation.check_poses("X", bare, ("a.npz", "b.npz"), 0.2).errors
    assert error.startswith(
        "config.data.pose.files: no pose of a.npz, b.npz belongs to an image of X;"
    )
    posed = catalog([1, 1], [0, 1], posed=[1])
    assert validation.check_poses("X", posed, ("a.npz",), 0.2) == validation.Findings()


def test_poses_that_are_not_drawn_do_not_count():
    weak = catalog([1, 1, 2], [0, 1, 0], posed=[0, 1])  # confidences of 0.5
    line = (
        "X: none of the 2 poses is drawn, because no confidence reaches "
        "config.data.pose.threshold (0.6); lower it, or give better poses"
    )
    assert validation.check_poses("X", weak, (), 0.6) == validation.Findings(warnings=[line])
    assert validation.check_poses("X", weak, ("a.npz",), 0.6) == validation.Findings(errors=[line])
    few = catalog([1, 1, 2], [0, 1, 0], posed=[1])
    assert validation.check_poses("X", few, ("a.npz",), 0.5).warnings == [
        "X: 1 of 3 training images have a pose that is drawn; teachers learn from these alone"
    ]
    assert validation.check_poses("X", weak, (), 0.5) == validation.Findings()


def test_teachers_need_poses_that_are_drawn():
    query, gallery = catalog([1], [0], posed=[0]), catalog([1, 2], [1, 1], posed=[0])
    (error,) = validation.check_teachers("X", query, gallery, 0.6).errors
    assert error.startswith(
        "X: 0 of 1 queries and 0 of 2 gallery images have a pose that is drawn "
        "(config.data.pose.threshold=0.6), and no match among them, so that no teacher"
    )
    assert validation.check_teachers("X", query, gallery, 0.5).warnings == [
        "X: 1 of 1 queries and 1 of 2 gallery images have a pose that is drawn "
        "(config.data.pose.threshold=0.5); teachers are scored on these alone"
    ]


def posed_at(*positions, size=(128, 64), confidence=1.0):
    """Images a, b, … whose joints are all at one position each."""
    train = catalog([1] * len(positions), [0] * len(positions), [size] * len(positions))
    train.keypoints[..., :2] = np.float32(positions)[:, None]
    train.keypoints[..., 2] = confidence
    return train


@pytest.mark.parametrize(
    "positions", [[(0.5, 0.25), (1, 0)], [(-1, -1), (-1, -1)]], ids=["fractions", "marks"]
)
def test_keypoints_that_are_not_pixels_are_an_error(positions):
    (error,) = validation.check_keypoints("X train", posed_at(*positions)).errors
    assert error == (
        "X train: the keypoints of 2 of 2 images are between -1 and 1: a, b; they are fractions, "
        "or -1 for missing joints; give pixels (OpenPose: --keypoint_scale 0), and confidence 0 "
        "for missing joints"
    )
    doubtful = posed_at(*positions, confidence=0.1)
    assert validation.check_keypoints("X", doubtful) == validation.Findings()
    tiny = posed_at((0.5, 0.25), size=(4, 2))  # here these can be pixels
    assert validation.check_keypoints("X", tiny) == validation.Findings()


def test_keypoints_of_the_whole_frame_are_an_error_if_they_are_the_most():
    frame, inside, corner = (900, 400), (20, 30), (63.5, 127.5)
    (error,) = validation.check_keypoints("X train", posed_at(frame, frame, inside)).errors
    assert error.startswith("X train: 67% of the confident keypoints are outside their images; ")
    assert "not of the frame" in error
    found = validation.check_keypoints("X train", posed_at(frame, inside, corner))
    assert not found.errors and len(found.warnings) == 2
    assert found.warnings[0].startswith(
        "X train: 17 of 51 confident keypoints are outside their images: a; give x, y in pixels"
    )
    assert found.warnings[1].startswith("X train: the poses of 1 images are wholly outside them: a")
    assert validation.check_keypoints("X", posed_at(inside, corner)) == validation.Findings()
    unknown = posed_at(frame, inside, size=(0, 0))  # damaged files, which another check names
    assert validation.check_keypoints("X", unknown) == validation.Findings()


def test_fractions_of_a_few_images_are_a_warning_and_of_more_an_error():
    pixels = [(50, 90)]
    (error,) = validation.check_keypoints("X", posed_at(*pixels, *[(0.5, 0.2)] * 23)).errors
    assert error.startswith("X: the keypoints of 23 of 24 images are between -1 and 1: b, c, d, e")
    found = validation.check_keypoints("X", posed_at((0.5, 0.2), *pixels * 19))
    assert not found.errors and len(found.warnings) == 1
    assert found.warnings[0].startswith("X: the keypoints of 1 of 20 images are between -1 and 1: ")
    assert len(validation.check_keypoints("X", posed_at((0.5, 0.2), *pixels * 18)).errors) == 1


def test_swapped_coordinates_are_an_error():
    people = posed_at((20, 30))
    people.keypoints[0, :, 1] = np.linspace(5, 120, 17)  # 8 of 17 joints are below row 64
    people.keypoints[0, 0, 0] = -3  # as tools guess it of a person that the image cuts off
    assert validation.check_keypoints("X", people) == validation.Findings()
    people.keypoints[..., :2] = people.keypoints[..., 1::-1].copy()
    (error,) = validation.check_keypoints("X", people).errors
    assert error == (
        "X: 53% of the confident keypoints are outside their images, but 6% with x and y "
        "swapped; give x before y, in pixels"
    )


def test_joints_outside_are_a_warning_from_a_tenth_on():
    people = posed_at((20, 30))
    people.keypoints[0, :1, :2] = 200
    assert validation.check_keypoints("X", people) == validation.Findings()
    people.keypoints[0, :2, :2] = 200
    assert validation.check_keypoints("X", people).warnings == [
        "X: 2 of 17 confident keypoints are outside their images: a; give x, y in pixels of the "
        "image file, not of the frame that it was cut from, nor of a smaller copy"
    ]


@pytest.mark.parametrize(("width", "height"), [(0.5, 0.5), (1, 0.5), (0.5, 1)])
def test_joints_crowded_into_a_corner_are_a_warning(width, height):
    whole = [(x, 2 * x) for x in np.linspace(3, 60, 20)]
    assert validation.check_keypoints("X", posed_at(*whole)) == validation.Findings()
    shrunk = [(x * width, y * height) for x, y in whole]
    (warning,) = validation.check_keypoints("X", posed_at(*shrunk)).warnings
    # The 1 % of 340 joints beyond the percentile are of the last image.
    assert warning == (
        f"X: 99% of the confident keypoints are in the left {(60 * width + 0.5) / 64:.0%} and the "
        f"upper {(120 * height + 0.5) / 128:.0%} of their images, as if found on smaller copies; "
        "give x, y in pixels of the image file, not of the frame that it was cut from, nor of a "
        "smaller copy"
    )
    assert validation.check_keypoints("X", posed_at(*shrunk[:9])) == validation.Findings()


UPRIGHT = np.array(
    [
        [32, 10], [34, 8], [30, 8], [37, 10], [27, 10], [42, 28], [22, 28], [46, 45], [18, 45],
        [48, 60], [16, 60], [39, 64], [25, 64], [39, 90], [25, 90], [39, 118], [25, 118],
    ],
    np.float32,
)  # fmt: skip
# Which of COCO's joints, or what is near it, H36M has at each of its 17 places.
H36M = [11, 12, 14, 16, 11, 13, 15, 5, 0, 0, 1, 5, 7, 9, 6, 8, 10]


def posed_as(*poses):
    """Images whose joints are at these places, (17, 2) each."""
    people = posed_at(*[(0, 0)] * len(poses))
    people.keypoints[..., :2] = poses
    return people


def test_joints_in_another_order_are_a_warning_if_they_are_the_most():
    mixed = UPRIGHT[H36M]
    (warning,) = validation.check_keypoints("X", posed_as(*[mixed] * 6, *[UPRIGHT] * 5)).warnings
    assert warning.startswith(
        "X: in 6 of 11 poses, head, hips and ankles are not in this order from top to bottom: a, "
        "b, c, d, e, …; unless these people are not upright, the joints are in another order than"
    )
    few = posed_as(*[mixed] * 5, *[UPRIGHT] * 5)
    assert validation.check_keypoints("X", few) == validation.Findings()
    assert validation.check_keypoints("X", posed_as(*[mixed] * 9)) == validation.Findings()


def test_body_25b_is_not_body_25():
    neck, crown, toes = [32, 20], [32, 2], [[30, 121]] * 6
    theirs = np.array([*UPRIGHT.tolist(), neck, crown, *toes])
    people = posed_as(*[theirs[[OPENPOSE_25.index(name) for name in JOINTS]]] * 10)
    (warning,) = validation.check_keypoints("X", people).warnings
    assert warning.startswith("X: in 10 of 10 poses, head, hips and ankles are not in this order")


@pytest.mark.parametrize("hidden", [[], range(5), range(11, 17), range(15, 17), range(5, 13)])
def test_upright_people_are_in_order_whatever_is_hidden_or_guessed(hidden):
    rng = np.random.default_rng(0)
    people = posed_as(*[UPRIGHT] * 40)
    people.keypoints[..., :2] += rng.normal(0, 4, (40, 17, 2)).astype(np.float32)
    people.keypoints[:, list(hidden), 2] = 0
    # Tools guess what the image cuts off at its border: of half a person, the ankles at the hips.
    cut = people.keypoints[:20]
    cut[..., 1] = np.minimum(cut[..., 1] * 1.8, 127)
    stooping = people.keypoints[20:30]
    stooping[:, :5, 1] += 54
    sitting = people.keypoints[30:]
    sitting[:, 15:, 1] -= 50
    assert validation.check_keypoints("X", people) == validation.Findings()


def test_queries_without_match_are_a_warning_and_an_error_if_there_are_no_others():
    gallery = catalog([1, 2], [0, 0])
    found = validation.check_protocol("X query", catalog([1, 1, 3], [0, 1, 1]), gallery)
    assert not found.errors and found.warnings == [
        "X query: 2 of 3 queries have no match from another camera in the gallery: a, c; "
        "they are left out of the scores"
    ]
    found = validation.check_protocol("X query", catalog([1, 3], [0, 1]), gallery)
    assert not found.warnings and len(found.errors) == 1
    assert "2 of 2 queries have no match" in found.errors[0]
    assert validation.check_protocol("X", catalog([1], [1]), gallery) == validation.Findings()


def test_findings_add_up_and_raise_their_errors():
    findings = validation.Findings(errors=["a"], warnings=["b"])
    findings.add(validation.Findings(errors=["c"], warnings=["d"], notes=["e"]))
    assert findings == validation.Findings(["a", "c"], ["b", "d"], ["e"])
    with pytest.raises(DataError, match=r"^a; c$"):
        findings.raise_errors()
    validation.Findings(warnings=["b"], notes=["e"]).raise_errors()


def test_only_the_first_names_are_shown():
    assert validation.some(np.array([3, 1])) == "3, 1"
    assert validation.some(np.array(list("abcdef"))) == "a, b, c, d, e, …"
