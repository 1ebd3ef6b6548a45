"""Encoded images inside the shards of a prepared data set, and their sizes.

A shard is a TFRecord file. Each record is framed by 8 bytes of length and 4 of checksum before it,
and 4 bytes of checksum after it, and contains the image file unchanged. So an image is a slice of
its shard, and reading it means copying its bytes, whether the shard is in memory or on disk.
"""

import functools
import io
import operator
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import ExifTags, Image

from input_pipeline.errors import DataError

RECORD_HEADER, RECORD_FRAME = 12, 16  # bytes before a record, and around it
_READERS = 16  # concurrent reads: disks and networks are fastest with a queue


class FileShard:
    """A shard that stays on disk; slices of it are read on demand."""

    _descriptor: int | None = None

    def __init__(self, path: str) -> None:
        """Open the file; it is closed when the object is deleted."""
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __getitem__(self, place: slice) -> bytes:
        """Bytes ``start:stop``; does not block other threads.

        Raises:
            DataError: the file is too short.
        """
        assert self._descriptor is not None
        data = os.pread(self._descriptor, place.stop - place.start, place.start)
        if len(data) < place.stop - place.start:
            raise lost_file(self._path, "truncated while it was read")
        return data

    def __del__(self) -> None:
        """Close the file, if it could be opened."""
        if self._descriptor is not None:
            os.close(self._descriptor)


class EncodedImages(Sequence[bytes]):
    """N encoded images, indexed like an object array: ``images[3]``, ``images[[3, 5]]``."""

    def __init__(
        self, shards: Sequence[bytes | FileShard], places: Int[np.ndarray, "images 3"]
    ) -> None:
        """Take the shards and each image's place: shard, start, end."""
        self._shards = shards
        self._places = places

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One image as bytes; for an array of indices or a mask, an object array of images."""
        places = self._places[index]
        if places.ndim == 1:
            return self._read(places)
        images = np.empty(len(places), object)
        on_disk = any(isinstance(shard, FileShard) for shard in self._shards)
        images[:] = list((_readers().map if on_disk else map)(self._read, places))
        return images

    def _read(self, place: np.ndarray) -> bytes:
        shard, start, end = map(operator.index, place)
        return self._shards[shard][start:end]


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READERS, thread_name_prefix="images")


def open_shard(path: str, in_memory: bool) -> bytes | FileShard:
    """A shard, read now or left on disk.

    Raises:
        DataError: there is no such local file; remote data (``gs://…``) have to be mounted or
            copied.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_bytes() if in_memory else FileShard(path)
    except FileNotFoundError as error:
        raise lost_file(path, "missing") from error


def lost_file(path: str, what: str) -> DataError:
    """The error of a file of a prepared data set, and its remedy.

    >>> str(lost_file("data/shop/1/train", "damaged"))
    'data/shop/1/train: damaged; delete the folder data/shop/1, and the data set is prepared again'
    """
    return DataError(
        f"{path}: {what}; delete the folder {Path(path).parent}, and the data set is prepared again"
    )


def image_size(image: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG file, if its markers are complete.

    Nothing is decoded: a missing end marker reveals a truncated file, but not damaged pixels.

    Args:
        image: the encoded file.

    Returns:
        (height, width), or None for anything else.
    """
    try:
        if image.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", image[16:24])
            return (height, width) if b"IEND" in image[24:] else None
        return _jpeg_size(image)
    except struct.error:  # the header ends too early
        return None


def _jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Size from the frame header; None without it, or without the end marker after the scan."""
    if not image.startswith(b"\xff\xd8"):
        return None
    position, size = 2, None  # after the start marker, a JPEG is a list of segments
    while True:
        while image[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        marker, length = struct.unpack(">HH", image[position : position + 4])
        if not 0xFFC0 <= marker <= 0xFFFE:
            return None
        if marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):  # a frame header
            size = struct.unpack(">HH", image[position + 5 : position + 9])
        position += 2 + length
        if marker == 0xFFDA:  # the scan: pixel data cannot contain an end marker
            return size if image.find(b"\xff\xd9", position) >= 0 else None


def exif_orientation(image: bytes) -> int:
    """How a viewer turns or mirrors a JPEG or PNG file, by the orientation tag of its EXIF data.

    Args:
        image: the encoded file; its pixels are not decoded.

    Returns:
        2 … 8 as EXIF numbers them; 1, upright, also without a readable tag.
    """
    if b"Exif\x00\x00" not in image and b"eXIf" not in image:
        return 1
    try:
        with Image.open(io.BytesIO(image)) as opened:
            orientation: int = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises almost anything for a damaged file
        return 1
    return orientation if orientation in range(1, 9) else 1
