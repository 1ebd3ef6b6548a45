"""From a catalog to batches: tf.data around the sampler, the augmentation and the part maps."""

import atexit
import functools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from jaxtyping import Integer

from input_pipeline import augment, geometry, pose_maps, sampler
from input_pipeline.catalog import Catalog
from input_pipeline.cores import available_cores
from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_JOINTS
from pgfl_jax.config import DataConfig

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """A data set's batches as read-only NumPy arrays; an image that cannot be decoded is named.

    It can be abandoned at any time, with or without :meth:`close`.
    """

    def __init__(self, catalog: Catalog, dataset: tf.data.Dataset) -> None:
        """Start at the first batch of ``dataset``, which reads the images of ``catalog``."""
        self._catalog = catalog
        self._iterator: Iterator[Batch] = dataset.as_numpy_iterator()
        _open.add(self)

    def __next__(self) -> Batch:
        """The next batch; DataError if one of its images cannot be decoded."""
        try:
            return next(self._iterator)
        except tf.errors.InvalidArgumentError as error:
            reason = str(error)
        # The iterator is closed, and the error dropped, before anything is raised. An iterator that
        # a traceback keeps alive would, when freed, wait for its own reading thread and hang.
        self.close()
        # tf.data does not say which image it was; now that time does not matter, look for it.
        raise DataError(_find_corrupt(self._catalog) or reason)

    def close(self) -> None:
        """Stop reading; there are no further batches."""
        self._iterator = iter(())


_open: "weakref.WeakSet[Batches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close all batches: a reading thread that outlives the interpreter would hang its exit."""
    for batches in list(_open):
        batches.close()


def train_batches(
    catalog: Catalog,
    config: DataConfig,
    *,
    map_shape: tuple[int, int],
    seed: int,
    start_step: int = 0,
    parts: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    poses_at: Callable[[int], Catalog] | None = None,
) -> Batches:
    """Endless augmented PxK batches; batch ``step`` is a pure function of ``(seed, step)``.

    Each process gets a slice of b = P·K / process_count rows. In order, the slices of all processes
    are the batch that a single process would get. If the step accumulates over parts of the batch,
    this holds for each part of P / parts identities, and a slice consists of the slices of its
    parts.

    Args:
        catalog: the training split.
        config: the data options.
        map_shape: (h, w) of the part maps.
        seed: of sampling and augmentation.
        start_step: the step of the first batch, for resuming.
        parts: number of consecutive parts into which the batch is cut before it is sliced.
        process_index: which slice, 0 … process_count - 1.
        process_count: number of slices.
        poses_at: the same images with the poses of a step; None: always those of ``catalog``.

    Returns:
        Iterator of dicts: ``images`` (b, H, W, 3) uint8, ``erased`` (b, 4) int32 top, left, bottom,
        right of the rectangles that the devices erase, ``labels`` (b,) int32, ``part_maps``
        (b, h, w, 8) float32, ``visibility`` (b, 8) float32, ``indices`` (b,) int32 into the
        catalog. The arrays are read-only.

    Raises:
        DataError: the identities or the processes do not suit the batch; while iterating, an image
            cannot be decoded.
    """
    local = _local_size(config.batch_size // parts, process_count, "data.identities_per_batch")
    steps = sampler.identity_batches(
        catalog.identities,
        catalog.cameras,
        identities_per_batch=config.identities_per_batch,
        images_per_identity=config.images_per_identity,
        seed=seed,
        start_step=start_step,
    )
    numbered = np.arange(config.batch_size).reshape(parts, process_count, local)
    mine = numbered[:, process_index].ravel()

    def rows() -> Iterator[Batch]:
        for step, indices in enumerate(steps, start_step):
            whole = geometry.draw(seed, step, config)
            part = geometry.Geometry(*(values[mine] for values in whole))
            labels = catalog.labels[indices[mine]].astype(np.int32)
            posed = catalog if poses_at is None else poses_at(step)
            yield {**_rows(posed, indices[mine], part, pad, config), "labels": labels}

    pad, extra = config.augment.pad, {"labels": tf.int32}
    dataset = _dataset(rows, catalog, extra, len(mine), pad, config, map_shape)
    return Batches(catalog, dataset)


def evaluation_batches(
    catalog: Catalog,
    config: DataConfig,
    *,
    map_shape: tuple[int, int] | None,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[], Batches]:
    """One pass over the catalog, in its order, in batches of one static shape.

    Every process gets the same number of batches, each with b = batch_size / process_count rows of
    the global batch. The last batch is padded with rows of zeros.

    Args:
        catalog: the split to embed.
        config: the data options.
        map_shape: (h, w) of the part maps; None: neither part maps nor visibility, which take
            longer to start than the images.
        batch_size: rows of a batch over all processes.
        process_index: which slice, 0 … process_count - 1.
        process_count: number of slices.

    Returns:
        A function that starts a new pass; only the first one builds the dataset. The dicts are
        those of :func:`train_batches`, without ``labels`` and ``erased``, and with ``valid`` (b,)
        float32: 1 for an image, 0 for padding (with index 0).

    Raises:
        DataError: the processes do not divide the batch; while iterating, an image cannot be
            decoded.
    """
    local = _local_size(batch_size, process_count, "eval.batch_size")
    mine = np.arange(process_index * local, (process_index + 1) * local)

    def rows() -> Iterator[Batch]:
        for start in range(0, len(catalog), batch_size):
            valid = (start + mine < len(catalog)).astype(np.float32)
            indices = np.where(valid, start + mine, 0)
            part = geometry.unchanged(local) if map_shape else None
            yield {**_rows(catalog, indices, part, 0, config), "valid": valid}

    # Built with the first pass, so that a split that is never read costs nothing.
    @functools.cache
    def dataset() -> tf.data.Dataset:
        return _dataset(rows, catalog, {"valid": tf.float32}, local, 0, config, map_shape)

    return lambda: Batches(catalog, dataset())


def evaluation_batch_size(images: int, largest: int, devices: int) -> int:
    """Rows of the batches in which a split is embedded, so that few of them are padding.

    The split is cut into as few batches as possible, all of one size. Sizes are rounded up to
    sixteenths of the largest batch: a program is compiled for each size, and splits of many batches
    should share one.

    Args:
        images: number of images in the split, at least 1.
        largest: rows of a batch at most; ``devices`` divides it.
        devices: over all processes; each gets an equal share of the rows.

    Returns:
        A multiple of ``devices``. On average, the padding of a batch is below a sixteenth of
        ``largest`` plus one row per device.

    >>> evaluation_batch_size(1138, 512, devices=1)  # three batches, 14 of 1,152 rows are padding
    384
    >>> evaluation_batch_size(15_913, 256, devices=8), evaluation_batch_size(3, 256, devices=8)
    (256, 16)
    """
    even = math.ceil(images / math.ceil(images / largest))
    unit = math.ceil(largest / 16 / devices) * devices
    return min(largest, math.ceil(even / unit) * unit)


def _local_size(batch_size: int, process_count: int, option: str) -> int:
    """Rows per process."""
    if batch_size % process_count:
        raise DataError(
            f"{option}: a batch of {batch_size} cannot be divided among {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    return batch_size // process_count


def _rows(
    catalog: Catalog,
    indices: Integer[np.ndarray, " batch"],
    part: geometry.Geometry | None,
    pad: int,
    config: DataConfig,
) -> Batch:
    """The columns of a batch that come from the catalog; without geometry, the images alone."""
    rows = {"encoded": catalog.images[indices], "indices": indices.astype(np.int32)}
    if part is None:
        return rows
    rows |= part._asdict()
    rows["keypoints"] = geometry.move_keypoints(
        catalog.keypoints[indices], catalog.image_sizes[indices], part, pad, config
    )
    if catalog.part_maps is not None:
        rows["given_maps"] = catalog.part_maps[indices]
    return rows


def _dataset(
    rows: Callable[[], Iterator[Batch]],
    catalog: Catalog,
    extra: Mapping[str, tf.DType],
    size: int,
    pad: int,
    config: DataConfig,
    map_shape: tuple[int, int] | None,
) -> tf.data.Dataset:
    """Rows of one batch at a time → images in parallel → batches, with part maps if they have any.

    Python runs once per batch, not once per image, and small operations work on a whole batch: an
    operation on a single image costs a microsecond even if it does nothing.
    """
    image_shape = config.height, config.width
    columns: dict[str, tuple[tuple[int, ...], tf.DType]] = {
        "encoded": ((), tf.string),
        "indices": ((), tf.int32),
        **{name: ((), dtype) for name, dtype in extra.items()},
    }
    if map_shape is not None:
        columns |= {
            "keypoints": ((NUM_JOINTS, 3), tf.float32),
            "flip": ((), tf.bool),
            "corner": ((2,), tf.int32),
            "rectangle": ((4,), tf.int32),
        }
        if catalog.part_maps is not None:
            columns["given_maps"] = (catalog.part_maps.shape[1:], tf.uint8)
    signature = {
        name: tf.TensorSpec((size, *shape), dtype) for name, (shape, dtype) in columns.items()
    }

    @tf.autograph.experimental.do_not_convert
    def read_image(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = augment.decode(row.pop("encoded"))
        if map_shape is None:
            return row | {"images": augment.resize(image, *image_shape)}
        return row | {"images": augment.place(image, row["flip"], row["corner"], pad, image_shape)}

    @tf.autograph.experimental.do_not_convert
    def finish(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if map_shape is not None:
            batch = _with_part_maps(batch, pad, config, map_shape)
        if "valid" not in batch:
            return batch
        padding = batch["valid"] == 0  # the rows that fill the last batch are 0
        for name in batch.keys() & {"images", "part_maps", "visibility"}:
            rows = tf.reshape(padding, (-1, *[1] * (batch[name].shape.rank - 1)))
            batch[name] = tf.where(rows, tf.zeros((), batch[name].dtype), batch[name])
        batch.pop("erased", None)
        return batch

    threads = available_cores()
    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature).unbatch()
    # More calls than threads, so that no thread waits for results to leave in order.
    dataset = dataset.map(read_image, num_parallel_calls=8 * threads, deterministic=True)
    dataset = dataset.batch(size, drop_remainder=True).map(finish).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def _with_part_maps(
    batch: dict[str, tf.Tensor], pad: int, config: DataConfig, map_shape: tuple[int, int]
) -> dict[str, tf.Tensor]:
    """Replace keypoints, given maps and geometry by part maps, visibility and what is erased."""
    image_shape = config.height, config.width
    moved = {name: batch.pop(name) for name in geometry.Geometry._fields}
    threshold = config.pose.threshold
    maps, visibility = pose_maps.part_maps(
        batch.pop("keypoints"),
        augment.window(moved["corner"], pad, image_shape),
        moved["rectangle"],
        image_shape=image_shape,
        map_shape=map_shape,
        sigma=config.pose.sigma,
        threshold=threshold,
    )
    if "given_maps" in batch:
        given = tf.cast(batch.pop("given_maps"), tf.float32) / 255
        given = augment.move_maps(given, moved, pad, image_shape, map_shape)
        maps, visibility = pose_maps.join_given_maps(maps, visibility, given, threshold=threshold)
    return batch | {"part_maps": maps, "visibility": visibility, "erased": moved["rectangle"]}


def _find_corrupt(catalog: Catalog) -> str | None:
    """Name the first image that cannot be decoded, with the remedy."""
    for image, filename in zip(catalog.images, catalog.filenames, strict=True):
        try:
            augment.decode(tf.constant(image))
        except tf.errors.InvalidArgumentError:
            return (
                f"{filename}: the image cannot be decoded; replace or remove the file, and prepare "
                "the data set again (delete its folder in config.data.data_dir)"
            )
    return None
