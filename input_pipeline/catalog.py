"""One split of a data set: its encoded images, and what is known about each."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8

from input_pipeline.encoded_images import (
    RECORD_FRAME,
    RECORD_HEADER,
    EncodedImages,
    exif_orientation,
    image_size,
    lost_file,
    open_shard,
)
from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_JOINTS, without_origin


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """One split, sorted by file name; N images.

    Attributes:
        images: (N,) encoded files (JPEG or PNG): an object array of bytes, or a sequence that reads
            them on demand and is indexed like one.
        filenames: (N,) object array of str.
        identities: (N,) int64, as the data set names them.
        cameras: (N,) int64.
        keypoints: (N, 17, 3) float32 x, y in pixels of the stored image (pixel centres at integers)
            and confidence in [0, 1]; all zeros where an image has no pose. A joint at exactly
            (0, 0) has confidence 0.
        image_sizes: (N, 2) int64 height, width of the stored image; zeros where the file is not a
            complete JPEG or PNG.
        occlusion: (N,) float32 hidden share of the person in [0, 1]; NaN where unknown.
        part_maps: (N, h, w, 8) uint8 external part maps over the whole image, 255 for 1, for images
            without keypoints; None where the data set has none.
    """

    images: Shaped[np.ndarray, " images"] | EncodedImages
    filenames: Shaped[np.ndarray, " images"]
    identities: Int[np.ndarray, " images"]
    cameras: Int[np.ndarray, " images"]
    keypoints: Float32[np.ndarray, "images 17 3"]
    image_sizes: Int[np.ndarray, "images 2"]
    occlusion: Float32[np.ndarray, " images"]
    part_maps: UInt8[np.ndarray, "images rows columns 8"] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " images"]:
        """(N,) int64 classes 0 … C-1, numbered in the order of the identities."""
        return np.unique(self.identities, return_inverse=True)[1]

    @functools.cached_property
    def num_identities(self) -> int:
        """Number of different identities, C."""
        return len(np.unique(self.identities))

    @functools.cached_property
    def image_sha256(self) -> Shaped[np.ndarray, " images"]:
        """(N,) hex digests of the encoded files; every file is read once."""
        return np.array([hashlib.sha256(image).hexdigest() for image in self.images], "U64")

    @property
    def has_pose(self) -> Bool[np.ndarray, " images"]:
        """(N,) bool: whether an image has keypoints of any confidence, or part maps."""
        posed = np.any(self.keypoints[..., 2], axis=1)
        return posed if self.part_maps is None else posed | self.part_maps.any(axis=(1, 2, 3))

    def drawn(self, threshold: float) -> Bool[np.ndarray, " images"]:
        """Which images have a pose that is drawn, so that teachers can use it.

        Args:
            threshold: lowest confidence, or value of a part map, that is drawn, in [0, 1].

        Returns:
            (N,) bool; whether the joints are inside the image does not count.
        """
        highest = self.keypoints[..., 2].max(axis=1)
        if self.part_maps is not None:
            highest = np.maximum(highest, self.part_maps.max(axis=(1, 2, 3)) / np.float32(255))
        return (highest >= np.float32(threshold)) & (highest > 0)

    @functools.cached_property
    def turned(self) -> Bool[np.ndarray, " images"]:
        """(N,) bool: whether viewers turn or mirror an image (EXIF); every file is read once."""
        return np.array([exif_orientation(image) > 1 for image in self.images], bool)

    def select(
        self, indices: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " images"]
    ) -> "Catalog":
        """Some of the images, held in memory."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen = {name: column[indices] for name, column in columns.items() if column is not None}
        return dataclasses.replace(self, **chosen)

    def without_poses(self) -> "Catalog":
        """The same images without any pose."""
        return self.replace_poses(np.zeros_like(self.keypoints), None)

    def replace_poses(
        self,
        keypoints: Float32[np.ndarray, "images 17 3"],
        part_maps: UInt8[np.ndarray, "images rows columns 8"] | None,
    ) -> "Catalog":
        """The same images with other poses; their digests are not computed again."""
        other = dataclasses.replace(self, keypoints=keypoints, part_maps=part_maps)
        if "image_sha256" in self.__dict__:
            other.__dict__["image_sha256"] = self.image_sha256
        return other


def joined_catalogs(catalogs: Sequence[Catalog]) -> Catalog:
    """The images of catalogs that are held in memory, one catalog after the other.

    Part maps on another grid than the first ones are left out.
    """
    given = [c.part_maps.shape[1:] for c in catalogs if c.part_maps is not None]

    def part_maps(catalog: Catalog) -> UInt8[np.ndarray, "images rows columns 8"]:
        if catalog.part_maps is not None and catalog.part_maps.shape[1:] == given[0]:
            return catalog.part_maps
        return np.zeros((len(catalog), *given[0]), np.uint8)

    columns = {
        field.name: np.concatenate([getattr(c, field.name) for c in catalogs])
        for field in dataclasses.fields(Catalog)
        if field.name != "part_maps"
    }
    maps = np.concatenate([part_maps(c) for c in catalogs]) if given else None
    return Catalog(**columns, part_maps=maps)


def read_catalog(builder: Any, split: str, *, memory_gib: float = 0.0) -> Catalog:
    """Read one split of a prepared TFDS builder without decoding its images.

    Args:
        builder: a prepared ``tfds.core.DatasetBuilder`` with the features ``image``, ``identity``,
            ``camera``, ``filename`` and, where the set has them, ``keypoints`` and ``occlusion``.
        split: the split's name.
        memory_gib: a split whose shards take up to this much is held in memory; a larger one is
            read from disk on demand.

    Returns:
        The catalog, sorted by file name, so that no reading order can change a run.

    Raises:
        DataError: the split is unknown, empty or damaged, or lacks one of these features.
    """
    info = builder.info
    if split not in info.splits:
        known = ", ".join(sorted(info.splits))
        raise DataError(f"{info.full_name}: no split {split!r}; it has {known}")
    if "image" not in info.features:
        raise DataError(f"{info.full_name}: feature 'image' is missing; it has {[*info.features]}")
    if info.file_format.value != "tfrecord":
        raise DataError(
            f"{info.full_name}: prepared as {info.file_format.value}; only tfrecord can be read"
        )
    if not info.splits[split].num_examples:
        raise DataError(f"{info.full_name}: the split {split!r} is empty; prepare it again")
    paths = [str(path) for path in info.splits[split].filepaths]
    in_memory = info.splits[split].num_bytes <= memory_gib * 2**30
    shards = [open_shard(path, in_memory) for path in paths]
    columns = _read_columns(paths, info.features)
    if (found := len(columns["place"])) != (wanted := info.splits[split].num_examples):
        raise lost_file(paths[0], f"incomplete ({found} of {wanted} images)")
    return _to_catalog(columns, shards)


def _read_columns(paths: list[str], features: Any) -> dict[str, np.ndarray]:
    """Every feature except the image, (N, …), and ``place``, (N, 3) int64: shard, start, end."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}

    @tf.autograph.experimental.do_not_convert
    def parse(record: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return record, features.deserialize_example(record, decoders=decoders)

    chunks: list[dict[str, np.ndarray]] = []
    for shard, path in enumerate(paths):
        position = 0
        dataset = tf.data.TFRecordDataset(path).map(parse, num_parallel_calls=2).batch(256)
        try:
            for records, chunk in dataset.as_numpy_iterator():
                places = np.empty((len(records), 3), np.int64)
                pairs = zip(records, chunk.pop("image"), strict=True)
                for row, (record, image) in enumerate(pairs):
                    start = position + RECORD_HEADER + record.find(image)
                    places[row] = shard, start, start + len(image)
                    position += len(record) + RECORD_FRAME
                chunks.append(chunk | {"place": places})
        except tf.errors.DataLossError as error:
            raise lost_file(path, "damaged") from error
    if not chunks:
        raise lost_file(paths[0], "empty")
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _to_catalog(columns: dict[str, np.ndarray], shards: list[Any]) -> Catalog:
    """Check the columns, sort them by file name and fill in those that the data set lacks."""
    _check_columns(columns)
    filenames = np.array([name.decode() for name in columns["filename"]], object)
    order = np.argsort(filenames, kind="stable")
    count = len(order)
    no_pose = np.zeros((count, NUM_JOINTS, 3), np.float32)
    unknown = np.full(count, np.nan, np.float32)
    images = EncodedImages(shards, columns["place"][order])
    return Catalog(
        images=images,
        filenames=filenames[order],
        identities=columns["identity"][order].astype(np.int64),
        cameras=columns["camera"][order].astype(np.int64),
        keypoints=without_origin(columns.get("keypoints", no_pose)[order].astype(np.float32))[0],
        image_sizes=np.array([image_size(image) or (0, 0) for image in images], np.int64),
        occlusion=columns.get("occlusion", unknown)[order].astype(np.float32),
    )


def _check_columns(columns: dict[str, np.ndarray]) -> None:
    """Raise DataError for features that are missing or have impossible values."""
    for name in ("identity", "camera", "filename"):
        if name not in columns:
            raise DataError(f"feature {name!r} is missing; the builder has {sorted(columns)}")
    for name in ("identity", "camera"):
        if not np.issubdtype(columns[name].dtype, np.integer):
            raise DataError(f"feature {name!r} must be an integer, not {columns[name].dtype}")
    names, counts = np.unique(columns["filename"], return_counts=True)
    if counts.max() > 1:
        raise DataError(f"{names[counts.argmax()].decode()}: this filename occurs more than once")
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
