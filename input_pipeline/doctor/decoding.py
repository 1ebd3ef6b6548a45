"""Which images cannot be decoded; all are tried, a few at a time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from input_pipeline import augment
from input_pipeline.catalog import Catalog
from input_pipeline.cores import available_cores
from input_pipeline.poses.progress import progress

_CHUNK = 32  # images read at once by each thread; one is decoded at a time


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _decode_all(encoded: tf.Tensor) -> tf.Tensor:
    """Decode (n,) images one after the other, as training does, and keep none."""
    # A result that needs the pixels: with a mere size nothing would be decoded.
    return tf.map_fn(
        lambda image: tf.reduce_max(augment.decode(image)),
        encoded,
        fn_output_signature=tf.uint8,
        parallel_iterations=1,
    )


def undecodable(catalog: Catalog, task: str) -> np.ndarray:
    """Rows (U,) int64 of the images that cannot be decoded, in order.

    Args:
        catalog: the split.
        task: what the progress bar is called.
    """

    def broken(rows: np.ndarray) -> list[int]:
        images = catalog.images[rows]
        if _decodes(images):
            return []
        return [int(row) for row, image in zip(rows, images, strict=True) if not _decodes([image])]

    chunks = np.split(np.arange(len(catalog)), range(_CHUNK, len(catalog), _CHUNK))
    found: list[int] = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress((), task, total=len(catalog), unit=" images") as bar,
    ):
        for rows, some in zip(chunks, pool.map(broken, chunks), strict=True):
            found += some
            bar.update(len(rows))
    return np.array(found, np.int64)


def _decodes(images: np.ndarray | list[bytes]) -> bool:
    try:
        _decode_all(tf.constant(images, tf.string))
    except tf.errors.InvalidArgumentError:
        return False
    return True
