"""Each format as its tool publishes it: known people come back joint by joint."""

import io

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.poses.formats import FORMATS
from input_pipeline.poses.formats.coco import read_coco


def one(annotations):
    (annotation,) = annotations
    return annotation


def assert_people(annotation, *people):
    np.testing.assert_array_equal(annotation.people, np.stack(people))
    assert annotation.people.dtype == np.float32


# --- OpenPose ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [17, 18, 25])
def test_openpose(count, write_json, make_person, as_numbers):
    people = [make_person(), make_person(3, 4)]
    entries = [
        {"person_id": [-1], "pose_keypoints_2d": as_numbers(p, count), "face_keypoints_2d": []}
        for p in people
    ]
    folder = write_json("Probe/1_keypoints.json", {"version": 1.3, "people": entries})
    annotation = one(FORMATS["openpose"](folder))
    assert annotation.image == annotation.source == annotation.label == "Probe/1_keypoints.json"
    assert annotation.target is None and annotation.part_maps is None
    assert_people(annotation, *people)


def test_openpose_without_people(write_json):
    folder = write_json("1_keypoints.json", {"version": 1.3, "people": []})
    assert one(FORMATS["openpose"](folder)).people.shape == (0, 17, 3)


@pytest.mark.parametrize("name", ["openpose", "alphapose", "pgfa", "kpr", "openpifpaf"])
def test_null_is_nobody(name, write_json):
    folder = write_json("1.json", "null")
    if name in ("openpose", "alphapose", "pgfa"):
        write_json("2.json", {"people": None})
    for annotation in FORMATS[name](folder):
        assert annotation.people.shape == (0, 17, 3) and annotation.target is None


def test_null_is_nobody_in_alphaposes_one_file(write_json):
    folder = write_json("all.json", {"1.jpg": None, "2.jpg": {"people": []}})
    shapes = {one.image: one.people.shape for one in FORMATS["alphapose"](folder)}
    assert shapes == {"1.jpg": (0, 17, 3), "2.jpg": (0, 17, 3)}


def test_files_are_read_in_order_and_foreign_ones_ignored(write_json):
    for name in ("b.json", "a/2.JSON", "a/10.json", ".hidden.json", "__MACOSX/a/2.json", "a/x.txt"):
        folder = write_json(name, {"people": []})
    sources = [annotation.source for annotation in FORMATS["openpose"](folder)]
    assert sources == ["a/10.json", "a/2.JSON", "b.json"]


def test_links_are_followed_but_not_in_circles(write_json, tmp_path):
    folder = write_json("own.json", {"people": []})
    write_json("sub/1.json", {"people": []})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.json").write_text('{"people": []}')
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "above").symlink_to(folder)
    (folder / ".hidden").symlink_to(tmp_path / "gone")
    sources = [annotation.source for annotation in FORMATS["openpose"](folder)]
    assert sources == ["linked/2.json", "own.json", "sub/1.json"]


@pytest.mark.parametrize("name", ["broken.json", "share"])
def test_a_broken_link_is_named(name, write_json, tmp_path):
    folder = write_json("own.json", {"people": []})
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError) as error:
        list(FORMATS["openpose"](folder))
    assert str(error.value) == f"--input={folder / name}: a broken link; repair or remove it"


def test_openpose_people_without_a_body_have_no_pose(write_json, make_person, as_numbers):
    people = [[], as_numbers(make_person(), 25)]
    entries = [
        {"pose_keypoints_2d": person, "hand_left_keypoints_2d": [1, 2, 3]} for person in people
    ]
    folder = write_json("1_keypoints.json", {"people": entries})
    assert_people(one(FORMATS["openpose"](folder)), np.zeros((17, 3)), make_person())


# --- COCO ----------------------------------------------------------------------------------------


def test_coco_results_group_people_by_image(write_json, make_person, as_numbers):
    first, second, third = make_person(), make_person(3, 4), make_person(7, 7)
    entries = [("q/1.jpg", first), ("g\\1.jpg", second), ("q/1.jpg", third)]
    folder = write_json(
        "sub/results.json",
        [
            {"image_id": n, "category_id": 1, "keypoints": as_numbers(p), "score": 0.3}
            for n, p in entries
        ],
    )
    query, gallery = read_coco(folder)
    assert (query.image, query.source) == ("sub/q/1.jpg", "sub/results.json")
    assert query.label == "sub/results.json: sub/q/1.jpg"
    assert gallery.image == "sub/g/1.jpg"
    assert_people(query, first, third)
    assert_people(gallery, second)
    assert one(list(read_coco(folder / "sub/results.json"))[:1]).image == "q/1.jpg"


def test_coco_image_numbers_are_named_by_annotations(write_json, make_person, as_numbers):
    person = {"image_id": 7, "keypoints": as_numbers(make_person()), "score": 0.3}
    folder = write_json("results.json", [person])
    write_json("names.json", {"images": [{"id": 7, "file_name": "query/a.jpg", "height": 3}]})
    annotation = one(read_coco(folder / "results.json", folder / "names.json"))
    assert annotation.image == "query/a.jpg"
    assert_people(annotation, make_person())


def test_coco_results_of_ultralytics_name_their_files(write_json, make_person, as_numbers):
    # Its image_id is the stem, as a number where it can be one: 0007.jpg is 7.
    names = {7: "0007.jpg", "a_1": "a_1.jpg"}
    entries = [
        {"image_id": number, "file_name": name, "keypoints": as_numbers(make_person())}
        for number, name in names.items()
    ]
    folder = write_json("results.json", entries)
    assert [one.image for one in read_coco(folder / "results.json")] == ["0007.jpg", "a_1.jpg"]
    images = [{"id": 7, "file_name": "query/0007.png"}, {"id": 8, "file_name": "query/8.jpg"}]
    write_json("names.json", {"images": images})
    named = read_coco(folder / "results.json", folder / "names.json")
    assert [one.image for one in named] == ["query/0007.png", "a_1.jpg"]
    images[0]["file_name"] = "query/7.jpg"
    write_json("names.json", {"images": images})
    with pytest.raises(DataError) as error:
        list(read_coco(folder / "results.json", folder / "names.json"))
    assert str(error.value) == (
        f"{folder}/results.json: image_id 7 is 0007.jpg, but query/7.jpg in {folder}/names.json"
    )


def test_a_coco_image_of_two_sizes_is_refused(write_json, as_numbers, make_person):
    images = [{"id": i, "file_name": "a.jpg", "height": 128 * i, "width": 64} for i in (1, 2)]
    people = [{"image_id": i, "keypoints": as_numbers(make_person())} for i in (1, 2)]
    folder = write_json("both.json", {"images": images, "annotations": people})
    with pytest.raises(DataError, match=r"both.json: images give a.jpg two sizes, \(128, 64\) and"):
        list(read_coco(folder))


def test_coco_images_may_have_a_size(write_json, make_person, as_numbers):
    sizes = [{"height": 128, "width": 64.0}, {"height": 0, "width": 0}, {"width": "64"}]
    images = [{"id": i, "file_name": f"{i}.jpg", **size} for i, size in enumerate(sizes)]
    entries = [{"image_id": i, "keypoints": as_numbers(make_person())} for i in range(3)]
    folder = write_json("results/all.json", entries)
    write_json("names.json", {"images": images})
    annotations = read_coco(folder / "results", folder / "names.json")
    assert [annotation.size for annotation in annotations] == [(128, 64), None, None]


def test_coco_annotations_carry_flags(write_json, make_person, as_numbers):
    person = make_person()
    flags = np.resize([2, 1, 0], 17)
    numbers = as_numbers(person)
    numbers[2::3] = flags.tolist()
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    value = {"images": images, "annotations": [{"id": 5, "image_id": 2, "keypoints": numbers}]}
    annotation = one(read_coco(write_json("person_keypoints.json", value)))
    person[:, 2] = [flag == 2 for flag in flags]
    assert annotation.image == "b.jpg"
    assert_people(annotation, person)


def coco_value(*annotations, categories=None, images=((1, "a.jpg"),)):
    """A file of annotations, each of (category, numbers), all of image 1."""
    value = {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [
            {"image_id": 1, "keypoints": numbers} | ({} if one is None else {"category_id": one})
            for one, numbers in annotations
        ],
    }
    return value if categories is None else value | {"categories": categories}


def test_coco_annotations_may_list_each_joint(write_json, make_person, as_points):
    person = make_person()
    person[:, 2] = np.arange(17) % 3
    entries = [{"image_id": "a.jpg", "keypoints": as_points(person, 17)}]
    folder = write_json("a.json", {"images": [], "annotations": entries})
    person[:, 2] = person[:, 2] == 2
    assert_people(one(read_coco(folder)), person)


@pytest.mark.parametrize("numbered", [7, "7", 7.0])
@pytest.mark.parametrize("mentioned", [7, "7", 7.0])
def test_coco_image_numbers_may_be_text(numbered, mentioned, write_json, make_person, as_numbers):
    results = [{"image_id": mentioned, "keypoints": as_numbers(make_person())}]
    folder = write_json("results.json", results)
    write_json("names.json", {"images": [{"id": numbered, "file_name": "query/a.jpg"}]})
    annotation = one(read_coco(folder / "results.json", folder / "names.json"))
    assert annotation.image == "query/a.jpg"


def test_a_coco_image_number_with_two_files_is_named(write_json):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": "7", "file_name": "b.jpg"}]
    folder = write_json("names.json", {"images": images, "annotations": []})
    write_json("results.json", [])
    message = r"names\.json: image id 7 is both a\.jpg and b\.jpg; give each an id of its own"
    with pytest.raises(DataError, match=message):
        list(read_coco(folder / "names.json"))
    with pytest.raises(DataError, match=message):
        list(read_coco(folder / "results.json", folder / "names.json"))
    images[1]["file_name"] = "a.jpg"  # the same image twice
    write_json("names.json", {"images": images, "annotations": []})
    assert not list(read_coco(folder / "names.json"))


def test_a_coco_image_number_without_a_name_is_looked_for_where_the_names_are(write_json):
    folder = write_json("names.json", coco_value((None, GOOD), images=[(2, "a.jpg")]))
    write_json("results.json", [{"image_id": 1, "keypoints": GOOD}])
    for arguments in (["names.json"], ["results.json", "names.json"]):
        with pytest.raises(DataError, match=r"image_id 1 is not among the images of .*names\.json"):
            list(read_coco(*(folder / name for name in arguments)))


# PoseTrack's joints, as its files name them.
POSETRACK_WORDS = (
    "nose head_bottom head_top left_ear right_ear left_shoulder right_shoulder left_elbow "
    "right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle"
)
POSETRACK = POSETRACK_WORDS.split()


def test_coco_joints_are_mapped_by_the_names_of_their_category(write_json):
    # Joint i of PoseTrack is at (i, 100 + i); CrowdPose-like joints at (50 + i, 150 + i).
    other = ["Left Shoulder", *POSETRACK[6:], "top-head"]
    tracked = [n for i in range(17) for n in (i, 100 + i, 2)]
    crowd = [n for i in range(13) for n in (50 + i, 150 + i, 2)]
    categories = [
        {"id": 1, "name": "person", "keypoints": POSETRACK},
        {"id": 2, "name": "crowd", "keypoints": other},
        {"id": 3, "name": "plain"},
    ]
    value = coco_value((1, tracked), (2, crowd), ("3", tracked), categories=categories)
    people = one(read_coco(write_json("a.json", value))).people
    expected = np.array([[i, 100 + i, 1] for i in range(17)], np.float32)
    np.testing.assert_array_equal(people[2], expected)
    expected[1:3] = 0  # PoseTrack has no eyes
    np.testing.assert_array_equal(people[0], expected)
    expected[:5] = 0  # and the other no face
    expected[5:] = [[50 + i, 150 + i, 1] for i in range(12)]
    np.testing.assert_array_equal(people[1], expected)


def test_coco_results_take_the_joints_of_the_annotations(write_json):
    numbers = [n for i in range(17) for n in (i, 100 + i, 0.5)]
    folder = write_json("results.json", [{"image_id": 7, "category_id": 1, "keypoints": numbers}])
    names = {"images": [{"id": 7, "file_name": "a.jpg"}]}
    names["categories"] = [{"id": 1, "name": "person", "keypoints": POSETRACK}]
    write_json("names.json", names)
    (person,) = one(read_coco(folder / "results.json", folder / "names.json")).people
    assert not person[1:3].any()
    np.testing.assert_array_equal(person[3:], [[i, 100 + i, 0.5] for i in range(3, 17)])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "keypoints": POSETRACK[:15]}], "none of its 15 joints is named 'left_ankle'; "),
        ([{"id": 1, "keypoints": [str(i) for i in range(17)]}], "is named 'left_shoulder'; name"),
        ([{"id": 1, "keypoints": [*POSETRACK, "Nose"]}], "its joints are named 'nose' 2 times"),
        ([{"id": 1, "keypoints": [*POSETRACK, "tail"]}], "17 joints instead of 18"),
        ([{"id": 1, "keypoints": 17}], "'keypoints' is missing or of the wrong kind"),
        ([{"id": 2}], r"category_id 1 is not among the categories of .*a\.json"),
        (
            [{"id": 1}, {"id": "1", "keypoints": POSETRACK}],
            r"category id 1 is both \[\] and \['nose",
        ),
        ({"id": 1}, "'categories' is missing or of the wrong kind"),
    ],
)
def test_coco_joints_that_cannot_be_mapped_are_named(categories, message, write_json):
    folder = write_json("a.json", coco_value((1, [1, 2, 2] * 17), categories=categories))
    with pytest.raises(DataError, match=message) as error:
        list(read_coco(folder))
    assert str(error.value).startswith(str(folder / "a.json")) and "\n" not in str(error.value)


def test_a_coco_category_is_needed_where_there_are_two(write_json):
    categories = [{"id": 1, "keypoints": POSETRACK}]
    numbers = [1, 2, 2] * 17
    write_json("a.json", coco_value((None, numbers), categories=categories))
    folder = write_json("b.json", coco_value((None, numbers), categories=[*categories, {"id": 2}]))
    assert not one(read_coco(folder / "a.json")).people[0, 1].any()  # the only category's joints
    with pytest.raises(DataError, match=r"a category_id is missing; .*b\.json has 2 categories"):
        list(read_coco(folder / "b.json"))


def flagged(flags):
    return [n for flag in np.resize(flags, 17).tolist() for n in (10, 20, flag)]


@pytest.mark.parametrize(
    ("first", "second", "visible"), [([0, 1], [1, 0], 1), ([0, 1], [1, 2], 2), ([0, 0], [0, 0], 2)]
)
def test_without_any_coco_flag_2_the_flag_1_is_visible(first, second, visible, write_json):
    # PoseTrack flags with 0 and 1. Whether a data set does shows in all of its files together.
    write_json("a.json", coco_value((None, flagged(first))))
    folder = write_json("b.json", coco_value((None, flagged(second))))
    for annotation, flags in zip(read_coco(folder), (first, second), strict=True):
        expected = [float(flag == visible) for flag in np.resize(flags, 17)]
        np.testing.assert_array_equal(annotation.people[0, :, 2], expected)
    assert not list(read_coco(write_json("c/none.json", {"images": [], "annotations": []}) / "c"))


def test_coco_annotations_without_their_file_have_flags_too(write_json, make_person, as_numbers):
    person = make_person()
    flags = np.resize([2, 1, 0], 17)
    person[:, 2] = flags
    entries = [{"image_id": name, "keypoints": as_numbers(person)} for name in ("a.jpg", "b.jpg")]
    person[:, 2] = flags == 2
    for annotation in read_coco(write_json("list.json", entries)):
        assert_people(annotation, person)
    person[:, 2] = np.resize([2, 1, 0.5], 17)  # confidences, which SimCC brings above 1
    entries[1]["keypoints"] = as_numbers(person)
    first, second = read_coco(write_json("list.json", entries))
    np.testing.assert_array_equal(first.people[0, :, 2], np.minimum(flags, 1))
    np.testing.assert_array_equal(second.people[0, :, 2], np.minimum(person[:, 2], 1))


@pytest.mark.parametrize(
    "box", [{}, {"keypoints": None}, {"keypoints": []}, {"keypoints": [0], "num_keypoints": 0}]
)
def test_a_coco_annotation_with_a_box_alone_is_a_person_without_a_pose(
    box, write_json, make_person, as_numbers
):
    numbers = as_numbers(make_person())
    numbers[2::3] = [2] * 17
    value = coco_value((None, numbers))
    value["annotations"].insert(0, {"image_id": 1, "bbox": [1, 2, 3, 4]} | box)
    people = one(read_coco(write_json("a.json", value))).people
    assert people.shape == (2, 17, 3) and not people[0].any()
    np.testing.assert_array_equal(people[1, :, :2], make_person()[:, :2])
    assert (people[1, :, 2] == 1).all()


# --- MMPose --------------------------------------------------------------------------------------


def instance(points):
    """A person as MMPose 1.x writes one, from rows of x, y, score."""
    positions, scores = [point[:2] for point in points], [point[2] for point in points]
    box = {"bbox": [[0.0, 0.0, 64.0, 128.0]], "bbox_score": 0.99}
    return {"keypoints": positions, "keypoint_scores": scores} | box


@pytest.mark.parametrize("further", [0, 9, 116])
@pytest.mark.parametrize("nested", [False, True])
def test_mmpose_inferencer(further, nested, write_json, make_person, as_points):
    first, second = make_person(), make_person(3, 4)
    sure = as_points(first, 17)
    sure[2][2] = 1.04  # SimCC scores exceed 1
    first[2, 2] = 1
    people = [instance(p + [[7.0, 7.0, 0.7]] * further) for p in (sure, as_points(second, 17))]
    folder = write_json("query/1.json", [people] if nested else people)
    annotation = one(FORMATS["mmpose"](folder))
    assert annotation.image == annotation.source == "query/1.json" and annotation.target is None
    assert_people(annotation, first, second)


@pytest.mark.parametrize("frame", [False, True])
def test_mmpose_demo_names_its_joints(frame, write_json):
    # The limbs of CrowdPose, then its crown and neck; joint i at (i, 100 + i), score i / 20.
    names = [*POSETRACK[5:], "top_head", "neck"]
    meta = {"dataset_name": "crowdpose", "keypoint_id2name": dict(enumerate(names))}
    people = [instance([[i, 100 + i, i / 20] for i in range(14)])]
    info = [{"frame_id": 1, "instances": people}] if frame else people
    folder = write_json("query/results_1.json", {"meta_info": meta, "instance_info": info})
    annotation = one(FORMATS["mmpose"](folder))
    assert (annotation.image, annotation.source) == ("query/1.json", "query/results_1.json")
    face, limbs = np.zeros((5, 3)), [[i, 100 + i, i / 20] for i in range(12)]
    assert_people(annotation, np.concatenate([face, limbs]).astype(np.float32))


@pytest.mark.parametrize("meta", [{}, {"meta_info": {"dataset_name": "coco"}}])
def test_mmpose_demo_without_names_has_cocos_joints(meta, write_json, make_person, as_points):
    value = meta | {"instance_info": [instance(as_points(make_person(), 17))]}
    assert_people(one(FORMATS["mmpose"](write_json("results_a.json", value))), make_person())


@pytest.mark.parametrize(
    "value", [[], [[]], None, {"instance_info": []}, [{"frame_id": 0, "instances": []}]]
)
def test_mmpose_may_find_nobody(value, write_json):
    folder = write_json("a.json", "null" if value is None else value)
    assert one(FORMATS["mmpose"](folder)).people.shape == (0, 17, 3)


# --- AlphaPose -----------------------------------------------------------------------------------


@pytest.mark.parametrize("further", [0, 9, 116, 119])
def test_alphapose_results_clip_scores(further, write_json, make_person, as_numbers):
    person = make_person()
    person[3, 2], person[4, 2] = 1.4, -0.25
    numbers = as_numbers(person) + [77.0] * 3 * further
    entry = {"image_id": "a.jpg", "category_id": 1, "keypoints": numbers, "score": 2.9}
    annotation = one(
        FORMATS["alphapose"](write_json("alphapose-results.json", [{**entry, "idx": [0.0]}]))
    )
    person[3, 2], person[4, 2] = 1, 0
    assert annotation.image == "a.jpg"
    assert_people(annotation, person)


@pytest.mark.parametrize("name", ["openpose", "alphapose", "kpr", "openpifpaf", "coco", "mmpose"])
@pytest.mark.parametrize(
    ("scale", "extreme"), [(100, "up to 95"), (255, "up to 242.25"), (-30, "down to -28.5")]
)
def test_confidences_that_are_not_fractions_of_1_are_refused(
    name, scale, extreme, write_json, make_person, as_numbers
):
    person = make_person()
    person[:, 2] *= scale
    entry = {"image_id": "a.jpg", "keypoints": as_numbers(person)}
    value = {
        "openpose": {"people": [{"pose_keypoints_2d": as_numbers(person)}]},
        "mmpose": [{"keypoints": person[:, :2].tolist(), "keypoint_scores": person[:, 2].tolist()}],
    }.get(name, [entry])
    folder = write_json("a.json", value)
    with pytest.raises(DataError) as error:
        list(FORMATS[name](folder))
    assert str(error.value) == (
        f"{folder / 'a.json'}: confidences {extreme}; they must be in [0, 1]"
    )


def test_scores_of_simcc_models_are_clipped(write_json, make_person, as_numbers):
    person = make_person()
    person[:3, 2] = 1.1, 8.5, -0.5
    entry = {"keypoints": person[:, :2].tolist(), "keypoint_scores": person[:, 2].tolist()}
    folder = write_json("mmpose/a.json", [entry])
    write_json("coco/a.json", [{"image_id": "a.jpg", "keypoints": as_numbers(person)}])
    clipped = person.copy()
    clipped[:3, 2] = 1, 1, 0
    assert_people(one(FORMATS["mmpose"](folder / "mmpose")), clipped)
    assert_people(one(FORMATS["coco"](folder / "coco")), clipped)


@pytest.mark.parametrize(
    ("people", "numbers"), [("bodies", "joints"), ("people", "pose_keypoints_2d")]
)
def test_alphapose_variants(people, numbers, write_json, make_person, as_numbers):
    def image(person):
        entry = {numbers: as_numbers(person, 18)}
        return {"version": "AlphaPose v0.3", people: [entry]}

    first, second = make_person(), make_person(5, 5)
    folder = write_json("all.json", {"Probe/1.jpg": image(first), "2.jpg": image(second)})
    by_name = list(FORMATS["alphapose"](folder / "all.json"))
    assert [annotation.image for annotation in by_name] == ["Probe/1.jpg", "2.jpg"]
    assert_people(by_name[0], first)
    assert_people(by_name[1], second)
    write_json("sep-json/2.json", image(second))
    single = one(FORMATS["alphapose"](folder / "sep-json"))
    assert single.image == "2.json"
    assert_people(single, second)


# --- KPR -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "target"),
    [([False, True], 1), ([True, False], 0), ([True, True], 0), ([None, True], 1), ([None] * 2, 0)],
)
def test_kpr_target(flags, target, write_json, make_person, as_points, as_numbers):
    people = [make_person(), make_person(3, 4)]
    shapes = [as_points(people[0], 17), as_numbers(people[1])]  # nested, and flat
    persons = [
        {"keypoints": shape} | ({} if flag is None else {"is_target": flag})
        for shape, flag in zip(shapes, flags, strict=True)
    ]
    annotation = one(FORMATS["kpr"](write_json("a.jpg_keypoints.json", persons)))
    assert annotation.target == target
    assert_people(annotation, *people)


def test_kpr_without_a_target(write_json, as_numbers, make_person):
    folder = write_json("a.json", [])
    write_json("b.json", [{"keypoints": as_numbers(make_person()), "is_target": False}])
    for annotation in FORMATS["kpr"](folder):
        assert annotation.people.shape == (0, 17, 3) and annotation.target is None


@pytest.mark.parametrize(("flag", "target"), [(None, 0), (True, 0), (False, None)])
def test_kpr_reads_one_person_without_a_list(flag, target, write_json, make_person, as_numbers):
    person = {"keypoints": as_numbers(make_person()), "is_target": flag}
    annotation = one(FORMATS["kpr"](write_json("a.jpg_keypoints.json", person)))
    assert annotation.target == target
    if flag is False:
        assert annotation.people.shape == (0, 17, 3)
    else:
        assert_people(annotation, make_person())


# --- OpenPifPaf ----------------------------------------------------------------------------------


@pytest.mark.parametrize("further", [0, 116])
def test_openpifpaf(further, write_json, make_person, as_numbers):
    people = [make_person(), make_person(3, 4)]
    entries = [
        {
            "keypoints": as_numbers(person) + [77.0] * 3 * further,
            "bbox": [1, 2, 3, 4],
            "score": 0.9,
            "category_id": 1,
        }
        for person in people
    ]
    annotation = one(FORMATS["openpifpaf"](write_json("a.jpg.predictions.json", entries)))
    assert annotation.image == "a.jpg.predictions.json" and annotation.target is None
    assert_people(annotation, *people)


# --- PGFA ----------------------------------------------------------------------------------------


def save_maps(folder, name, maps):
    path = folder / "poses" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, maps)
    return folder / "poses"


def test_pgfa_json(write_json, make_person, as_numbers):
    body = {"joints": as_numbers(make_person(), 18)}
    folder = write_json("sep-json/a.json", {"version": "AlphaPose v0.2", "bodies": [body]})
    assert_people(one(FORMATS["pgfa"](folder)), make_person())


def test_pgfa_does_not_read_alphaposes_summaries(write_json, make_person, as_numbers):
    def image(person):
        return {"version": "AlphaPose v0.2", "bodies": [{"joints": as_numbers(person, 18)}]}

    for split, person in (("query", make_person()), ("gallery", make_person(3, 4))):
        write_json(f"{split}/sep-json/a.json", image(person))
        write_json(f"{split}/alphapose-results.json", {"a.jpg": image(person)})
    folder = write_json("train/a.json", image(make_person(5, 6)))
    gallery, query, train = FORMATS["pgfa"](folder)
    assert [gallery.source, query.source] == ["gallery/sep-json/a.json", "query/sep-json/a.json"]
    assert_people(gallery, make_person(3, 4))
    assert_people(query, make_person())
    assert_people(train, make_person(5, 6))


def test_dense_maps_of_ones_are_nobody(tmp_path):
    # PGFA saves np.ones for an image in which AlphaPose found nobody.
    save_maps(tmp_path, "a.npy", np.ones((18, 24, 8)))
    maps = np.ones((18, 24, 8))
    maps[3:, 23, 7] = 0  # in one cell, only nose, neck and right shoulder remain
    nobody, somebody = FORMATS["pgfa"](save_maps(tmp_path, "b.npy", maps))
    assert nobody.part_maps is None and nobody.people.shape == (0, 17, 3)
    assert somebody.part_maps[23, 7].tolist() == [255, 255, 0, 255, 0, 0, 0, 0]


# Which of the tools' joints make each part, head to right foot, written out by hand.
PART_WORDS = (
    "Nose Neck LEye REye LEar REar",
    "Neck LShoulder RShoulder LHip RHip MidHip",
    "LShoulder LElbow LWrist",
    "RShoulder RElbow RWrist",
    "LHip LKnee LAnkle",
    "RHip RKnee RAnkle",
    "LAnkle LBigToe LSmallToe LHeel",
    "RAnkle RBigToe RSmallToe RHeel",
)


@pytest.mark.parametrize("count", [17, 18, 25])
def test_dense_channels_become_parts(count, tool_orders, tmp_path):
    # Each channel is seen alone in one row of cells: the parts it makes are read off that row.
    maps = np.zeros((count, count, 2), np.float32)
    levels = 50 + 8 * np.arange(count)
    maps[np.arange(count), np.arange(count), 1] = levels / 255
    folder = save_maps(tmp_path, "heatmaps/18heatmap_query/a.npy", maps)
    annotation = one(FORMATS["pgfa"](folder))
    assert annotation.image == "heatmaps/18heatmap_query/a.npy"
    assert annotation.people.shape == (0, 17, 3)
    assert annotation.part_maps.shape == (count, 2, 8) and annotation.part_maps.dtype == np.uint8
    expected = np.zeros((count, 2, 8))
    for channel, word in enumerate(tool_orders[count]):
        for part, words in enumerate(PART_WORDS):
            if word in words.split():
                expected[channel, 1, part] = levels[channel]
    np.testing.assert_array_equal(annotation.part_maps, expected)


def test_a_part_is_the_maximum_of_its_joints_clipped_and_rounded(tmp_path):
    maps = np.zeros((18, 24, 8))
    maps[2, 5, 3], maps[3, 5, 3], maps[4, 5, 3] = 0.25, 0.75, 0.5  # right shoulder, elbow, wrist
    maps[0, 0, 0], maps[14, 1, 1] = 1.25, -0.25
    parts = one(FORMATS["pgfa"](save_maps(tmp_path, "a.npy", maps))).part_maps
    assert parts[5, 3].tolist() == [0, round(0.25 * 255), 0, round(0.75 * 255), 0, 0, 0, 0]
    assert parts[0, 0, 0] == 255 and parts[1, 1, 0] == 0


def test_eight_channels_are_the_parts(tmp_path):
    maps = np.arange(8 * 6, dtype=np.float16).reshape(8, 3, 2) / 64
    parts = one(FORMATS["pgfa"](save_maps(tmp_path, "a.npy", maps))).part_maps
    np.testing.assert_array_equal(parts, np.rint(maps.astype(float) * 255).transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(18, 24, 8), (17, 16, 8), (25, 18, 17), (8, 8, 8), (17, 6, 9)])
def test_maps_may_be_as_wide_as_a_format_has_channels(shape, tmp_path):
    parts = one(FORMATS["pgfa"](save_maps(tmp_path, "a.npy", np.full(shape, 0.5)))).part_maps
    assert parts.shape == (*shape[1:], 8)


@pytest.mark.parametrize("count", [8, 17, 18])
@pytest.mark.parametrize("first", [True, False])
def test_a_channel_of_the_background_is_not_a_joint(count, first, tmp_path):
    rows, columns = np.mgrid[:24, :8]
    peaks = np.linspace(2, 21, count)[:, None, None]
    maps = np.exp(-((rows - peaks) ** 2 + (columns - 3.5) ** 2) / 8)
    assert one(FORMATS["pgfa"](save_maps(tmp_path / "right", "a.npy", maps))).part_maps.any()
    rest = maps[1:] if first else maps[:-1]
    background = 1 - rest.max(axis=0, keepdims=True)
    whole = np.concatenate([background, rest] if first else [rest, background])
    place = 0 if first else count - 1
    with pytest.raises(DataError, match=rf"a\.npy: channel {place} of {count} is 1 - the maximum"):
        list(FORMATS["pgfa"](save_maps(tmp_path / "wrong", "a.npy", whole)))


def test_an_ear_on_maps_that_are_high_everywhere_is_a_joint(tmp_path):
    maps = np.full((18, 24, 8), 0.9)
    maps[17] = 0
    maps[17, 2, 3] = 0.9
    assert one(FORMATS["pgfa"](save_maps(tmp_path, "a.npy", maps))).part_maps.any()


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.full((18, 24, 8), 200.0), r"a\.npy: values from 200 to 200; they must be in \[0, 1\]"),
        (np.full((18, 24, 8), -0.6), r"a\.npy: values from -0\.6"),
        (np.full((18, 24, 8), np.nan), r"a\.npy: values must be finite"),
        (np.zeros((24, 8, 18)), r"a\.npy: shape \(24, 8, 18\), not \(channels, height, width\) of"),
        (np.zeros((8, 4, 17)), r"a\.npy: shape \(8, 4, 17\) seems to be \(height, width, channels"),
        (np.zeros((17, 8, 18)), r"a\.npy: shape \(17, 8, 18\) seems to be"),
        (np.zeros((18, 24)), r"a\.npy: shape"),
        (np.zeros((18, 0, 8)), r"a\.npy: shape"),
        (np.zeros((18, 24, 8), complex), r"a\.npy: not an \.npy array of numbers"),
        (np.array([{}], object), r"a\.npy: not an \.npy array of numbers"),
    ],
)
def test_impossible_dense_maps_are_named(maps, message, tmp_path):
    with pytest.raises(DataError, match=message):
        list(FORMATS["pgfa"](save_maps(tmp_path, "a.npy", maps)))


def test_a_truncated_or_renamed_npy_is_named(tmp_path):
    folder = save_maps(tmp_path, "a.npy", np.zeros((18, 24, 8)))
    whole = (folder / "a.npy").read_bytes()
    archive = tmp_path / "archive.npz"
    np.savez(archive, maps=np.zeros((18, 24, 8)))
    endless = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (18, 10**9, 10**9)}
    np.lib.format.write_array_header_1_0(endless, header)
    torn = whole.replace(b"}", b"(")  # what Python's tokenizer refuses
    zipped = b"PK\x03\x04" + whole
    damaged = (whole[:-9], whole[:40], b"", b"text", archive.read_bytes(), torn, zipped)
    for content in (*damaged, endless.getvalue() + bytes(99)):
        (folder / "a.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy: not an \.npy array of numbers"):
            list(FORMATS["pgfa"](folder))


def test_dense_maps_have_one_size(tmp_path):
    save_maps(tmp_path, "a.npy", np.zeros((18, 24, 8)))
    folder = save_maps(tmp_path, "b.npy", np.zeros((17, 16, 8)))
    with pytest.raises(
        DataError, match=r"b\.npy: 16×8 cells, but .*a\.npy has 24×8; import maps of"
    ):
        list(FORMATS["pgfa"](folder))


# --- errors --------------------------------------------------------------------------------------

GOOD = [1.0, 2.0, 0.5] * 17
PLANAR = {"keypoints": [[1.0, 2.0]] * 17, "keypoint_scores": [0.5] * 17}


def numbered_names(names):
    return {"instance_info": [PLANAR], "meta_info": {"keypoint_id2name": names}}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("openpose", "{", "not valid JSON"),
        ("openpose", '"\\ud800', "not valid JSON"),
        ("openpose", "[" * 100_000, "not valid JSON"),
        ("openpose", [], 'no "people" at the top'),
        ("openpose", {"people": 3}, "'people' is missing or of the wrong kind"),
        ("openpose", {"people": [3]}, "'pose_keypoints_2d' is missing"),
        ("openpose", {"people": [{"pose_keypoints_2d": [*GOOD, 1.0]}]}, "must be numbers x, y, c"),
        (
            "openpose",
            {"people": [{"pose_keypoints_2d": GOOD[:45]}]},
            "a person has 15 joints instead of",
        ),
        ("openpose", '{"people": [{"pose_keypoints_2d": [NaN' + ",1" * 50 + "]}]}", "finite"),
        ("openpose", {"people": [{"pose_keypoints_2d": [1e300] * 51}]}, "finite"),
        ("openpose", {"people": [{"pose_keypoints_2d": [10**400] * 51}]}, "must be numbers"),
        ("openpose", {"people": [{"pose_keypoints_2d": [0.5, 10**400, 1] * 17}]}, "must be num"),
        ("openpose", "[" + "1" * 5000 + "]", "not valid JSON"),
        ("openpose", {"people": [{"pose_keypoints_2d": [None] * 51}]}, "must be numbers"),
        ("openpose", {"people": [{"pose_keypoints_2d": ["1"] * 51}]}, "must be numbers"),
        ("openpose", {"people": [{"pose_keypoints_2d": [[1, 2]] * 17 + [[1]]}]}, "must be numbers"),
        ("openpose", {"people": [{"pose_keypoints_2d": [[1, 2]] * 18}]}, "2 numbers a joint"),
        ("coco", [{"keypoints": GOOD}], "'image_id' is missing"),
        ("coco", [{"image_id": "a"}], "'keypoints' is missing"),
        (
            "coco",
            [{"image_id": 3, "keypoints": GOOD}],
            "image_id 3 has no file name; .*--annotations",
        ),
        ("coco", [{"image_id": "a", "keypoints": GOOD * 2}], "34 joints instead of 17"),
        ("coco", [{"image_id": 3.5, "keypoints": GOOD}], r"image_id 3\.5 is not a whole number"),
        ("coco", {"images": []}, "'annotations' is missing"),
        (
            "coco",
            {"images": [], "annotations": [{"image_id": "a", "keypoints": GOOD}]},
            "flag each joint with 0, 1 or 2",
        ),
        (
            "alphapose",
            [{"image_id": 3, "keypoints": GOOD}],
            "image_id 3 is not a file name; run AlphaPose without --eval",
        ),
        ("alphapose", [{"image_id": "a", "keypoints": GOOD[:48]}], "16 joints instead of 17"),
        ("alphapose", {"a.jpg": []}, 'no "people" at the top'),
        ("alphapose", {}, 'no "people" at the top'),
        ("kpr", 3, "a list of people"),
        ("kpr", {}, "'keypoints' is missing"),
        ("openpifpaf", {"keypoints": GOOD}, "a list of people"),
        ("openpifpaf", [{"bbox": [1, 2, 3, 4]}], "'keypoints' is missing"),
        ("openpifpaf", [{"keypoints": GOOD[:48]}], "16 joints instead of 17"),
        ("kpr", [[]], "'keypoints' is missing"),
        ("kpr", [{"keypoints": GOOD, "is_target": "yes"}], "is_target must be true or false"),
        ("pgfa", {"persons": []}, 'no "people" at the top'),
        ("mmpose", 3, "a list of people"),
        ("mmpose", [3], "'keypoints' is missing"),
        ("mmpose", {"instances": []}, "'instance_info' is missing"),
        ("mmpose", [{"keypoints": [[1, 2]] * 17}], "'keypoint_scores' is missing"),
        ("mmpose", [PLANAR | {"keypoint_scores": [1] * 16}], "x, y for each of the keypoint_sco"),
        ("mmpose", [PLANAR | {"keypoints": [[1, 2, 3]] * 17}], "x, y for each of the keypoint_sc"),
        ("mmpose", [PLANAR | {"keypoints": GOOD}], "x, y for each of the keypoint_scores"),
        ("mmpose", [[PLANAR], [PLANAR]], "2 frames of a video; run MMPose on the images"),
        ("mmpose", [{"frame_id": i, "instances": []} for i in range(3)], "3 frames of a video"),
        ("mmpose", {"instance_info": [], "meta_info": {"keypoint_id2name": []}}, "of the wrong k"),
        ("mmpose", numbered_names({1: "nose"}), "must number the joints from 0"),
        ("mmpose", numbered_names(dict(enumerate(POSETRACK[:9]))), "is named 'left_wrist'; name"),
    ],
)
def test_malformed_files_are_named_in_one_line(name, value, message, write_json):
    folder = write_json("sub/bad.json", value)
    with pytest.raises(DataError, match=message) as error:
        list(FORMATS[name](folder))
    assert str(error.value).startswith(str(folder / "sub" / "bad.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_folder_is_named(name, tmp_path):
    with pytest.raises(DataError, match=r"--input=.*: no \.json"):
        list(FORMATS[name](tmp_path))
