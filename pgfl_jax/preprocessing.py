"""From a picture to the network's input, without TensorFlow: decode → resize → normalise.

This is the definition. The training pipeline does the same in TensorFlow's operations and agrees to
one grey level (tests/test_preprocessing.py). Nothing is cropped: the whole picture is the person.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, Image, TiffImagePlugin

from pgfl_jax.errors import UserError
from pgfl_jax.files import stand_in

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Endings of the files that a folder of pictures is searched for, in lower case."""


class PictureError(UserError):
    """A picture that cannot be read; the message names it."""


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What :func:`read_pixels` raises for a file that is damaged or not a picture."""


NO_ARRAY = (RuntimeError, TypeError, ValueError)
"""What NumPy raises for parts of different shapes, or a tensor elsewhere or with a gradient."""


_PHOTOMETRIC = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION  # a tag: what the values of a TIFF mean


UNMARKED_CMYK = "a JPEG in CMYK without Adobe's marker, so its colours are unknown; save it as RGB"
"""Why :func:`is_unmarked_cmyk` pictures are refused."""


def preprocess(picture: Any, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Decode, if it is a file, and resize.

    Args:
        picture: a path, a PIL picture of any mode that :func:`decode` takes, or RGB values (any
            height, any width, 3) uint8.
        height: of the network's input.
        width: of the network's input.

    Raises:
        PictureError: the file cannot be read, or it is something else than a picture.
    """
    if isinstance(picture, str | os.PathLike):
        image = decode(picture)
    elif isinstance(picture, Image.Image):
        image = from_pillow(picture)
    else:
        image = _checked(picture)
    return resize(image, height, width)


def decode(path: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture file to 8-bit RGB.

    Grey and CMYK pictures become RGB, an alpha channel is dropped, 16 bits are cut to the upper 8.
    An EXIF orientation is ignored: person crops are stored upright, and training ignores it too.

    Raises:
        PictureError: there is no such file, it is damaged or not a picture, its values are floats
            or need more than 16 bits, or it is a JPEG in CMYK without Adobe's marker.
    """
    if not os.fspath(path):
        raise PictureError("'': an empty path; is a variable not set?")
    try:
        return read_pixels(path)
    except PictureError as error:
        raise PictureError(f"{os.fspath(path)}: {error}") from error
    # What Pillow raises depends on the format and on where the file is damaged.
    except UNREADABLE as error:
        raise PictureError(f"{os.fspath(path)}: {_reason(path, error)}") from error


def _reason(path: str | os.PathLike, error: Exception) -> str:
    """Why a file cannot be read."""
    if isinstance(error, IsADirectoryError):
        return "is a folder; give it alone, or give its pictures"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"a broken link, to {os.readlink(os.fspath(path))}"
    if words := getattr(error, "strerror", None):
        return words
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        if words := unreadable_kind(file, error):
            return words
    return "damaged, or not a picture"


def unreadable_kind(file: io.BufferedIOBase, error: Exception) -> str:
    """What a file is that Pillow cannot read, and what to do; empty if it may be damaged.

    Args:
        file: open at its start.
        error: what :func:`read_pixels` raised for it.
    """
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"has more than {limit:,} pixels, the most that Pillow reads; make it smaller"
    if found := stand_in(file.read(512)):
        return found
    file.seek(0)
    with contextlib.suppress(Exception):  # Pillow raises almost anything for what is no TIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(cast(IO[bytes], file))
        if 3 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
            return "a TIFF whose values are floats; save it with 8 or 16 bits per channel"
        if tags.get(_PHOTOMETRIC) == 6:
            return "a TIFF in YCbCr, of which Pillow reads only some; save it as RGB"
    return ""


def read_pixels(file: str | os.PathLike | io.BytesIO) -> UInt8[np.ndarray, "height width 3"]:
    """As :func:`decode`, also for a file in memory; its errors do not name the file.

    Raises:
        PictureError: as :func:`decode`, except for damage.
        Exception: one of ``UNREADABLE``.
    """
    with Image.open(file) as image:
        if is_unmarked_cmyk(image):
            raise PictureError(UNMARKED_CMYK)
        return _rgb(image)


def is_unmarked_cmyk(image: Image.Image) -> bool:
    """Whether a file is a JPEG in CMYK without Adobe's marker, which says that it is inverted.

    Pillow and TensorFlow would decode it to pictures that are inverted to each other.
    """
    return image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a Pillow picture of any mode, as :func:`decode` gives them."""
    if image.format == "TIFF":  # the only format that Pillow turns by its orientation when it reads
        image.getexif()[ExifTags.Base.Orientation] = 1
    if image.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow would clip
        grey = _upper_8_bits(np.asarray(image), deep=image.mode != "I")
        # Pillow inverts a TIFF in which 0 is white, except if it has 16 bits.
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "LAB":  # Pillow converts it with a colour profile alone
        raise PictureError("its colours are LAB; save it as RGB")
    return np.asarray(image.convert("RGB"))


def from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB pixels of a Pillow picture, which may still have to read its file.

    Raises:
        PictureError: its file is damaged, or its pixels are none of those that :func:`decode`
            takes.
    """
    try:
        if is_unmarked_cmyk(picture):
            raise PictureError(UNMARKED_CMYK)
        return _checked(_rgb(picture))
    except PictureError as error:
        raise PictureError(f"{_name(picture)}: {error}") from error
    except UNREADABLE as error:
        raise PictureError(f"{_name(picture)}: cannot be read ({error})") from error


def _upper_8_bits(
    values: Shaped[np.ndarray, "height width"], *, deep: bool
) -> UInt8[np.ndarray, "height width"]:
    """Grey values of 16 bits cut to the upper 8.

    Pillow widens many files to 32 bits, so values up to 255 are taken as 8 bits unless ``deep``.
    """
    if values.dtype.kind == "f":
        raise PictureError("its values are floats; save it with 8 or 16 bits per channel")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise PictureError(
            f"its values range from {low} to {high}; save it with 8 or 16 bits per channel"
        )
    return (values >> 8 if deep or high > 255 else values).astype(np.uint8)


def resize(
    image: UInt8[np.ndarray, "image_height image_width 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize bilinearly; the filter widens when a side shrinks, so that every pixel counts.

    This is Pillow's ``BILINEAR``. OpenCV's ``INTER_LINEAR`` skips pixels of a shrinking picture,
    and ``INTER_AREA`` is a box: either moves embeddings.
    """
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def scale_and_offset(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Per-channel a and b, float32, for which a·x + b = (x / 255 − mean) / std.

    >>> scale, offset = scale_and_offset((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> (255 * scale + offset).tolist(), offset.tolist()
    ([1.0, 1.0, 1.0], [-1.0, -1.0, -1.0])
    """
    centre, spread = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return (1 / (255 * spread)).astype(np.float32), (-centre / spread).astype(np.float32)


def normalise(
    images: Shaped[Any, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Any, "batch height width 3"]:
    """(x / 255 − mean) / std per channel, for RGB in [0, 255]; float32, NumPy's or JAX's."""
    scale, offset = scale_and_offset(mean, std)
    return images.astype(np.float32) * scale[None, None, None] + offset[None, None, None]


def list_pictures(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder and the folders below it, and its other files.

    Links to folders are followed; a folder that several paths lead to is listed once. Hidden files
    and folders, and macOS's ``__MACOSX``, are ignored. A broken link counts as a picture whatever
    its name, since it may have led to a folder of them; :func:`decode` names it.

    Returns:
        The files with one of ``SUFFIXES`` and the broken links, sorted by path; the other files.

    Raises:
        PictureError: the folder holds no pictures, or does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PictureError(f"{root}: no such folder")
    pictures: list[Path] = []
    others: list[Path] = []
    for path in sorted(_walk(root, set())):
        if not path.exists() or (path.is_file() and path.suffix.lower() in SUFFIXES):
            pictures.append(path)
        elif path.is_file():
            others.append(path)
    if not pictures:
        raise PictureError(f"{root}: no pictures ({', '.join(SUFFIXES)})")
    return pictures, others


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """What a folder and the folders below it hold, except for folders ``seen`` before."""
    if (real := folder.resolve()) in seen:
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            yield from _walk(path, seen)
        else:
            yield path


def _name(picture: Image.Image) -> str:
    """The file of a Pillow picture, if it has one."""
    return str(getattr(picture, "filename", "") or f"PIL picture of mode {picture.mode}")


def _checked(picture: Any) -> UInt8[np.ndarray, "height width 3"]:
    try:
        array = np.asarray(picture)
    except NO_ARRAY:
        array = np.array(None)
    if array.dtype.kind in "OSU":  # no numbers
        kind = f"an array of type {array.dtype}" if array is picture else type(picture).__name__
        raise PictureError(
            f"{kind} is no picture; give a path, an RGB array, a PIL picture, or a list of these"
        )
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise PictureError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture; "
            "give (height, width, 3) uint8, in the order RGB"
        )
    return array
