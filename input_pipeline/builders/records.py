"""One image of a data set: its file, identity and camera, and its bytes as they are stored."""

import contextlib
import dataclasses
import io
from pathlib import PurePosixPath
from typing import Any

import cv2
from PIL import Image

from input_pipeline.errors import DataError
from input_pipeline.file_tree import Location, read_file
from pgfl_jax.preprocessing import (
    UNMARKED_CMYK,
    UNREADABLE,
    PictureError,
    is_unmarked_cmyk,
    read_pixels,
    unreadable_kind,
)

_STORED_UNCHANGED = (b"\xff\xd8", b"\x89PNG")  # how a JPEG and a PNG begin


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        location: of its file.
        filename: its path relative to the data set's folder, unique in the split.
        identity: the person's number.
        camera: the camera's number.
        annotations: further features, such as ``keypoints``.
    """

    location: Location
    filename: str
    identity: int
    camera: int
    annotations: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_record(record: Record) -> tuple[str, dict[str, Any]]:
    """The TFDS key and example of a record.

    Raises:
        DataError: a damaged archive, or an image that had to be re-encoded and cannot be decoded.
    """
    return record.filename, {
        "image": to_jpeg_or_png(read_file(record.location), "/".join(record.location)),
        "identity": record.identity,
        "camera": record.camera,
        "filename": record.filename,
        **record.annotations,
    }


def to_jpeg_or_png(encoded: bytes, name: str) -> bytes:
    """JPEG and PNG files unchanged; any other image as a PNG with the same pixels.

    Images that TensorFlow cannot read (TIFF, WebP) or that waste space (BMP) become PNGs with three
    channels of 8 bits: 16 bits are cut to 8, an alpha channel is dropped. No image is turned by its
    EXIF orientation, as JPEG and PNG are not.

    Args:
        encoded: the file's contents.
        name: the file's name, for its suffix and for messages.

    Raises:
        DataError: the image cannot be decoded, holds floats or more than 16 bits, is a JPEG in
            CMYK without Adobe's marker, or is something else, as
            :func:`pgfl_jax.preprocessing.unreadable_kind` says. Any other broken file with a suffix
            of JPEG or PNG is stored nevertheless: a later check names all of these at once.
    """
    if encoded.startswith(_STORED_UNCHANGED):
        # Opening reads the header alone. A broken file is stored, as below.
        with contextlib.suppress(*UNREADABLE), Image.open(io.BytesIO(encoded)) as image:
            if is_unmarked_cmyk(image):
                raise DataError(f"{name}: {UNMARKED_CMYK}")
        return encoded
    try:
        pixels = read_pixels(io.BytesIO(encoded))
        return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    except PictureError as error:
        raise DataError(f"{name}: {error}") from error
    except UNREADABLE as error:
        if found := unreadable_kind(io.BytesIO(encoded), error):
            raise DataError(f"{name}: {found}") from error
    if PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg", ".png"):
        return encoded
    raise DataError(f"{name}: the image cannot be decoded; replace or remove the file")
