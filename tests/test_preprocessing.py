"""The definition of preprocessing, against plain NumPy and against the training pipeline."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from input_pipeline import augment
from input_pipeline.builders.records import to_jpeg_or_png
from input_pipeline.errors import DataError
from pgfl_jax import preprocessing
from pgfl_jax.preprocessing import PictureError

HEIGHT, WIDTH = 64, 32


def scene(height, width, seed=0):
    """A picture with edges, gradients and texture: what resizing gets wrong shows."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 5 + c) + np.cos(columns / (3 + c)) for c in range(3)], -1)
    image = 127 + 50 * waves + rng.normal(0, 12, (height, width, 3))
    image[height // 4 : height // 2, width // 3 :] = (250, 10, 90)
    return np.clip(image, 0, 255).astype(np.uint8)


def encoded(image, suffix, mode=None, **options):
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, suffix, **options)
    return buffer.getvalue()


def turned():
    """EXIF data that ask for a quarter turn, which every part of this project ignores."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURES = {
    "grows": encoded(scene(40, 20), "JPEG", quality=90),
    "same size": encoded(scene(HEIGHT, WIDTH), "JPEG", quality=90),
    "shrinks": encoded(scene(301, 157), "JPEG", quality=90),
    "shrinks in height alone": encoded(scene(200, 20), "JPEG", quality=90),
    "shrinks in width alone": encoded(scene(40, 120), "JPEG", quality=90),
    "shrinks a lot": encoded(scene(900, 700), "JPEG", quality=75),
    "grey": encoded(scene(128, 60), "JPEG", "L"),
    "cmyk": encoded(scene(128, 60), "JPEG", "CMYK"),
    "exif orientation": encoded(scene(128, 60), "JPEG", exif=turned()),
    "progressive": encoded(scene(128, 60), "JPEG", progressive=True),
    "no chroma subsampling": encoded(scene(128, 60), "JPEG", subsampling=0),
    "png": encoded(scene(128, 60), "PNG"),
    "png with alpha": encoded(scene(128, 60), "PNG", "RGBA"),
    "png with a palette": encoded(scene(128, 60), "PNG", "P"),
    "grey png": encoded(scene(128, 60), "PNG", "L"),
    "grey png of 16 bits": encoded(scene(128, 60)[..., 0].astype(np.uint16) * 257, "PNG"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_training_pipeline_agrees_to_one_grey_level(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[name])
    ours = preprocessing.preprocess(path, HEIGHT, WIDTH)
    theirs = augment.resize(augment.decode(PICTURES[name]), HEIGHT, WIDTH).numpy()
    assert ours.shape == theirs.shape == (HEIGHT, WIDTH, 3) and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_orientation_turns_neither_a_file_nor_pillow_s_picture_of_it(suffix):
    content = encoded(scene(30, 20), suffix, exif=turned())
    pixels = preprocessing.read_pixels(io.BytesIO(content))
    assert pixels.shape == (30, 20, 3)
    np.testing.assert_array_equal(
        preprocessing.from_pillow(Image.open(io.BytesIO(content))), pixels
    )


@pytest.mark.parametrize("shape", [(40, 20), (301, 157), (64, 200)])
def test_resizing_is_a_triangle_filter_that_widens_when_a_side_shrinks(shape):
    image = scene(*shape)
    rows, columns = (triangle_weights(*sizes) for sizes in zip((HEIGHT, WIDTH), shape, strict=True))
    expected = np.einsum("ri,ijk,cj->rck", rows, image.astype(float), columns)
    # Pillow rounds once after each axis.
    assert np.abs(preprocessing.resize(image, HEIGHT, WIDTH) - expected).max() <= 1.01


def triangle_weights(target, source):
    """(target, source): weight of each source pixel's centre in each target pixel."""
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(source)[None] - centres) / support)
    return weights / weights.sum(axis=1, keepdims=True)


def test_normalised_values_by_hand():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    values = preprocessing.normalise(images, (0.5, 0.2, 0.4), (0.25, 0.1, 0.3))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[[[-2.0, 0.0, 2.0]]]], atol=1e-6)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    half = tmp_path / "half.jpg"
    half.write_bytes(PICTURES["shrinks"][:2000])
    for path in (text, half):
        with pytest.raises(PictureError, match=rf"{path.name}: damaged, or not a picture"):
            preprocessing.decode(path)
    with pytest.raises(PictureError, match=r"nowhere\.jpg: No such file"):
        preprocessing.decode(tmp_path / "nowhere.jpg")
    with pytest.raises(PictureError, match="damaged, or not a picture"):
        preprocessing.decode("a\0b.jpg")


def grey_file(values, suffix):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (grey_file(np.array([[0, 300, 65535]], np.int32), "TIFF"), [0, 1, 255]),
        (grey_file(np.array([[0, 7, 255]], np.int32), "TIFF"), [0, 7, 255]),
        (grey_file(np.array([[0, 7, 255]], np.uint16), "TIFF"), [0, 0, 0]),
        (b"P5 3 1 65535\n\x00\x00\x01\x2c\xff\xff", [0, 1, 255]),
    ],
)
def test_pictures_of_16_bits_are_cut_to_8_however_pillow_holds_them(encoded, expected):
    pixels = preprocessing.read_pixels(io.BytesIO(encoded))
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 1.0]], np.float32), "its values are floats"),
        (np.array([[0, 65536]], np.int32), "its values range from 0 to 65536"),
        (np.array([[-1, 9]], np.int32), "its values range from -1 to 9"),
    ],
)
def test_values_that_8_bits_cannot_hold_are_refused_here_and_in_tables(values, message, tmp_path):
    path, data = tmp_path / "deep.tif", grey_file(values, "TIFF")
    path.write_bytes(data)
    expected = f"{path}: {message}; save it with 8 or 16 bits per channel"
    with pytest.raises(PictureError) as error:
        preprocessing.decode(path)
    assert str(error.value) == expected
    with pytest.raises(DataError) as refused:
        to_jpeg_or_png(data, str(path))
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_rgb_picture_is_refused(array):
    with pytest.raises(PictureError, match=r"not a picture; give \(height, width, 3\) uint8"):
        preprocessing.preprocess(array, HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "L", "P", "RGBA", "CMYK"])
def test_pillow_pictures_of_every_mode_become_rgb(mode):
    image = Image.fromarray(scene(HEIGHT, WIDTH)).convert(mode)
    found = preprocessing.preprocess(image, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    if mode in ("YCbCr", "HSV"):  # back to the picture, to the rounding of these colours
        assert np.abs(found.astype(int) - scene(HEIGHT, WIDTH)).mean() < 4


def test_cmyk_that_may_be_inverted_is_refused(tmp_path):
    marked = PICTURES["cmyk"]
    at = marked.index(b"\xff\xee")  # Adobe's segment: marker, length 14, 12 bytes
    (tmp_path / "a.jpg").write_bytes(marked[:at] + marked[at + 16 :])
    message = r"a\.jpg: a JPEG in CMYK without Adobe's marker, .*; save it as RGB"
    with pytest.raises(PictureError, match=message):
        preprocessing.preprocess(tmp_path / "a.jpg", HEIGHT, WIDTH)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(PictureError, match=message):
        preprocessing.preprocess(image, HEIGHT, WIDTH)
    with pytest.raises(DataError, match=r"^x/a\.jpg: a JPEG in CMYK without Adobe's marker"):
        to_jpeg_or_png((tmp_path / "a.jpg").read_bytes(), "x/a.jpg")
    assert to_jpeg_or_png(marked, "x/b.jpg") == marked


def tiff(values, **tags):
    """A TIFF, with tags changed in place: their numbers are shorts."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    for name, value in tags.items():
        number = {"photometric": 262, "sample_format": 339}[name]
        at = data.index(struct.pack("<HHI", number, 3, 1))
        struct.pack_into("<H", data, at + 8, value)
    return bytes(data)


def test_zero_is_white_in_a_tiff_that_says_so():
    for deep in (np.uint8, np.uint16):
        values = np.array([[0, 1, 200]], np.uint8).astype(deep) * (257 if deep is np.uint16 else 1)
        pixels = preprocessing.read_pixels(io.BytesIO(tiff(values, photometric=0)))
        assert pixels[0, :, 0].tolist() == [255, 254, 55]
        with Image.open(io.BytesIO(tiff(values, photometric=0))) as image:
            assert preprocessing.preprocess(image, 1, 3)[0, :, 0].tolist() == [255, 254, 55]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, not the file"),
        (b"<!DOCTYPE html><html>", "a saved web page, not the file itself"),
        (tiff(np.zeros((9, 7, 3), np.uint8), photometric=6), "a TIFF in YCbCr, of which"),
        (
            tiff(np.zeros((9, 7), np.float32), photometric=2),
            "a TIFF whose values are floats; save it with 8 or 16",
        ),
    ],
)
def test_a_file_that_is_something_else_is_named_as_that(content, words, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PictureError, match=rf"a\.jpg: {words}"):
        preprocessing.decode(tmp_path / "a.jpg")


def test_a_picture_of_too_many_pixels_is_named_as_such(tmp_path, monkeypatch):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    with pytest.raises(PictureError, match=r"a\.png: has more than 500 pixels, the most that Pill"):
        preprocessing.decode(tmp_path / "a.png")


def test_deep_pillow_pictures_are_cut_to_8_bits():
    image = Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16))
    assert (preprocessing.preprocess(image, HEIGHT, WIDTH) == 1).all()


def test_pillow_pictures_without_rgb_pixels_are_refused_by_name(tmp_path):
    half = tmp_path / "half.jpg"
    half.write_bytes(PICTURES["shrinks"][:2000])
    with Image.open(half) as image, pytest.raises(PictureError, match=r"half\.jpg: cannot be read"):
        preprocessing.preprocess(image, HEIGHT, WIDTH)
    lab = Image.new("LAB", (WIDTH, HEIGHT))
    with pytest.raises(PictureError, match="PIL picture of mode LAB: its colours are LAB; save it"):
        preprocessing.preprocess(lab, HEIGHT, WIDTH)
    lab.save(tmp_path / "lab.tif")
    with pytest.raises(PictureError, match=r"lab\.tif: its colours are LAB; save it as RGB"):
        preprocessing.decode(tmp_path / "lab.tif")
    with pytest.raises(PictureError, match=r"RGB: an array of shape \(0, 4, 3\)"):
        preprocessing.preprocess(Image.new("RGB", (4, 0)), HEIGHT, WIDTH)


def test_pictures_of_a_folder_are_sorted_and_hidden_files_ignored(tmp_path):
    for name in ("b.PNG", "a/2.jpg", "a/10.jpeg", ".hidden.jpg", "__MACOSX/a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, others = preprocessing.list_pictures(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a/10.jpeg",
        "a/2.jpg",
        "b.PNG",
    ]
    assert others == [tmp_path / "notes.txt"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(PictureError, match=name):
            preprocessing.list_pictures(tmp_path / name)


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for name in ("in/b.jpg", "elsewhere/1.jpg", "elsewhere/deep/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (folder / "a").symlink_to(elsewhere)
    (folder / "c").symlink_to(elsewhere)  # the same folder again
    (elsewhere / "deep" / "up").symlink_to(folder)
    found, _ = preprocessing.list_pictures(folder)
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "a/1.jpg",
        "a/deep/2.jpg",
        "b.jpg",
    ]


def test_broken_links_are_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"")
    for name in ("a.jpg", "share", "z"):
        (tmp_path / name).symlink_to(tmp_path / ("z" if name == "z" else "nowhere"))
    found, others = preprocessing.list_pictures(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.jpg", "share", "z"] and not others
    with pytest.raises(PictureError, match=r"share: a broken link, to .*nowhere$"):
        preprocessing.decode(tmp_path / "share")
    with pytest.raises(PictureError, match=r"z: Too many levels of symbolic links"):
        preprocessing.decode(tmp_path / "z")


@pytest.mark.parametrize("suffix", preprocessing.SUFFIXES)
def test_every_suffix_of_a_picture_is_one_that_pillow_opens(suffix):
    Image.init()
    assert Image.registered_extensions()[suffix] in Image.OPEN
