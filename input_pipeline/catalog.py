"""One split of a data set: where its encoded images lie, and what is known about each."""

import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.encoded_images import (
    RECORD_FRAME,
    RECORD_HEADER,
    EncodedImages,
    image_size,
    open_shard,
)
from input_pipeline.keypoints import NUM_JOINTS
from pgfl_jax.errors import UserError

if TYPE_CHECKING:
    from input_pipeline.poses.cache import PoseCache


class DataError(UserError):
    """A data set that cannot be used so; the message names the file or option and the remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Catalog:
    """One split, sorted by file name; N images.

    Attributes:
        images: (N,) encoded files (JPEG or PNG): an object array of bytes, or what reads them on
            demand and is indexed like one.
        filenames: (N,) object array of str.
        identities: (N,) int64, as the data set names them.
        cameras: (N,) int64.
        keypoints: (N, 17, 3) float32 x, y in pixels of the stored image (pixel centres at integers)
            and confidence in [0, 1]; all zeros where an image has no pose.
        image_sizes: (N, 2) int64 height, width of the stored image; zeros where the file is no
            whole JPEG or PNG.
        occlusion: (N,) float32 hidden share of the person in [0, 1]; NaN where unknown.
        part_maps: (N, h, w, 8) uint8 part maps made by others, 255 for 1, over the whole image,
            for images without keypoints; None where the data set has none.
    """

    images: np.ndarray | EncodedImages
    filenames: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    keypoints: np.ndarray
    image_sizes: np.ndarray
    occlusion: np.ndarray
    part_maps: np.ndarray | None = None

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

    @functools.cached_property
    def image_sha256(self) -> np.ndarray:
        """(N,) hex digests of the encoded files; every file is read once."""
        return np.array([hashlib.sha256(image).hexdigest() for image in self.images], "U64")

    @property
    def has_pose(self) -> np.ndarray:
        """(N,) bool: whether an image has keypoints of any confidence, or part maps."""
        posed = np.any(self.keypoints[..., 2], axis=1)
        return posed if self.part_maps is None else posed | self.part_maps.any(axis=(1, 2, 3))

    def with_poses(self, cache: "PoseCache") -> "Catalog":
        """The same images with the poses of a cache, matched by content, instead of their own.

        Images that the cache does not know keep what they have.

        Raises:
            DataError: its part maps have another grid than those joined before.
        """
        rows = cache.lookup(self.image_sha256)
        known = rows >= 0
        if not known.any():
            return self
        keypoints, part_maps = self.keypoints.copy(), self.part_maps
        keypoints[known] = cache.keypoints[rows[known]]
        given = None if cache.part_maps is None else cache.part_maps[rows[known]]
        if given is not None and not given.any():
            given = None
        if part_maps is not None or given is not None:
            shapes = {maps.shape[1:] for maps in (part_maps, given) if maps is not None}
            if len(shapes) > 1:
                raise DataError(
                    f"config.data.pose.files: part maps of several grids, {sorted(shapes)}; import "
                    "them all at one size"
                )
            shape = (len(self), *shapes.pop())
            part_maps = np.zeros(shape, np.uint8) if part_maps is None else part_maps.copy()
            part_maps[known] = 0 if given is None else given
        return self._with(keypoints, part_maps)

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
        keypoints[~self.keypoints[source, :, 2].any(axis=1)] = 0.0
        part_maps = None if self.part_maps is None else self.part_maps[source]
        return self._with(keypoints, part_maps)

    def select(self, indices: np.ndarray) -> "Catalog":
        """Some of the images, held in memory."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen = {name: column[indices] for name, column in columns.items() if column is not None}
        return dataclasses.replace(self, **chosen)

    def without_poses(self) -> "Catalog":
        """The same images with no pose at all."""
        return self._with(np.zeros_like(self.keypoints), None)

    def _with(self, keypoints: np.ndarray, part_maps: np.ndarray | None) -> "Catalog":
        """The same images with other poses; their digests are not computed again."""
        other = dataclasses.replace(self, keypoints=keypoints, part_maps=part_maps)
        if "image_sha256" in self.__dict__:
            other.__dict__["image_sha256"] = self.image_sha256
        return other


def read_catalog(builder: Any, split: str, *, memory_gib: float = 0.0) -> Catalog:
    """Read one split of a prepared TFDS builder without decoding its images.

    Args:
        builder: a prepared ``tfds.core.DatasetBuilder`` with the features ``image``, ``identity``,
            ``camera``, ``filename`` and, where the set has them, ``keypoints`` and ``occlusion``.
        split: the split's name.
        memory_gib: a split whose shards take up to this much is held in memory; a larger one is
            read from the disk on demand.

    Returns:
        The catalog, sorted by file name, so that no reading order can change a run.

    Raises:
        DataError: the split is unknown, empty or damaged, or its features are not those above.
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
    return _to_catalog(_read_columns(paths, info.features), shards)


def _read_columns(paths: list[str], features: Any) -> dict[str, np.ndarray]:
    """Every feature but the image, (N, …), and ``place``, (N, 3) int64: its shard, start, end."""
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
            raise DataError(
                f"{path}: damaged; delete its folder, and the data set is prepared anew"
            ) from error
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _to_catalog(columns: dict[str, np.ndarray], shards: list[Any]) -> Catalog:
    """Check the columns, sort them by file name and fill in what the data set lacks."""
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
        keypoints=columns.get("keypoints", no_pose)[order].astype(np.float32),
        image_sizes=np.array([image_size(image) or (0, 0) for image in images], np.int64),
        occlusion=columns.get("occlusion", unknown)[order].astype(np.float32),
    )


def _check_columns(columns: dict[str, np.ndarray]) -> None:
    """Raise DataError for features that are missing or cannot mean what they should."""
    for name in ("identity", "camera", "filename"):
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
