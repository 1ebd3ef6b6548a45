import struct

import cv2
import numpy as np
import pytest

from input_pipeline.poses.crop import Preprocessing

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_scale_by_hand():
    # 128 × 64 padded to 160 × 80 fits 256 × 192 by its height: 1.6; as wide as high, by its width.
    preprocessing = Preprocessing(256, 192)
    sizes = np.array([[128, 64], [100, 100]])
    np.testing.assert_allclose(preprocessing.scale(sizes), [1.6, 192 / 125])


@pytest.mark.parametrize("size", [(128, 64), (50, 90), (33, 17), (120, 100)])
@pytest.mark.parametrize("padding", [1.0, 1.25])
def test_crop_and_to_image_are_inverse(size, padding):
    # The image holds its own coordinates; each input pixel says where it was taken from.
    height, width = size
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
    preprocessing = Preprocessing(96, 72, padding=padding, **PLAIN)
    crop = preprocessing.crop(image)
    assert crop.shape == (3, 96, 72) and crop.dtype == np.float32
    row, column = np.mgrid[:96, :72]
    positions = np.stack([column, row], axis=-1).reshape(1, -1, 2)
    expected = preprocessing.to_image(positions, np.array([size]))[0].reshape(96, 72, 2)
    inside = (expected > 1).all(-1) & (expected < np.array([width, height]) - 2).all(-1)
    assert inside.mean() > 0.2
    seen = crop[:2].transpose(1, 2, 0) / 2
    # Bytes, and cv2's interpolation in steps of 1/32.
    assert np.abs(seen - expected)[inside].max() < 0.3
    assert np.abs((seen - expected)[inside].mean()) < 0.1


def test_the_image_is_centred_with_black_around():
    preprocessing = Preprocessing(100, 60, padding=1.25, **PLAIN)
    crop = preprocessing.crop(np.full((80, 20, 3), 200, np.uint8))
    # Scale 1: the image covers rows 10 … 89 and columns 20 … 39.
    expected = np.zeros((100, 60))
    expected[10:90, 20:40] = 200
    np.testing.assert_array_equal(crop[0], expected)
    corners = preprocessing.to_image(np.array([[[20, 10], [39, 89]]]), np.array([[80, 20]]))
    np.testing.assert_allclose(corners[0], [[0, 0], [19, 79]], atol=1e-12)


def test_mean_and_std_apply_to_the_channels_in_the_models_order():
    image = np.empty((8, 8, 3), np.uint8)
    image[:] = 10, 20, 30  # red, green, blue
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    for bgr, channels in ((False, [10, 20, 30]), (True, [30, 20, 10])):
        preprocessing = Preprocessing(
            8, 8, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), padding=1.0, bgr=bgr
        )
        decoded = preprocessing.decode(encoded)
        assert decoded[0, 0].tolist() == channels
        expected = (np.array(channels) - [1, 2, 3]) / [2, 4, 8]
        np.testing.assert_allclose(preprocessing.crop(decoded)[:, 4, 4], expected, rtol=1e-6)


def with_orientation(jpeg, orientation):
    """A JPEG with an EXIF segment that asks viewers to turn it."""
    tiff = b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_pixels_are_those_stored_whatever_exif_says():
    image = np.zeros((24, 16, 3), np.uint8)
    image[:8] = 255
    turned = with_orientation(cv2.imencode(".jpg", image)[1].tobytes(), 6)
    shown = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (16, 24, 3)  # the segment is understood
    decoded = Preprocessing(8, 8).decode(turned)
    assert decoded.shape == (24, 16, 3) and decoded[4].min() > 200 and decoded[20].max() < 50


@pytest.mark.parametrize("encoded", [b"", b"text", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_not_an_image_is_none(encoded):
    assert Preprocessing(8, 8).decode(encoded) is None


def test_a_header_that_claims_too_many_pixels_is_none(boundless_png):
    assert Preprocessing(8, 8).decode(boundless_png) is None
