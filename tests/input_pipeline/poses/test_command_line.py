"""``python -m input_pipeline.poses`` on the tiny synthetic set, whose poses are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.builders import load_builder, prepared_builder
from input_pipeline.catalog import read_catalog
from input_pipeline.poses.__main__ import main
from input_pipeline.poses.cache import join_poses, read_poses
from input_pipeline.poses.images import read_catalogs
from tests.input_pipeline.trees import write_tree

DATASET = "synthetic_occluded_reid/tiny"


@pytest.fixture(scope="module")
def catalogs(tiny_data_dir):
    return read_catalogs(load_builder(DATASET, str(tiny_data_dir)))


@pytest.fixture
def people(catalogs):
    """(stem, image name, keypoints) of every image; none has two people."""
    return [
        (Path(name).stem, f"{split}/{name}", keypoints)
        for split, catalog in catalogs.items()
        for name, keypoints in zip(catalog.filenames, catalog.keypoints, strict=True)
    ]


@pytest.fixture
def run(tiny_data_dir, tmp_path, capsys):
    """Runs a command on the tiny set; returns status, output, errors and the pose file's path."""

    def call(command, *flags):
        output = tmp_path / "out" / "poses.npz"
        shared = ["--dataset", DATASET, "--data_dir", str(tiny_data_dir), "--output", str(output)]
        status = main([command, *shared, *map(str, flags)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err, output

    return call


def write_coco(people, write_json, as_numbers):
    images = [{"id": i, "file_name": name} for i, (_, name, _) in enumerate(people)]
    results = [
        {"image_id": i, "category_id": 1, "keypoints": as_numbers(person), "score": 1.0}
        for i, (_, _, person) in enumerate(people)
    ]
    write_json("names.json", {"images": images})
    folder = write_json("results.json", results)
    return ["--input", folder / "results.json", "--annotations", folder / "names.json"]


def write_openpose(people, write_json, as_numbers):
    for stem, _, person in people:
        entry = {"pose_keypoints_2d": as_numbers(person, 25)}
        folder = write_json(f"{stem}_keypoints.json", {"version": 1.3, "people": [entry]})
    return ["--input", folder]


def write_alphapose(people, write_json, as_numbers):
    entries = [
        {"image_id": Path(name).name, "category_id": 1, "keypoints": as_numbers(person)}
        for _, name, person in people
    ]
    return ["--input", write_json("alphapose-results.json", entries)]


def write_kpr(people, write_json, as_numbers):
    for stem, _, person in people:
        bystander = {"keypoints": [[5.0, 5.0, 1.0]] * 17, "is_target": False}
        target = {"keypoints": np.reshape(as_numbers(person), (17, 3)).tolist(), "is_target": True}
        folder = write_json(f"{stem}.jpg_keypoints.json", [bystander, target])
    return ["--input", folder, "--keep-distractors"]


def write_mmpose(people, write_json, as_numbers):
    for stem, _, person in people:
        points = np.reshape(as_numbers(person), (17, 3))
        entry = {"keypoints": points[:, :2].tolist(), "keypoint_scores": points[:, 2].tolist()}
        folder = write_json(f"{stem}.json", [entry])
    return ["--input", folder]


def write_openpifpaf(people, write_json, as_numbers):
    for _, name, person in people:
        entry = {"keypoints": as_numbers(person), "bbox": [0, 0, 9, 9], "score": 0.9}
        folder = write_json(f"{Path(name).name}.predictions.json", [{**entry, "category_id": 1}])
    return ["--input", folder]


def write_pgfa(people, write_json, as_numbers):
    for stem, _, person in people:
        body = {"joints": as_numbers(person, 18)}
        folder = write_json(f"sep-json/{stem}.json", {"version": "0.3", "bodies": [body]})
    (folder / "heatmaps").mkdir()
    np.save(folder / "heatmaps" / f"{people[0][0]}.npy", np.ones((18, 24, 8)))
    return ["--input", folder]


WRITERS = {
    "coco": write_coco,
    "openpose": write_openpose,
    "alphapose": write_alphapose,
    "mmpose": write_mmpose,
    "openpifpaf": write_openpifpaf,
    "kpr": write_kpr,
    "pgfa": write_pgfa,
}


@pytest.mark.parametrize("format_name", WRITERS)
def test_the_sets_own_poses_come_back(format_name, run, catalogs, people, write_json, as_numbers):
    flags = WRITERS[format_name](people, write_json, as_numbers)
    status, out, err, output = run("import", "--format", format_name, *flags)
    assert (status, err) == (0, "")
    cache = read_poses(output)
    posed = 0
    for catalog in catalogs.values():
        # No tool keeps the position of a hidden joint.
        has_pose = catalog.keypoints[..., 2].any(axis=1)
        rows = cache.lookup(catalog.image_sha256)
        np.testing.assert_array_equal(rows >= 0, has_pose)
        np.testing.assert_allclose(
            cache.keypoints[rows[has_pose]], catalog.keypoints[has_pose], rtol=1e-6
        )
        posed += has_pose.sum()
    assert len(cache) == posed > 150
    assert set(cache.estimators) == {format_name}
    total = sum(map(len, catalogs.values()))
    assert f"all                  {total:8,} {posed:10,} {posed / total:7.1%}" in out
    assert out.endswith(f"wrote {output}\n") and "without an image" not in out
    assert [path.name for path in output.parent.iterdir()] == ["poses.npz"]
    assert (cache.distractors is None) == (format_name != "kpr")
    if format_name == "kpr":
        assert len(cache.distractors) == posed and (cache.distractors[..., :2] == 5).all()
        np.testing.assert_array_equal(cache.distractor_rows, np.arange(posed))


def test_poses_of_resized_images(run, people, write_json, as_numbers, catalogs):
    enlarged = [
        (stem, name, np.concatenate([(person[:, :2] + 0.5) * [4, 3] - 0.5, person[:, 2:]], axis=1))
        for stem, name, person in people
    ]
    flags = write_alphapose(enlarged, write_json, as_numbers)
    status, _, err, _ = run("import", "--format", "alphapose", *flags)
    assert status == 1 and err.startswith("error: --input: ") and "--seen-size" in err
    status, _, err, output = run(
        "import", "--format", "alphapose", *flags, "--seen-size", 64 * 3, 32 * 4
    )
    assert (status, err) == (0, "")
    cache = read_poses(output)
    train = catalogs["train"]
    rows = cache.lookup(train.image_sha256)
    np.testing.assert_allclose(
        cache.keypoints[rows[rows >= 0]], train.keypoints[rows >= 0], atol=1e-4
    )


def test_images_that_other_tools_turn_are_named(run, people, write_json, as_numbers, monkeypatch):
    monkeypatch.setattr("input_pipeline.catalog.exif_orientation", lambda image: 6)
    flags = write_alphapose(people, write_json, as_numbers)
    status, _, err, output = run("import", "--format", "alphapose", *flags)
    assert status == 0 and len(read_poses(output))
    line = f"warning: --dataset: {len(people)} images have an EXIF orientation other than 1: "
    assert err.startswith(line + Path(people[0][1]).name) and err.count("\n") == 1


@pytest.mark.parametrize("command", ["import", "estimate"])
def test_data_prepared_from_elsewhere_are_a_warning(
    command, people, write_json, as_numbers, constant_model, gaussians, tmp_path, capsys
):
    for name in ("one", "two"):
        write_tree("partial_ilids", tmp_path / name)
    prepared_builder("partial_ilids", str(tmp_path / "data"), str(tmp_path / "one"))
    heat_maps = constant_model({"maps": gaussians(np.full((17, 2), 9.0), 24, 12)}, ["n", 3, 96, 48])
    flags = ["--dataset", "partial_ilids", "--data_dir", str(tmp_path / "data")]
    flags += ["--output", str(tmp_path / "poses.npz"), "--manual_dir", str(tmp_path / "two")]
    if command == "import":
        given = write_openpose(people[:1], write_json, as_numbers)
        flags += ["--format", "openpose", *map(str, given)]
    else:
        flags += ["--model", str(heat_maps)]
    main([command, *flags])
    line = f"{tmp_path}/data/partial_ilids was prepared from {tmp_path}/one; delete it to prepare"
    assert f"warning: {line} it from {tmp_path}/two\n" in capsys.readouterr().err


def test_what_matches_nothing_is_listed(run, people, write_json, as_numbers):
    flags = write_openpose(people[:3], write_json, as_numbers)
    for number in range(12):
        write_json(f"other/{number:02}_keypoints.json", {"people": []})
    status, out, _, output = run("import", "--format", "openpose", *flags, "--estimator", "mine")
    listed = output.with_name("poses.npz.unmatched.txt")
    assert status == 0 and set(read_poses(output).estimators) == {"mine"}
    assert "poses without an image: 12 (other/00_keypoints.json, " in out and "and 2 more" in out
    assert f"all of these: {listed}" in out
    assert listed.read_text().splitlines() == [
        f"poses without an image\tother/{number:02}_keypoints.json" for number in range(12)
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "nowhere"], "--input=nowhere: no such file or folder"),
        (["--input", ".", "--annotations", "x.json"], "--annotations: belongs to --format coco"),
        (["--input", "bad.json"], "bad.json: not valid JSON"),
        (["--input", "empty.json", "--format", "alphapose"], "empty.json: it contains no pose"),
        (["--input", "other.json"], "none of its 1 poses belongs to exactly one image"),
        (["--input", "other.json", "--dataset", "nothing"], "unknown data set 'nothing'"),
    ],
)
def test_errors_are_one_line_and_write_nothing(flags, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "other.json").write_text(json.dumps({"people": []}))
    status, out, err, output = run("import", "--format", "openpose", *flags)
    assert (status, out) == (1, "") and not list(output.parent.iterdir())
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", [["import", "--format", "kpr", "--input", "x"], ["estimate"]])
def test_no_other_kind_of_file_is_overwritten(command, tmp_path, capsys):
    table = tmp_path / "mine.csv"
    table.write_text("path,identity")
    model = [] if "import" in command else ["--model", "pose.onnx"]
    status = main([*command, *model, "--dataset", DATASET, "--output", str(table)])
    assert status == 1 and table.read_text() == "path,identity"
    assert capsys.readouterr().err == f"error: --output={table}: must end in .npz\n"


@pytest.mark.parametrize("content", [{"embedding": np.eye(2)}, None])
def test_another_npz_is_not_overwritten(content, tmp_path, capsys):
    other = tmp_path / "mine.npz"
    other.write_text("text") if content is None else np.savez(other, **content)
    before = other.read_bytes()
    flags = ["--format", "kpr", "--dataset", DATASET, "--input", "x", "--output", str(other)]
    assert main(["import", *flags]) == 1 and other.read_bytes() == before
    assert capsys.readouterr().err.startswith(f"error: --output={other}: is no pose file; name")


def test_an_impossible_output_is_reported_first(tmp_path, capsys):
    flags = ["--format", "kpr", "--dataset", DATASET, "--input", "x", "--output"]
    assert main(["import", *flags, str(tmp_path)]) == 1
    assert "is a folder; name a file" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["import", *flags, str(tmp_path / "file" / "poses.npz")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_estimating_the_tiny_set(run, constant_model, gaussians, catalogs):
    centres = np.stack([3.25 + np.arange(17) * 0.4, 12.75 - np.arange(17) * 0.4], axis=1)
    model = constant_model({"maps": gaussians(centres, 16, 12)}, ("N", 3, 64, 48))
    flags = ["--model", model, "--batch", 50, "--padding", 2]
    status, out, err, output = run("estimate", *flags)
    assert (status, err) == (0, "")
    cache = read_poses(output)
    assert len(cache) == sum(map(len, catalogs.values()))
    # 64 × 32 images, padded to 128 × 64, in an input of 64 × 48: at half size, in the middle.
    expected = (centres * 4 + 0.5 - [24, 32]) * 2 + [16, 32] - 0.5
    for keypoints in cache.keypoints:
        np.testing.assert_allclose(keypoints[:, :2], expected, atol=0.01)
    assert cache.estimators[0].startswith("pose.onnx ") and set(cache.sources) == {"pose.onnx"}
    assert "100.0%" in out and "people per image" not in out

    udp = run("estimate", *flags, "--udp")[3]
    positions = (centres * [47 / 11, 63 / 15] + 0.5 - [24, 32]) * 2 + [16, 32] - 0.5
    np.testing.assert_allclose(read_poses(udp).keypoints[0, :, :2], positions, atol=0.01)


def test_estimation_errors_are_one_line(run, tmp_path):
    status, out, err, _ = run("estimate", "--model", tmp_path / "no.onnx")
    assert (status, out) == (1, "") and "no.onnx: no such file" in err and err.count("\n") == 1


def test_errors_use_the_names_of_this_command(tmp_path, capsys):
    (tmp_path / "poses").mkdir()
    flags = ["--format", "kpr", "--input", tmp_path / "poses", "--dataset", "occluded_reid"]
    flags += ["--data_dir", tmp_path / "data", "--output", tmp_path / "poses.npz"]
    assert main(["import", *map(str, flags)]) == 1
    error = capsys.readouterr().err
    assert "; give --manual_dir=DIR, where DIR holds" in error and "config" not in error


@pytest.mark.parametrize(
    "flags", [["--padding", "0"], ["--batch", "-1"], ["--std", "1", "0", "1"], ["--padding", "nan"]]
)
def test_impossible_numbers_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as error:
        main(["estimate", "--model", "m", "--dataset", "d", "--output", "o", *flags])
    assert error.value.code == 2 and flags[0] in capsys.readouterr().err


def test_training_finds_the_poses(run, people, write_json, as_numbers, tiny_data_dir):
    flags = write_kpr([(s, n, p[::1]) for s, n, p in people], write_json, as_numbers)
    cache = read_poses(run("import", "--format", "kpr", *flags)[3])
    train = read_catalog(load_builder(DATASET, str(tiny_data_dir)), "train")
    joined = join_poses(train.without_poses(), cache)
    seen = train.keypoints[..., 2] > 0
    np.testing.assert_allclose(joined.keypoints[seen], train.keypoints[seen], rtol=1e-6)
