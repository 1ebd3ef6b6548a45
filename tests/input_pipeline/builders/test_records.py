import struct

import cv2
import numpy as np
import pytest

from input_pipeline.builders.records import to_jpeg_or_png
from input_pipeline.errors import DataError
from tests.input_pipeline.trees import picture

IMAGE = picture("x")


def encoded(suffix, image):
    return cv2.imencode(suffix, image)[1].tobytes()


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("name", ["x.jpg", "x.PNG", "x.tif"])
def test_jpeg_and_png_are_kept_byte_for_byte(suffix, name):
    data = encoded(suffix, IMAGE)
    assert to_jpeg_or_png(data, name) is data


@pytest.mark.parametrize("suffix", [".tif", ".bmp"])
@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_other_images_become_png_with_the_same_pixels(suffix, name):
    data = to_jpeg_or_png(encoded(suffix, IMAGE), name)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decoded(data), IMAGE)


def test_deep_and_transparent_and_grey_tiffs_become_eight_bits_of_three_channels():
    deep = encoded(".tif", IMAGE.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decoded(to_jpeg_or_png(deep, "x.tif")), IMAGE)
    alpha = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(decoded(to_jpeg_or_png(encoded(".tif", alpha), "x.tif")), IMAGE)
    grey = encoded(".tif", IMAGE[..., 0])
    three = np.repeat(IMAGE[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decoded(to_jpeg_or_png(grey, "x.tif")), three)


def absurd(data):
    """The picture with a header that claims 200,000 x 200,000 pixels."""
    data = bytearray(data)
    if data.startswith(b"BM"):
        data[18:26] = struct.pack("<ii", 200_000, 200_000)
        return bytes(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] in (256, 257):  # width, height
            struct.pack_into("<HII", data, place + 2, 4, 1, 200_000)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\0",
        b"BM",
        b"?",
        encoded(".tif", IMAGE)[:50],
        absurd(encoded(".tif", IMAGE)),
        absurd(encoded(".bmp", IMAGE)),
    ],
)
def test_what_cannot_be_decoded(data):
    with pytest.raises(DataError, match=r"^in/x\.tif: the image cannot be decoded; replace or"):
        to_jpeg_or_png(data, "in/x.tif")
    assert to_jpeg_or_png(data, "in/x.JPG") == data  # a later check reports it
