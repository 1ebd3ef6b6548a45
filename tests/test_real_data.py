"""Real data from end to end: files in the published layouts, and a user's own table."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from benchmarks.input_pipeline import load_catalog, parse_options, run_config
from configs import default
from input_pipeline.errors import DataError
from input_pipeline.from_config import evaluation_data, training_data
from input_pipeline.keypoints import JOINTS
from input_pipeline.poses.__main__ import main as poses
from pgfl_jax.config import parse_config
from pgfl_jax.network_input import network_input
from pgfl_jax.train import train
from tests.input_pipeline.trees import TREES, write_tree

ROOT = Path(__file__).parents[1]
SMALL = {
    "data.height": 64, "data.width": 32, "data.identities_per_batch": 2,
    "data.images_per_identity": 2, "data.augment.pad": 4, "model.backbone": "resnet8",
    "eval.batch_size": 8,
}  # fmt: skip


def test_an_untrained_network_is_scored_on_every_set(tmp_path):
    """The one test here that starts the command line."""
    for name in TREES:
        write_tree(name, tmp_path / "downloads")
    names = tuple(TREES)
    options = SMALL | {
        "data.data_dir": tmp_path / "data",
        "data.manual_dir": tmp_path / "downloads",
        "eval.datasets": str(names),
    }
    command = [sys.executable, "main.py", "--config=configs/default.py"]
    command += [f"--workdir={tmp_path / 'run'}", "--mode=evaluate"]
    command += ["--config.eval.checkpoint=untrained"]
    command += [f"--config.{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = (tmp_path / "run" / "results").glob("*.json")
    results = {path.stem: path for path in paths if ".calibration." not in path.name}
    protocols = [name.replace("/", "-") for name in names if name != "partial_reid"]
    protocols += ["partial_reid.partial", "partial_reid.occluded"]
    assert sorted(results) == sorted(f"{name}.untrained" for name in protocols)
    for name, tree in TREES.items():
        files = [path for stem, path in results.items() if stem.startswith(name.replace("/", "-"))]
        for path in files:
            result = json.loads(path.read_text())
            assert result["dataset"].startswith(name) and result["step"] == 0
            assert result["num_gallery"] == len(tree.splits["gallery"])
            assert 0 < result["mAP"] <= 1


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "market1501",
            lambda root: truncate(next((root / "query").iterdir())),
            r"1 files are not complete JPEG or PNG images: query/",
        ),
        (
            "occluded_reid",
            lambda root: (root / "whole_body_images").rename(root / "whole"),
            r"^{root}: lacks whole_body_images; --config.data.manual_dir must hold the folder "
            r"Occluded_REID \(with occluded_body_images and whole_body_images\) or its zip arch",
        ),
    ],
    ids=["truncated image", "missing folder"],
)
def test_a_malformed_tree_ends_in_one_line(tmp_path, name, damage, message):
    """Two kinds from a configuration; tests/input_pipeline/builders has the others."""
    write_tree(name, tmp_path / "in")
    root = tmp_path / "in" / TREES[name].root
    damage(root)
    values = default.get_config()
    values.update_from_flattened_dict(
        SMALL
        | {
            "data.data_dir": str(tmp_path / "data"),
            "data.manual_dir": str(tmp_path / "in"),
            "eval.datasets": (name,),
        }
    )
    with pytest.raises(DataError, match=message.format(root=root)) as error:
        evaluation_data(parse_config(values))
    assert "\n" not in str(error.value)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_the_benchmark_prepares_what_the_user_brings(tmp_path):
    write_tree("market1501", tmp_path)
    options = ["--dataset=market1501", f"--data_dir={tmp_path}/data", f"--manual_dir={tmp_path}"]
    catalog = load_catalog(run_config(parse_options(options)), "")
    tree = TREES["market1501"]
    assert dict(zip(catalog.filenames, catalog.images, strict=True)) == {
        path: tree.image(path) for path, _, _ in tree.splits["train"]
    }


def write_own_data(folder, people=4, images=4):
    """A user's own table, and poses in COCO's format for every second training image.

    Every picture is black except for a white spot on the nose, which the pose marks.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows, results, spots = [], [], {}
    for split, first in (("train", 0), ("query", people), ("gallery", people)):
        for person in range(first, first + people):
            for i in range(images):
                name = f"{split}/{person}_{i}.png"
                height, width = rng.integers(90, 140), rng.integers(40, 60)
                x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
                grid = np.mgrid[:height, :width]
                spot = np.exp(-((grid[1] - x) ** 2 + (grid[0] - y) ** 2) / (2 * 2.5**2))
                (folder / split).mkdir(exist_ok=True)
                cv2.imwrite(str(folder / name), np.repeat(255 * spot[..., None], 3, axis=2))
                camera = f"{'gate' if split == 'query' else 'yard'}{i}"
                rows.append([name, f"person {person}", camera, split])
                if split == "train" and i % 2 == 0:
                    nose = [x, y, 0.9] + [0, 0, 0] * (len(JOINTS) - 1)
                    results.append(
                        {"image_id": name, "category_id": 1, "score": 1, "keypoints": nose}
                    )
                    spots[name] = (x, y)
    with (folder / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "identity", "camera", "split"], *rows])
    (folder / "poses.json").write_text(json.dumps(results))
    return spots


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A configuration for a table in which half the training images have an imported pose."""
    tmp_path = tmp_path_factory.mktemp("own_data")
    folder, data_dir = tmp_path / "own", str(tmp_path / "data")
    spots = write_own_data(folder)
    arguments = [
        "import", "--format", "coco", "--input", str(folder / "poses.json"), "--dataset",
        "table/people", "--manual_dir", str(folder), "--data_dir", data_dir, "--output",
        str(tmp_path / "poses.npz"), "--estimator", "by hand",
    ]  # fmt: skip
    assert poses(arguments) == 0
    values = default.get_config()
    values.update_from_flattened_dict(
        SMALL
        | {
            "data.dataset": "table/people",
            "data.data_dir": data_dir,
            "data.manual_dir": str(folder),
            "data.pose.files": (str(tmp_path / "poses.npz"),),
            "train.epochs": 2.0,
            "optim.warmup_epochs": 0.0,
            "optim.milestones": (1.0,),
        }
    )
    return parse_config(values), spots


@pytest.mark.usefixtures("small_network")
def test_half_posed_training_on_a_users_own_table(own_data, tmp_path):
    config, _ = own_data
    state = train(
        config, tmp_path / "run", training_data(config), evaluation_data(config),
        devices=jax.devices()[:1],
    )  # fmt: skip
    assert int(state.step) == 8  # two epochs of 16 images in batches of 4
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["pose_coverage"] == 0.5
    assert manifest["data"]["identity_map_sha256"]
    assert [file["estimators"] for file in manifest["origin"]["pose_files"]] == [["by hand"]]
    assert json.loads((tmp_path / "run" / "results" / "query.json").read_text())["num_query"] == 16


def test_imported_poses_stay_on_their_pixels_through_every_augmentation(own_data):
    config, spots = own_data
    training = training_data(config)
    batches = training.batches(0)
    seen = erased = 0
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    for _ in range(60):
        batch = next(batches)
        images = np.asarray(network_input(batch, config.data))
        for image, maps, visible, index in zip(
            images, batch["part_maps"], batch["visibility"], batch["indices"], strict=True
        ):
            name = training.filenames[index]
            if name not in spots:
                assert not visible.any()
                continue
            light = ((image * std + mean)[..., 0] * 255).clip(0)
            light[(image == 0).all(axis=2)] = 0  # erased
            if not visible[0]:  # the nose was erased; at most part of the spot is left
                erased += 1
                continue
            cell = np.unravel_index(maps[..., 0].argmax(), maps.shape[:2])
            spot = np.unravel_index(light.argmax(), light.shape)
            if light.max() > 200:  # else the middle of the spot was erased
                size = np.array(light.shape) / maps.shape[:2]
                centre = (np.array(cell) + 0.5) * size - 0.5
                assert np.abs(centre - spot).max() <= size.max() / 2 + 1
                seen += 1
    batches.close()
    assert seen > 50 and erased > 5
