"""Encoded images where they lie, in the shards of a prepared data set, and what their markers say.

A shard is a TFRecord file: 8 bytes length, 4 bytes checksum, the record, 4 bytes checksum; the
record holds the image file unchanged. So an image is a stretch of its shard, and reading one costs
a copy of its bytes, whether the shard is held in memory or mapped from the disk.
"""

import mmap
import operator
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RECORD_HEADER, RECORD_FRAME = 12, 16  # bytes before a record, and around it


class EncodedImages(Sequence[bytes]):
    """N encoded images, indexed like an object array: ``images[3]``, ``images[[3, 5]]``."""

    def __init__(self, shards: Sequence[Any], places: np.ndarray) -> None:
        """Take buffers (``bytes`` or ``mmap``) and (N, 3) int64: each image's shard, start, end."""
        self._shards = shards
        self._places = places

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One image as bytes; for an array of indices or a mask, an object array of them."""
        places = self._places[index]
        if places.ndim == 1:
            return self._read(places)
        images = np.empty(len(places), object)
        images[:] = [self._read(place) for place in places]
        return images

    def _read(self, place: np.ndarray) -> bytes:
        shard, start, end = map(operator.index, place)
        return self._shards[shard][start:end]


def open_shard(path: str, in_memory: bool) -> bytes | mmap.mmap:
    """A shard's bytes: read now, or mapped so that the system reads and forgets them as it likes.

    Args:
        path: a file; with ``in_memory`` also one that only TensorFlow can read, as ``gs://…``.
        in_memory: whether to read it now.
    """
    if in_memory:
        import tensorflow as tf

        return tf.io.gfile.GFile(path, "rb").read()
    if not os.path.getsize(path):
        return b""  # cannot be mapped
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def image_size(image: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG file that is whole as far as its markers tell.

    Nothing is decoded: a file cut off early is found by its missing end, damaged pixels are not.

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
    """Size from the frame header; None without one, or without the end marker after the scan."""
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
        if marker == 0xFFDA:  # the scan: pixels, in which no end marker can occur
            return size if image.find(b"\xff\xd9", position) >= 0 else None
