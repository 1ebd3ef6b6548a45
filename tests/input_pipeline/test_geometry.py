"""The geometry of a batch, and that it moves keypoints, images and part maps together."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import augment, geometry
from input_pipeline.geometry import Geometry
from input_pipeline.keypoints import FLIP
from pgfl_jax.config import AugmentConfig, DataConfig, PoseConfig

HEIGHT, WIDTH, PAD = 64, 32, 6
CONFIG = DataConfig(
    dataset="",
    data_dir="",
    manual_dir="",
    memory_gib=0.0,
    height=HEIGHT,
    width=WIDTH,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    identities_per_batch=100,
    images_per_identity=20,
    pose=PoseConfig(source="annotated", files=(), threshold=0.2, sigma=0.05),
    augment=AugmentConfig(
        flip=0.3, pad=PAD, erasing=0.6, erasing_area=(0.02, 0.4), erasing_aspect=0.3
    ),
)


def with_augment(**options):
    return dataclasses.replace(CONFIG, augment=dataclasses.replace(CONFIG.augment, **options))


def random_poses(count, sizes, seed=0):
    """Joints (count, 17, 3) in the inner half of images of the sizes, each with a confidence."""
    rng = np.random.default_rng(seed)
    fractions = rng.uniform(0.25, 0.75, (count, 17, 3))
    return (fractions * np.append(sizes[:, ::-1], np.ones((count, 1)), axis=1)[:, None]).astype(
        np.float32
    )


def dot_image(x, y, height, width):
    """A white spot on black, (height, width, 3) uint8, with its centroid at (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    # About 1.5 pixels wide after resizing, and wide enough for a centroid before it.
    across = np.maximum(1.5, 1.5 * width / WIDTH), np.maximum(1.5, 1.5 * height / HEIGHT)
    value = np.exp(-(((columns - x) / across[0]) ** 2 + ((rows - y) / across[1]) ** 2) / 2)
    return np.repeat(np.round(255 * value).astype(np.uint8)[..., None], 3, axis=2)


def centroid(values):
    """x, y of (h, w) weights."""
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    weight = values / values.sum()
    return np.array([(columns * weight).sum(), (rows * weight).sum()])


def one(flip=False, corner=(PAD, PAD), rectangle=(0, 0, 0, 0)):
    """The geometry of a single image."""
    return Geometry(np.array([flip]), np.array([corner]), np.array([rectangle]))


@pytest.mark.parametrize("size", [(64, 32), (48, 20), (150, 90), (31, 61)])
def test_keypoints_stay_on_their_pixels(size):
    place = tf.function(augment.place)
    poses = random_poses(1, np.array([size]))
    rng, seen = np.random.default_rng(1), {True: 0, False: 0}
    for joint in range(17):
        image = tf.constant(dot_image(*poses[0, joint, :2], *size))
        for flip in (True, False):
            corner = rng.integers(0, 2 * PAD + 1, 2)
            where = tf.constant(flip), tf.constant(corner, tf.int32)
            placed = place(image, *where, PAD, (HEIGHT, WIDTH)).numpy()
            moved = geometry.move_keypoints(poses, np.array([size]), one(flip, corner), PAD, CONFIG)
            x, y, confidence = moved[0, FLIP[joint] if flip else joint]
            assert confidence == poses[0, joint, 2]
            if 6 <= x <= WIDTH - 7 and 6 <= y <= HEIGHT - 7:  # else the border cuts the spot
                np.testing.assert_allclose(centroid(placed[..., 0].astype(float)), (x, y), atol=0.1)
                seen[flip] += 1
    assert min(seen.values()) > 5


def test_resizing_scales_about_the_pixels_edges():
    pose = random_poses(1, np.array([[100, 40]]))
    pose[0, 3, :2] = -0.6, 50  # outside
    moved = geometry.move_keypoints(pose, np.array([[100, 40]]), geometry.unchanged(1), 0, CONFIG)
    np.testing.assert_allclose(moved[0, :, 0], (pose[0, :, 0] + 0.5) * 0.8 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(moved[0, :, 1], (pose[0, :, 1] + 0.5) * 0.64 - 0.5, rtol=1e-5)
    np.testing.assert_array_equal(moved[..., 2], pose[..., 2])


def test_a_batch_is_moved_as_its_images_are():
    sizes = np.array([[64, 32], [48, 20], [150, 90], [31, 61]] * 3)
    poses, drawn = random_poses(12, sizes), geometry.draw(3, 5, CONFIG)
    part = Geometry(*(values[:12] for values in drawn))
    moved = geometry.move_keypoints(poses, sizes, part, PAD, CONFIG)
    for i in range(12):
        single = Geometry(*(values[i : i + 1] for values in part))
        alone = geometry.move_keypoints(poses[i : i + 1], sizes[i : i + 1], single, PAD, CONFIG)
        np.testing.assert_array_equal(moved[i], alone[0])


def test_draws_are_a_function_of_seed_and_step():
    first, again, other, later = (
        geometry.draw(*s, CONFIG) for s in ((1, 4), (1, 4), (2, 4), (1, 5))
    )
    for name in Geometry._fields:
        values = getattr(first, name)
        np.testing.assert_array_equal(values, getattr(again, name))
        assert (values != getattr(other, name)).any() and (values != getattr(later, name)).any()


def test_probabilities_and_crops_are_as_configured():
    drawn = geometry.draw(0, 0, CONFIG)  # 2000 images
    assert drawn.flip.mean() == pytest.approx(0.3, abs=0.04)
    for axis in (0, 1):
        shares = np.bincount(drawn.corner[:, axis], minlength=13) / 2000
        assert len(shares) == 13
        np.testing.assert_allclose(shares, 1 / 13, atol=0.03)
    erased = drawn.rectangle[:, 2] > drawn.rectangle[:, 0]
    assert erased.mean() == pytest.approx(0.6, abs=0.04)
    assert abs(np.corrcoef(erased, drawn.flip)[0, 1]) < 0.1


def test_nothing_is_drawn_when_it_is_turned_off():
    drawn = geometry.draw(0, 0, with_augment(flip=0.0, pad=0, erasing=0.0))
    for values, expected in zip(drawn, geometry.unchanged(2000), strict=True):
        if values is drawn.rectangle:  # an empty rectangle may be anywhere
            np.testing.assert_array_equal(values[:, :2], values[:, 2:])
        else:
            np.testing.assert_array_equal(values, expected)


def test_rectangles_keep_to_their_ranges():
    top, left, bottom, right = geometry.draw(0, 0, with_augment(erasing=1.0)).rectangle.T
    assert top.min() == 0 and left.min() == 0 and bottom.max() == HEIGHT and right.max() == WIDTH
    height, width = bottom - top, right - left
    share, ratio = height * width / (HEIGHT * WIDTH), height / width
    assert 0.017 < share.min() < 0.05 and 0.34 < share.max() < 0.42  # sides are whole pixels
    assert ratio.min() > 0.25 and ratio.max() < 4
    # Rectangles too wide for the image are proposed again, which favours small and tall ones.
    assert 0.15 < share.mean() < 0.21 and 1.6 < ratio.mean() < 2.3


def test_a_rectangle_that_never_fits_is_cut_to_the_image():
    config = with_augment(erasing=1.0, erasing_area=(0.9, 0.9), erasing_aspect=1.0)
    top, left, bottom, right = geometry.draw(0, 0, config).rectangle.T
    np.testing.assert_array_equal((left, right), (np.zeros(2000), np.full(2000, WIDTH)))
    np.testing.assert_array_equal(bottom - top, round((0.9 * HEIGHT * WIDTH) ** 0.5))
