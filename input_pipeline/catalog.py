"""One split of a data set in memory: encoded images and what is known about each."""

import dataclasses
import functools
import struct
from typing import Any

import numpy as np

from input_pipeline.keypoints import NUM_JOINTS
from pgfl_jax.errors import UserError


class DataError(UserError):
    """A data set that cannot be used so; the message names the file or option and the remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """One split, sorted by file name; N images.

    Attributes:
        images: (N,) encoded bytes (JPEG or PNG), object array.
        filenames: (N,) object array of str.
        identities: (N,) int64, as the data set names them.
        cameras: (N,) int64.
        keypoints: (N, 17, 3) float32 x, y in pixels of the stored image (pixel centres at integers)
            and confidence in [0, 1]; all zeros where an image has no pose.
        image_sizes: (N, 2) int64 height, width of the stored image.
        occlusion: (N,) float32 hidden share of the person in [0, 1]; NaN where unknown.
    """

    images: np.ndarray
    filenames: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    keypoints: np.ndarray
    image_sizes: np.ndarray
    occlusion: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes 0 … C-1, numbered in the order of the identities."""
        return np.unique(self.identities, return_inverse=True)[1]

    @functools.cached_property
    def num_identities(self) -> int:
        """Number of different identities, C."""
        return len(np.unique(self.identities))

    def shuffle_poses(self, seed: int) -> "Catalog":
        """The control experiment: every image gets the pose of another image.

        Args:
            seed: which permutation; no image keeps its own pose (given at least two images).

        Returns:
            A catalog with the poses permuted, each stretched to its new image's size.
        """
        cycle = np.random.default_rng(seed).permutation(len(self))
        source = np.empty_like(cycle)
        source[cycle] = np.roll(cycle, 1)
        keypoints = self.keypoints[source].copy()
        scale = (self.image_sizes / self.image_sizes[source])[:, None, ::-1]  # (N, 1, 2): x, y
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
        keypoints[~self.keypoints[source].any(axis=(1, 2))] = 0.0
        return dataclasses.replace(self, keypoints=keypoints)

    def without_poses(self) -> "Catalog":
        """The same images with no pose at all."""
        return dataclasses.replace(self, keypoints=np.zeros_like(self.keypoints))


def read_catalog(builder: Any, split: str) -> Catalog:
    """Read one split of a prepared TFDS builder without decoding its images.

    Args:
        builder: a prepared ``tfds.core.DatasetBuilder`` with the features ``image``, ``identity``,
            ``camera``, ``filename`` and, where the set has them, ``keypoints`` and ``occlusion``.
        split: the split's name.

    Returns:
        The catalog, sorted by file name, so that no reading order can change a run.

    Raises:
        DataError: the split is unknown or empty, or an image is neither JPEG nor PNG.
    """
    import tensorflow_datasets as tfds

    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise DataError(f"{builder.info.full_name}: no split {split!r}; it has {known}")
    decoders = {"image": tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    chunks = list(tfds.as_numpy(dataset.batch(1024)))
    if not chunks:
        raise DataError(f"{builder.info.full_name}: the split {split!r} is empty; prepare it again")
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return _to_catalog(columns, builder.info.features["image"].shape)


def _to_catalog(columns: dict[str, np.ndarray], image_shape: tuple[int | None, ...]) -> Catalog:
    """Check the columns, sort them by file name and fill in what the data set lacks."""
    _check_columns(columns)
    filenames = np.array([name.decode() for name in columns["filename"]], object)
    order = np.argsort(filenames, kind="stable")
    count = len(order)
    no_pose = np.zeros((count, NUM_JOINTS, 3), np.float32)
    unknown = np.full(count, np.nan, np.float32)
    images, filenames = columns["image"][order], filenames[order]
    return Catalog(
        images=images,
        filenames=filenames,
        identities=columns["identity"][order].astype(np.int64),
        cameras=columns["camera"][order].astype(np.int64),
        keypoints=columns.get("keypoints", no_pose)[order].astype(np.float32),
        image_sizes=_image_sizes(images, filenames, image_shape),
        occlusion=columns.get("occlusion", unknown)[order].astype(np.float32),
    )


def _check_columns(columns: dict[str, np.ndarray]) -> None:
    """Raise DataError for features that are missing or cannot mean what they should."""
    for name in ("image", "identity", "camera", "filename"):
        if name not in columns:
            raise DataError(f"feature {name!r} is missing; the builder has {sorted(columns)}")
    for name in ("identity", "camera"):
        if not np.issubdtype(columns[name].dtype, np.integer):
            raise DataError(f"feature {name!r} must be an integer, not {columns[name].dtype}")
    names, counts = np.unique(columns["filename"], return_counts=True)
    if counts.max() > 1:
        raise DataError(f"{names[counts.argmax()].decode()}: the filename stands more than once")
    if "keypoints" not in columns:
        return
    keypoints = columns["keypoints"]
    if keypoints.shape[1:] != (NUM_JOINTS, 3):
        raise DataError(f"keypoints must be ({NUM_JOINTS}, 3), not {keypoints.shape[1:]}")
    confidence = keypoints[..., 2]
    wrong = ~np.isfinite(keypoints).all(axis=(1, 2)) | ((confidence < 0) | (confidence > 1)).any(1)
    if wrong.any():
        first = columns["filename"][wrong.argmax()].decode()
        raise DataError(f"{first}: keypoints must be finite, with confidences in [0, 1]")


def _image_sizes(
    images: np.ndarray, filenames: np.ndarray, image_shape: tuple[int | None, ...]
) -> np.ndarray:
    """(N, 2) height, width: the features' static shape, or else from every image's header."""
    height, width = image_shape[:2]
    if height is not None and width is not None:
        return np.tile(np.array([height, width], np.int64), (len(images), 1))
    sizes = [_header_size(image, name) for image, name in zip(images, filenames, strict=True)]
    return np.array(sizes, np.int64)


def _header_size(image: bytes, filename: str) -> tuple[int, int]:
    """Height and width from a PNG or JPEG header; DataError for anything else."""
    try:
        if image.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", image[16:24])
            return height, width
        position = 2  # after the start-of-image marker, a JPEG is a list of segments
        while image.startswith(b"\xff\xd8"):
            marker, length = struct.unpack(">xBH", image[position : position + 4])
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
                return struct.unpack(">HH", image[position + 5 : position + 9])
            position += 2 + length
    except struct.error:
        pass  # the header ends too early
    raise DataError(f"{filename}: neither a JPEG nor a PNG image; replace or remove the file")
