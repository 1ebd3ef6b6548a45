"""Apply a batch's geometry to its images and external part maps, in TensorFlow operations."""

import functools

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Float32, Int32, Shaped, UInt8

from input_pipeline.keypoints import PART_FLIP


def decode(encoded: Shaped[tf.Tensor, ""]) -> UInt8[tf.Tensor, "height width 3"]:
    """Decode a JPEG or PNG image from a scalar string."""
    # Despite its name, it reads PNG, too. INTEGER_ACCURATE agrees with OpenCV and PIL.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def place(
    image: UInt8[tf.Tensor, "height width 3"],
    flip: Bool[tf.Tensor, ""],
    corner: Int32[tf.Tensor, "2"],
    pad: int,
    shape: tuple[int, int],
) -> UInt8[tf.Tensor, "target_height target_width 3"]:
    """Flip and resize an image, pad it with black, and crop it.

    Args:
        image: (height, width, 3) uint8, any size.
        flip: () bool, whether to mirror left and right.
        corner: (2,) int32 row and column of the crop in the padded image.
        pad: pixels on each side.
        shape: (H, W).

    Returns:
        (H, W, 3) uint8.
    """
    # Mirrored before it grows, which is cheaper: resizing is symmetric.
    image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
    image = resize(image, *shape)
    if pad == 0:
        return image
    # As rows of width × 3 numbers: padding three dimensions costs several times as much.
    height, width = shape
    rows = tf.pad(tf.reshape(image, (height, 3 * width)), ((pad, pad), (3 * pad, 3 * pad)))
    cut = tf.slice(rows, (corner[0], 3 * corner[1]), (height, 3 * width))
    return tf.reshape(cut, (height, width, 3))


def resize(
    image: UInt8[tf.Tensor, "height width 3"], height: int, width: int
) -> UInt8[tf.Tensor, "target_height target_width 3"]:
    """Resize bilinearly, with a wider filter when shrinking."""
    shape, target = tf.shape(image)[:2], tf.constant([height, width])

    def resized() -> tf.Tensor:
        # Floats are resized twice as fast as integers; adding a half makes the cast below round.
        values = tf.cast(image, tf.float32) + 0.5
        # When nothing shrinks, the wider filter changes nothing and is slow.
        smooth = tf.cond(
            tf.reduce_any(shape > target),
            lambda: tf.image.resize(values, (height, width), antialias=True),
            lambda: tf.image.resize(values, (height, width)),
        )
        return tf.cast(smooth, tf.uint8)  # truncates: values are in [0.5, 255.5]

    image = tf.cond(tf.reduce_all(shape == target), lambda: image, resized)
    return tf.ensure_shape(image, (height, width, 3))


def inside(
    rectangles: Int32[tf.Tensor, "batch 4"], grid: tuple[int, int], image_shape: tuple[int, int]
) -> Bool[tf.Tensor, "batch rows columns"]:
    """Which cells of a grid over the image have their centre in a rectangle.

    Args:
        rectangles: (B, 4) int32 top, left, bottom, right in pixels.
        grid: (h, w).
        image_shape: (H, W) pixels.

    Returns:
        (B, h, w) bool.
    """
    rectangles = tf.cast(rectangles, tf.float32)
    lines = []
    for axis in (0, 1):
        centres = (np.arange(grid[axis], dtype=np.float32) + 0.5) * image_shape[axis] / grid[axis]
        start, stop = rectangles[:, axis, None], rectangles[:, axis + 2, None]
        lines.append((centres >= start) & (centres < stop))
    return lines[0][:, :, None] & lines[1][:, None, :]


def window(
    corner: Int32[tf.Tensor, "batch 2"], pad: int, image_shape: tuple[int, int]
) -> Int32[tf.Tensor, "batch 4"]:
    """Where the stored images are in the network's input, after padding and cropping.

    Args:
        corner: (B, 2) row and column at which the input is cut out of the padded image.
        pad: pixels of padding on each side.
        image_shape: (H, W) of the input.

    Returns:
        (B, 4) int32 top, left, bottom, right in pixels.
    """
    shift = pad - corner
    return tf.concat([tf.maximum(shift, 0), tf.minimum(shift, 0) + image_shape], axis=1)


@functools.partial(tf.function, jit_compile=True, autograph=False)
def move_maps(
    maps: Float32[tf.Tensor, "batch stored_rows stored_columns 8"],
    geometry: dict[str, tf.Tensor],
    pad: int,
    image_shape: tuple[int, int],
    map_shape: tuple[int, int],
) -> Float32[tf.Tensor, "batch rows columns 8"]:
    """Move part maps with their pixels, onto a new grid; bilinear, 0 beyond the stored image.

    This works image by image, so that the bits do not depend on the size of the batch.

    Args:
        maps: (B, h', w', 8) float32 over the stored images.
        geometry: ``flip``, ``corner`` and ``rectangle`` of the batch.
        pad: pixels of padding on each side before the crop.
        image_shape: (H, W) of the network's input.
        map_shape: (h, w).

    Returns:
        (B, h, w, 8), sampled at the cells' centres; 0 in the erased rectangles.
    """

    def move_one(image: tuple[tf.Tensor, ...]) -> tf.Tensor:
        one, flip, corner = image
        one = tf.where(flip, tf.gather(tf.reverse(one, [1]), PART_FLIP, axis=2), one)
        shift = tf.cast(pad - corner, tf.float32) / np.array(image_shape, np.float32)
        rows = _interpolation(map_shape[0], maps.shape[1], shift[0])
        columns = _interpolation(map_shape[1], maps.shape[2], shift[1])
        return tf.einsum("ri,ijp,cj->rcp", rows, one, columns)

    images = maps, geometry["flip"], geometry["corner"]
    moved = tf.map_fn(move_one, images, fn_output_signature=tf.float32)
    erased = inside(geometry["rectangle"], map_shape, image_shape)
    return tf.where(erased[..., None], 0.0, moved)


def _interpolation(
    target: int, source: int, shift: Float32[tf.Tensor, ""]
) -> Float32[tf.Tensor, "{target} {source}"]:
    """Weights that sample a line of cells at the centres of other cells.

    Args:
        target: cells to sample at.
        source: cells to sample from.
        shift: how far the content moves, as a fraction of the line.
    """
    centre = (np.arange(target, dtype=np.float32) + 0.5) / target - shift
    within = (centre >= 0) & (centre < 1)
    position = tf.clip_by_value(centre * source - 0.5, 0.0, source - 1.0)
    distance = tf.abs(position[:, None] - np.arange(source, dtype=np.float32))
    return tf.where(within[:, None], tf.maximum(1 - distance, 0.0), 0.0)
