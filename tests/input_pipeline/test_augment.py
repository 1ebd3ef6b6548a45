import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import augment
from input_pipeline.keypoints import FLIP
from pgfl_jax.config import AugmentConfig, DataConfig, PoseConfig

HEIGHT, WIDTH = 64, 32
GRID = (16, 8)
CONFIG = DataConfig(
    dataset="",
    data_dir="",
    manual_dir="",
    memory_gib=0.0,
    height=HEIGHT,
    width=WIDTH,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    identities_per_batch=2,
    images_per_identity=2,
    pose=PoseConfig(source="annotated", files=(), threshold=0.2, sigma=0.05),
    augment=AugmentConfig(
        flip=0.5, pad=6, erasing=0.0, erasing_area=(0.02, 0.4), erasing_aspect=0.3
    ),
)


def with_augment(**options):
    return dataclasses.replace(CONFIG, augment=dataclasses.replace(CONFIG.augment, **options))


ERASING = with_augment(flip=0.0, pad=0, erasing=1.0)


def random_pose(height, width, seed=0):
    """Joints (17, 3) in the inner half of an image, each with its own confidence."""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(0.25, 0.75, (17, 3)) * [width, height, 1]
    return pose.astype(np.float32)


def dot_image(x, y, height, width):
    """A white spot on black, (height, width, 3) uint8, with its centroid at (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    # Some 1.5 pixels wide once resized, and wide enough to have a centroid before.
    across = np.maximum(1.5, 1.5 * width / WIDTH), np.maximum(1.5, 1.5 * height / HEIGHT)
    value = np.exp(-(((columns - x) / across[0]) ** 2 + ((rows - y) / across[1]) ** 2) / 2)
    return np.repeat(np.round(255 * value).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image):
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image[..., 0] / image[..., 0].sum()
    return np.array([(columns * weight).sum(), (rows * weight).sum()])


def flat(result):
    """Image and keypoints."""
    image, pose = result
    return image, pose.keypoints


@tf.function
def many(image, keypoints, seeds, config):
    """The same image augmented under every seed (S, 2)."""
    return tf.map_fn(
        lambda seed: flat(augment.augment(image, augment.Pose(keypoints), seed, config, GRID)),
        seeds,
        fn_output_signature=(tf.float32, tf.float32),
    )


def seeds(count):
    return tf.constant([[3, i] for i in range(count)], tf.int64)


@pytest.mark.parametrize("size", [(64, 32), (48, 20), (150, 90), (31, 61)])
def test_keypoints_stay_on_their_pixels(size):
    pose = random_pose(*size)
    given = augment.Pose(tf.constant(pose))
    run = tf.function(lambda image, seed: flat(augment.augment(image, given, seed, CONFIG, GRID)))
    flips = []
    for joint in range(17):
        image = tf.constant(dot_image(*pose[joint, :2], *size))
        for seed in seeds(6):
            transformed, keypoints = (array.numpy() for array in run(image, seed))
            flipped = keypoints[1, 2] == pose[2, 2]  # the left eye is what was the right eye
            x, y = keypoints[FLIP[joint] if flipped else joint, :2]
            if 6 <= x <= WIDTH - 7 and 6 <= y <= HEIGHT - 7:  # else the border cuts the spot
                np.testing.assert_allclose(centroid(transformed), (x, y), atol=0.05)
                flips.append(flipped)
    assert 20 < sum(flips) < len(flips) - 20


def test_prepare_resizes_and_hides_what_lies_outside():
    pose = random_pose(100, 40)
    pose[:, 2] = 1.0
    pose[3, :2] = -0.6, 50
    pose[4, :2] = -0.5, -0.5
    pose[5, :2] = 20, 99.5
    image = dot_image(*pose[0, :2], 100, 40)
    prepared, keypoints = flat(
        augment.prepare(tf.constant(image), augment.Pose(tf.constant(pose)), CONFIG, GRID)
    )
    assert prepared.shape == (HEIGHT, WIDTH, 3) and prepared.dtype == tf.float32
    keypoints = keypoints.numpy()
    np.testing.assert_allclose(keypoints[:, 0], (pose[:, 0] + 0.5) * 0.8 - 0.5, rtol=1e-5)
    np.testing.assert_allclose(keypoints[:, 1], (pose[:, 1] + 0.5) * 0.64 - 0.5, rtol=1e-5)
    np.testing.assert_array_equal(keypoints[:, 2] == 0, [i in (3, 5) for i in range(17)])


def test_an_image_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    pose = random_pose(HEIGHT, WIDTH)
    prepared, keypoints = flat(
        augment.prepare(tf.constant(image), augment.Pose(tf.constant(pose)), CONFIG, GRID)
    )
    np.testing.assert_allclose(prepared, image / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(keypoints, pose, rtol=1e-6)


def test_normalisation_is_per_channel():
    config = dataclasses.replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    image = tf.constant(np.full((4, 2, 3), [51, 102, 255], np.uint8))
    expected = np.broadcast_to([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, 0.7 / 0.125], (4, 2, 3))
    np.testing.assert_allclose(augment.normalise(image, config), expected, rtol=1e-5)


def test_flipping_twice_changes_nothing():
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8))
    pose = tf.constant(random_pose(8, 6))
    once = augment.random_flip(image, augment.Pose(pose), 0.3, 0.5)
    twice = augment.random_flip(*once, 0.3, 0.5)
    np.testing.assert_array_equal(once[0], image[:, ::-1])
    np.testing.assert_allclose(once[1].keypoints[1], [5 - pose[2, 0], pose[2, 1], pose[2, 2]])
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_allclose(twice[1].keypoints, pose, atol=1e-6)
    unchanged = augment.random_flip(image, augment.Pose(pose), 0.5, 0.5)
    np.testing.assert_array_equal(unchanged[0], image)


@pytest.mark.parametrize("draws, dy, dx", [((0.0, 0.0), 2, 2), ((0.999, 0.5), -2, 0)])
def test_crop_moves_by_whole_pixels_and_fills_with_black(draws, dy, dx):
    image = np.random.default_rng(0).integers(1, 256, (8, 6, 3), np.uint8)
    pose = random_pose(8, 6)
    cropped, keypoints = flat(
        augment.random_crop(tf.constant(image), augment.Pose(pose), tf.constant(draws), 2, GRID)
    )
    expected = np.zeros_like(image)
    source = image[max(-dy, 0) : 8 - max(dy, 0), max(-dx, 0) : 6 - max(dx, 0)]
    top, left = max(dy, 0), max(dx, 0)
    expected[top : top + source.shape[0], left : left + source.shape[1]] = source
    np.testing.assert_array_equal(cropped, expected)
    np.testing.assert_allclose(keypoints, pose + np.array([dx, dy, 0]), rtol=1e-6)


def test_erasing_sets_a_rectangle_to_zero_and_hides_its_joints():
    # One joint on each of 17 cells spread over the image; the image itself is nowhere zero.
    image = tf.fill((HEIGHT, WIDTH, 3), tf.constant(255, tf.uint8))
    pose = random_pose(HEIGHT, WIDTH, seed=1)
    pose[:, :2] = pose[:, :2].round()
    pose[:, 2] = 0.9
    images, keypoints = (array.numpy() for array in many(image, pose, seeds(300), ERASING))
    hidden_somewhere = 0
    for erased, joints in zip(images, keypoints, strict=True):
        mask = (erased == 0).all(axis=2)
        assert set(np.unique(erased)) == {0.0, 1.0}
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a rectangle
        assert mask.sum() == len(rows) * len(columns)
        x, y = joints[:, 0].astype(int), joints[:, 1].astype(int)
        np.testing.assert_array_equal(joints[:, 2], np.where(mask[y, x], 0, np.float32(0.9)))
        hidden_somewhere += mask[y, x].any()
    assert hidden_somewhere > 100


def test_erasing_keeps_to_its_ranges():
    image, pose = tf.fill((HEIGHT, WIDTH, 3), tf.constant(255, tf.uint8)), random_pose(8, 8)
    images, _ = many(image, pose, seeds(2000), ERASING)
    mask = (images.numpy() == 0).all(axis=3)
    height, width = mask.any(axis=2).sum(axis=1), mask.any(axis=1).sum(axis=1)
    share, ratio = height * width / (HEIGHT * WIDTH), height / width
    assert 0.017 < share.min() < 0.05 and 0.34 < share.max() < 0.42  # sides are whole pixels
    assert ratio.min() > 0.25 and ratio.max() < 4
    # Rectangles too wide for the image are proposed again, which favours small and tall ones.
    assert 0.15 < share.mean() < 0.21 and 1.6 < ratio.mean() < 2.3
    assert mask[:, 0].any() and mask[:, -1].any() and mask[:, :, 0].any() and mask[:, :, -1].any()


def test_a_rectangle_that_never_fits_is_cut_to_the_image():
    config = with_augment(flip=0.0, pad=0, erasing=1.0, erasing_area=(0.9, 0.9), erasing_aspect=1.0)
    image = tf.fill((HEIGHT, WIDTH, 3), tf.constant(255, tf.uint8))
    images, _ = many(image, random_pose(8, 8), seeds(5), config)
    mask = (images.numpy() == 0).all(axis=3)
    assert (mask.any(axis=1).sum(axis=1) == WIDTH).all()
    np.testing.assert_array_equal(mask.any(axis=2).sum(axis=1), round((0.9 * 64 * 32) ** 0.5))


def test_probabilities_and_crops_are_as_configured():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(WIDTH) + 1, np.arange(HEIGHT)[:, None] + 1
    config = with_augment(flip=0.3, erasing=0.6)
    config = dataclasses.replace(config, mean=(1.0, 1.0, 1.0))  # so that black is not 0
    pose = np.zeros((17, 3), np.float32) + np.float32([15.0, 31.0, 1.0])
    pose[1, 0] = 14.0
    images, keypoints = (array.numpy() for array in many(image, pose, seeds(2000), config))
    flipped = keypoints[:, 2, 0] != keypoints[:, 0, 0]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.04)
    assert np.mean((images == 0).any(axis=(1, 2, 3))) == pytest.approx(0.6, abs=0.04)
    down = keypoints[:, 0, 1] - 31
    np.testing.assert_array_equal(np.unique(down), np.arange(-6, 7))
    np.testing.assert_allclose(np.bincount((down + 6).astype(int)) / 2000, 1 / 13, atol=0.03)


def test_the_seed_alone_decides():
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8))
    config = with_augment(erasing=0.5)
    first, again = (many(image, random_pose(50, 30), seeds(8), config) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert len(np.unique(first[0].numpy().reshape(8, -1), axis=0)) == 8


def blob_maps(x, y, part):
    """Part maps (32, 16, 8) over an image of HEIGHT x WIDTH, one blob at pixel (x, y)."""
    rows, columns = (np.mgrid[:32, :16] + 0.5) * 2 - 0.5  # pixels of the cells' centres
    maps = np.zeros((32, 16, 8), np.float32)
    maps[..., part] = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2))
    return maps


def map_centroid(maps, part):
    """x, y in pixels of HEIGHT x WIDTH."""
    cell = HEIGHT / maps.shape[0]
    return (centroid(maps[..., part, None]) + 0.5) * cell - 0.5


def test_given_maps_stay_on_the_pixels_of_the_joints():
    part, mirrored = 2, 3  # left and right arm
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[0] = 14.0, 30.0, 1.0
    image, given = dot_image(14, 30, HEIGHT, WIDTH), blob_maps(14, 30, part)
    run = tf.function(
        lambda seed: augment.augment(
            tf.constant(image), augment.Pose(keypoints, tf.constant(given)), seed, CONFIG, (32, 16)
        )
    )
    flips = 0
    for seed in seeds(30):
        transformed, pose = run(seed)
        maps = pose.part_maps.numpy()
        flipped = maps[..., mirrored].any()
        assert maps[..., part].any() != flipped
        at = pose.keypoints[0, :2].numpy()
        np.testing.assert_allclose(centroid(transformed.numpy()), at, atol=0.05)
        moved = map_centroid(maps, mirrored if flipped else part)
        np.testing.assert_allclose(moved, at, atol=0.15)
        flips += flipped
    assert 5 < flips < 25


def test_a_shift_by_whole_cells_moves_given_maps_exactly():
    given = np.random.default_rng(0).uniform(0, 1, (8, 4, 8)).astype(np.float32)
    moved = augment.move_maps(given, tf.constant([2 / 8, -1 / 4]), (8, 4)).numpy()
    expected = np.zeros_like(given)
    expected[2:, :3] = given[:-2, 1:]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_given_maps_are_interpolated_between_their_cells():
    given = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 2, 8), np.float32)
    finer = augment.move_maps(given, tf.zeros(2), (8, 2)).numpy()[:, 0, 0]
    np.testing.assert_allclose(finer, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_erasing_takes_the_given_maps_under_the_rectangle():
    image = tf.fill((HEIGHT, WIDTH, 3), tf.constant(255, tf.uint8))
    pose = augment.Pose(tf.zeros((17, 3)), tf.ones((HEIGHT, WIDTH, 8)))  # a cell for every pixel
    run = tf.function(lambda seed: augment.augment(image, pose, seed, ERASING, (HEIGHT, WIDTH)))
    for seed in seeds(20):
        erased, left = run(seed)
        mask = (erased.numpy() == 0).all(axis=2)
        assert mask.any()
        np.testing.assert_array_equal(left.part_maps.numpy() == 0, np.repeat(mask[..., None], 8, 2))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_decodes_jpeg_and_png_as_rgb(extension):
    image = np.full((16, 8, 3), [200, 100, 30], np.uint8)
    encoded = cv2.imencode(extension, image[..., ::-1])[1].tobytes()
    decoded = augment.decode(tf.constant(encoded)).numpy()
    np.testing.assert_allclose(decoded, image, atol=3)
