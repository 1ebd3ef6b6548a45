import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline.builders.records import to_jpeg_or_png
from input_pipeline.errors import DataError
from pgfl_jax import preprocessing
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


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(
    ("format", "options"),
    [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_no_image_is_turned_by_its_exif_orientation(format, options, orientation, tmp_path):
    assert IMAGE.shape[0] != IMAGE.shape[1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(IMAGE[..., ::-1]).save(stream, format, exif=exif.tobytes(), **options)
    stored = to_jpeg_or_png(stream.getvalue(), "x")
    np.testing.assert_array_equal(decoded(stored), IMAGE)
    (tmp_path / "x").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(preprocessing.decode(tmp_path / "x"), IMAGE[..., ::-1])


@pytest.mark.parametrize("name", ["a/x.jpg", "a/x.tif"])
def test_what_a_download_left_in_the_place_of_an_image_is_named(name):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1025\n"
    with pytest.raises(DataError, match=rf"^{name}: a Git LFS pointer, not the file itself; run"):
        to_jpeg_or_png(pointer, name)
    with pytest.raises(DataError, match=rf"^{name}: a saved web page, not the file itself; use"):
        to_jpeg_or_png(b"\n<!DOCTYPE html>\n<html>", name)


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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, then its error
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\0",
        b"BM",
        b"?",
        encoded(".tif", IMAGE)[:50],
    ],
)
def test_what_cannot_be_decoded(data):
    with pytest.raises(DataError, match=r"^in/x\.tif: the image cannot be decoded; replace or"):
        to_jpeg_or_png(data, "in/x.tif")
    assert to_jpeg_or_png(data, "in/x.JPG") == data  # a later check reports it


@pytest.mark.parametrize("suffix", [".tif", ".bmp"])
def test_a_picture_of_too_many_pixels_is_named_as_such(suffix):
    with pytest.raises(DataError, match=r"^in/x\.tif: has more than 178,956,970 pixels, the most "):
        to_jpeg_or_png(absurd(encoded(suffix, IMAGE)), "in/x.tif")
