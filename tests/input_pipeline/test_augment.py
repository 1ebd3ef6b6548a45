"""Images and external part maps follow the geometry; for joints see test_geometry.py."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import augment
from input_pipeline.keypoints import PART_FLIP


@pytest.mark.parametrize("corner, dy, dx", [((0, 0), 2, 2), ((4, 2), -2, 0)])
def test_a_crop_moves_by_whole_pixels_and_fills_with_black(corner, dy, dx):
    image = np.random.default_rng(0).integers(1, 256, (8, 6, 3), np.uint8)
    placed = augment.place(tf.constant(image), tf.constant(False), tf.constant(corner), 2, (8, 6))
    expected = np.zeros_like(image)
    source = image[max(-dy, 0) : 8 - max(dy, 0), max(-dx, 0) : 6 - max(dx, 0)]
    top, left = max(dy, 0), max(dx, 0)
    expected[top : top + source.shape[0], left : left + source.shape[1]] = source
    np.testing.assert_array_equal(placed, expected)


@pytest.mark.parametrize("size", [(64, 32), (48, 20), (100, 70)])
def test_mirroring_before_resizing_is_mirroring_after_it(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    straight, mirrored = (
        augment.place(image, tf.constant(flip), tf.constant([0, 0]), 0, (64, 32)).numpy()
        for flip in (False, True)
    )
    assert np.abs(straight[:, ::-1].astype(int) - mirrored).max() <= 1  # rounding


def test_enlarging_interpolates_between_pixel_centres():
    line = np.array([10, 20, 60], np.uint8)
    image = np.tile(line[None, :, None], (2, 1, 3))
    enlarged = augment.resize(tf.constant(image), 2, 6).numpy()[0, :, 0]
    np.testing.assert_array_equal(enlarged, [10, 13, 18, 30, 50, 60])  # 12.5 and 17.5 round up


def test_shrinking_averages():
    stripes = np.tile(np.uint8([0, 200])[None, :, None], (8, 8, 3))  # 16 columns
    shrunk = augment.resize(tf.constant(stripes), 4, 4).numpy()[:, 1:3]
    assert np.abs(shrunk.astype(int) - 100).max() <= 13  # without averaging, stripes remain


def test_an_image_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8)
    np.testing.assert_array_equal(augment.resize(tf.constant(image), 16, 8), image)


def moved(maps, map_shape, *, flip=False, corner=(0, 0), rectangle=(0, 0, 0, 0), pad=0, shape):
    geometry = {
        "flip": tf.constant([flip]),
        "corner": tf.constant([corner]),
        "rectangle": tf.constant([rectangle]),
    }
    return augment.move_maps(maps[None], geometry, pad, shape, map_shape).numpy()[0]


def test_a_shift_by_whole_cells_moves_given_maps_exactly():
    given = np.random.default_rng(0).uniform(0, 1, (8, 4, 8)).astype(np.float32)
    # Cells of 4 pixels: the crop at (2, 14) with a padding of 10 moves by 8 down and 4 left.
    result = moved(given, (8, 4), corner=(2, 14), pad=10, shape=(32, 16))
    expected = np.zeros_like(given)
    expected[2:, :3] = given[:-2, 1:]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_mirrored_given_maps_change_sides():
    given = np.random.default_rng(0).uniform(0, 1, (8, 4, 8)).astype(np.float32)
    result = moved(given, (8, 4), flip=True, shape=(32, 16))
    np.testing.assert_allclose(result, given[:, ::-1][..., PART_FLIP], atol=1e-6)


def test_given_maps_are_interpolated_between_their_cells():
    given = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 2, 8), np.float32)
    finer = moved(given, (8, 2), shape=(32, 16))[:, 0, 0]
    np.testing.assert_allclose(finer, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_the_rectangle_erases_image_and_maps():
    shape, rectangle = (16, 8), (3, 1, 12, 7)
    result = moved(np.ones((4, 2, 8), np.float32), shape, rectangle=rectangle, shape=shape)
    expected = np.ones(shape)
    expected[3:12, 1:7] = 0
    np.testing.assert_array_equal(result, np.repeat(expected[..., None], 8, axis=2))
    # The centres of cells of 4 pixels decide: rows 1.5, 5.5, 9.5, 13.5, columns 1.5, 5.5.
    coarse = augment.inside(tf.constant([rectangle]), (4, 2), shape).numpy()[0]
    np.testing.assert_array_equal(coarse, [[False] * 2, [True] * 2, [True] * 2, [False] * 2])


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_decodes_jpeg_and_png_as_rgb(extension):
    image = np.full((16, 8, 3), [200, 100, 30], np.uint8)
    encoded = cv2.imencode(extension, image[..., ::-1])[1].tobytes()
    decoded = augment.decode(tf.constant(encoded)).numpy()
    assert np.abs(decoded.astype(int) - image).max() <= 2
