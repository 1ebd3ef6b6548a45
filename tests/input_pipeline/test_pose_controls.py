"""The wrong poses of the control experiments."""

import dataclasses

import cv2
import numpy as np
import pytest

from input_pipeline import pose_maps
from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.pipeline import train_batches
from input_pipeline.pose_controls import average_maps, shuffled, training_poses
from pgfl_jax.config import parse_config

COUNT = 8


def objects(values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


def jpeg(height, width):
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


IDENTITIES = np.array([5, 9, 5, 9, 5, 3, 5, 9])


@pytest.fixture
def catalog():
    """Eight images of three people, of different sizes; image 2 has no pose."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 80, (COUNT, 2))
    keypoints = rng.uniform(0.3, 1, (COUNT, 17, 3)).astype(np.float32)
    keypoints[..., :2] = keypoints[..., :2] * sizes[:, None, ::-1] - 0.5
    keypoints[2] = 0
    return Catalog(
        images=objects([jpeg(height=int(h), width=int(w)) for h, w in sizes]),
        filenames=objects([str(i) for i in range(COUNT)]),
        identities=IDENTITIES,
        cameras=np.arange(COUNT),
        keypoints=keypoints,
        image_sizes=sizes,
        occlusion=np.full(COUNT, np.nan, np.float32),
    )


def config(source):
    return parse_config(
        {
            "data": {
                "height": 32,
                "width": 16,
                "pose": {"source": source},
                "identities_per_batch": 2,
                "images_per_identity": 2,
                "augment": {"flip": 0.0, "pad": 0, "erasing": 0.0},
            },
            "model": {"backbone": "resnet8"},
        }
    )


def origin(poses, catalog):
    """For each image of ``poses`` the image of ``catalog`` that it has the pose of."""

    def relative(one):
        position = (one.keypoints[..., :2] + 0.5) / one.image_sizes[:, None, ::-1]
        confidence = one.keypoints[..., 2:]
        return np.concatenate([np.where(confidence > 0, position, 0), confidence], axis=2)

    distance = np.abs(relative(poses)[:, None] - relative(catalog)[None]).max(axis=(2, 3))
    assert (distance.min(axis=1) < 1e-5).all()
    return distance.argmin(axis=1)


def test_shuffled_poses_go_to_other_images_at_their_scale(catalog):
    found = origin(training_poses(catalog, config("shuffled"))(0), catalog)
    assert sorted(found) == list(range(COUNT)) and (found != np.arange(COUNT)).all()
    one, again, other = (shuffled(catalog, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.keypoints, again.keypoints)
    assert (one.keypoints != other.keypoints).any()
    assert one.images is catalog.images and one.keypoints.dtype == np.float32


def test_part_maps_are_shuffled_with_the_keypoints(catalog):
    maps = np.arange(COUNT * 8, dtype=np.uint8).reshape(COUNT, 1, 1, 8)
    given = dataclasses.replace(catalog, part_maps=maps)
    moved = shuffled(given, np.random.default_rng(3))
    np.testing.assert_array_equal(moved.part_maps, maps[origin(moved, catalog)])


def test_poses_of_the_same_person(catalog):
    found = origin(training_poses(catalog, config("same_person"))(0), catalog)
    np.testing.assert_array_equal(IDENTITIES[found], IDENTITIES)
    assert sorted(found) == list(range(COUNT))
    alone = 5  # identity 3 has one image
    assert found[alone] == alone and (np.delete(found - np.arange(COUNT), alone) != 0).all()


def test_redrawn_poses_change_with_the_epoch(catalog):
    poses = training_poses(catalog, config("redrawn"))
    epochs = [origin(poses(step), catalog).tolist() for step in range(8)]  # two steps each
    assert epochs[0::2] == epochs[1::2]
    assert len({tuple(found) for found in epochs}) > 1
    assert all((np.array(found) != np.arange(COUNT)).all() for found in epochs)


def test_the_average_pose_by_hand(catalog):
    wanted = config("average")
    maps = np.zeros((*wanted.map_shape, 8))
    for row in range(COUNT):
        keypoints = catalog.keypoints[row].copy()
        scale = np.array([16, 32]) / catalog.image_sizes[row, ::-1]
        keypoints[:, :2] = (keypoints[:, :2] + 0.5) * scale - 0.5
        drawn, _ = pose_maps.part_maps(
            keypoints[None], image_shape=(32, 16), map_shape=wanted.map_shape, sigma=0.035,
            threshold=0.2,
        )  # fmt: skip
        maps += drawn.numpy()[0]
    found = average_maps(catalog, wanted)
    np.testing.assert_allclose(found, 255 * maps / maps.max(axis=(0, 1)), atol=0.51)
    posed = training_poses(catalog, wanted)(0)
    assert not posed.keypoints.any()
    np.testing.assert_array_equal(posed.part_maps, np.broadcast_to(found, posed.part_maps.shape))


def test_without_keypoints_there_is_no_average(catalog):
    with pytest.raises(DataError, match="no image has keypoints to average"):
        training_poses(catalog.without_poses(), config("average"))


@pytest.mark.parametrize(("source", "expected"), [("everywhere", 1.0), ("none", 0.0)])
def test_batches_with_a_constant_pose(catalog, source, expected):
    wanted = config(source)
    poses = training_poses(catalog, wanted)
    batches = train_batches(
        poses(0), wanted.data, map_shape=wanted.map_shape, seed=0, poses_at=poses
    )
    batch = next(batches)
    assert np.all(batch["part_maps"] == expected) and np.all(batch["visibility"] == expected)
    batches.close()


def test_batches_take_the_poses_of_their_step(catalog):
    wanted = config("redrawn")
    own = training_poses(catalog, config("annotated"))
    poses = training_poses(catalog, wanted)

    def maps(poses, step):
        arguments = {"map_shape": wanted.map_shape, "seed": 0, "start_step": step}
        batches = train_batches(catalog, wanted.data, **arguments, poses_at=poses)
        batch = next(batches)
        batches.close()
        return batch["indices"], batch["part_maps"]

    for step in (0, 4):
        rows, found = maps(poses, step)
        same, expected = maps(lambda _, step=step: poses(step), 0)
        assert (rows != same).any() or step == 0
        drawn = {int(row): one for row, one in zip(same, expected, strict=True)}
        common = [i for i, row in enumerate(rows) if int(row) in drawn]
        assert common
        for i in common:
            np.testing.assert_array_equal(found[i], drawn[int(rows[i])])
        assert (found != maps(own, step)[1]).any()
