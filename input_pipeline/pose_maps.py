"""Keypoints to part maps and part visibilities, in TensorFlow operations.

One implementation runs inside tf.data after batching, and eagerly (``.numpy()``) for pictures.
Compiled, it takes a third of the time. It is compiled for one image, in a loop over the batch, so
that the bits do not depend on the size of the batch.
"""

import functools

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Float, Float32, Int32

from input_pipeline import augment
from input_pipeline import keypoints as kp

_SEGMENTS = np.array([segment for part in kp.PARTS for segment in part.segments])
_SEGMENTS_PER_PART = [len(part.segments) for part in kp.PARTS]
_FIRST, _SECOND = (
    np.array([kp.JOINTS.index(point[i]) for point in kp.DERIVED_POINTS.values()]) for i in (0, 1)
)
_FRACTION = np.array([[point[2]] for point in kp.DERIVED_POINTS.values()], np.float32)


@functools.partial(tf.function, jit_compile=True, autograph=False, reduce_retracing=True)
def part_maps(
    keypoints: Float[tf.Tensor, "batch 17 3"],
    window: Int32[tf.Tensor, "batch 4"] | None = None,
    erased: Int32[tf.Tensor, "batch 4"] | None = None,
    *,
    image_shape: tuple[int, int],
    map_shape: tuple[int, int],
    sigma: float,
    threshold: float,
) -> tuple[Float32[tf.Tensor, "batch rows columns 8"], Float32[tf.Tensor, "batch 8"]]:
    """Draw the eight body parts of every image.

    A part consists of spots at its joints and capsules along its limbs, cut off at the border of
    the picture. Its map is the maximum of ``weight · exp(-d² / 2s²)`` over them, with d the
    distance to the spot or segment and s = sigma · H; it is 0 in the erased cells. The weight is
    the joint's confidence, or the lower confidence of a limb's two ends; a weight below the
    threshold counts as 0, and so does that of a spot or segment that passes through no cell that
    is left.

    Args:
        keypoints: (B, 17, 3) x, y in pixels of the network's input and confidence in [0, 1];
            pixel centres are integers.
        window: (B, 4) int32 top, left, bottom, right of the picture within the network's input;
            None: all of the input.
        erased: (B, 4) int32, likewise, of the erased rectangle; None: nothing is erased.
        image_shape: (H, W) of the network's input, pixels.
        map_shape: (h, w) of the maps, cells.
        sigma: width of spots and capsules, as a fraction of H.
        threshold: lowest confidence that is drawn.

    Returns:
        Maps (B, h, w, 8) and visibilities (B, 8), float32 in [0, 1]. The visibility of a part is
        the highest weight of its spots and capsules.
    """
    count = tf.shape(keypoints)[0]
    if window is None:
        window = tf.tile([[0, 0, *image_shape]], [count, 1])
    if erased is None:
        erased = tf.zeros((count, 4), tf.int32)

    def draw_one(image: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        joints, window, erased = (values[None] for values in image)
        left = ~augment.inside(erased, map_shape, image_shape)
        maps, visibility = _draw(joints, window, left, image_shape, sigma, threshold)
        return maps[0], visibility[0]

    images = tf.cast(keypoints, tf.float32), window, erased
    return tf.map_fn(draw_one, images, fn_output_signature=(tf.float32, tf.float32))


def _draw(
    joints: tf.Tensor,
    window: tf.Tensor,
    left: Bool[tf.Tensor, "batch rows columns"],
    image_shape: tuple[int, int],
    sigma: float,
    threshold: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Maps and visibilities; ``left`` are the cells that are not erased."""
    points = _with_derived_points(joints)
    start = tf.gather(points, _SEGMENTS[:, 0], axis=1)
    end = tf.gather(points, _SEGMENTS[:, 1], axis=1)
    weight = tf.minimum(start[..., 2], end[..., 2])
    start, end, shown = _clip(start[..., :2], end[..., :2], window)
    map_shape = tuple(left.shape[1:])
    squared = _squared_distances(start, end, image_shape, map_shape)
    # No point of the picture is farther from the centre of its cell than a corner of the cell.
    corner = ((image_shape[0] / map_shape[0]) ** 2 + (image_shape[1] / map_shape[1]) ** 2) / 4
    nearby = (squared <= 1.001 * corner) & left[:, None]
    weight = tf.where(
        (weight >= threshold) & shown & tf.reduce_any(nearby, axis=(2, 3)), weight, 0.0
    )
    drawn = tf.exp(squared * (-0.5 / (sigma * image_shape[0]) ** 2)) * weight[..., None, None]
    drawn = tf.where(left[:, None], drawn, 0.0)
    return (
        tf.stack(_max_per_part(drawn), axis=-1),
        tf.stack(_max_per_part(weight), axis=-1),
    )


def _clip(
    start: Float32[tf.Tensor, "batch segments 2"],
    end: Float32[tf.Tensor, "batch segments 2"],
    window: Int32[tf.Tensor, "batch 4"],
) -> tuple[
    Float32[tf.Tensor, "batch segments 2"],
    Float32[tf.Tensor, "batch segments 2"],
    Bool[tf.Tensor, "batch segments"],
]:
    """The part of each segment inside a window, and whether there is any (Liang and Barsky, 1984).

    Args:
        start: (B, S, 2) x, y in pixels.
        end: (B, S, 2) x, y in pixels.
        window: (B, 4) top, left, bottom, right in pixels.
    """
    edges = tf.cast(window, tf.float32)[:, None] - 0.5
    direction = end - start
    # Along a line that is parallel to two edges, a point outside them stays outside at any time.
    steps = tf.where(tf.abs(direction) < 1e-6, 1e-6, direction)
    to_low = (tf.reverse(edges[..., :2], [-1]) - start) / steps
    to_high = (tf.reverse(edges[..., 2:], [-1]) - start) / steps
    enters = tf.reduce_max(tf.minimum(to_low, to_high), axis=-1)
    leaves = tf.reduce_min(tf.maximum(to_low, to_high), axis=-1)
    first, last = tf.clip_by_value(enters, 0.0, 1.0), tf.clip_by_value(leaves, 0.0, 1.0)
    inside = (enters <= leaves) & (enters <= 1) & (leaves >= 0)
    return start + first[..., None] * direction, start + last[..., None] * direction, inside


def join_given_maps(
    maps: Float32[tf.Tensor, "... rows columns 8"],
    visibility: Float32[tf.Tensor, "... 8"],
    given: Float32[tf.Tensor, "... rows columns 8"],
    *,
    threshold: float,
) -> tuple[Float32[tf.Tensor, "... rows columns 8"], Float32[tf.Tensor, "... 8"]]:
    """Add external part maps to the drawn ones; an image has one kind or the other.

    The types leave the batch size open, because while tracing TensorFlow knows it only for some.

    Args:
        maps: (B, h, w, 8) from :func:`part_maps`.
        visibility: (B, 8) from :func:`part_maps`.
        given: (B, h, w, 8) in [0, 1]; zeros for an image without external maps.
        threshold: a part whose given map stays below it does not count.

    Returns:
        Maps and visibilities; the visibility of a given part is the maximum of its map.
    """
    highest = tf.reduce_max(given, axis=(1, 2))
    seen = highest >= threshold
    given = tf.where(seen[:, None, None, :], given, 0.0)
    return tf.maximum(maps, given), tf.maximum(visibility, tf.where(seen, highest, 0.0))


def _with_derived_points(
    joints: Float32[tf.Tensor, "batch 17 3"],
) -> Float32[tf.Tensor, "batch 20 3"]:
    """Append ``DERIVED_POINTS`` to the joints."""
    first, second = tf.gather(joints, _FIRST, axis=1), tf.gather(joints, _SECOND, axis=1)
    position = first[..., :2] + _FRACTION * (second[..., :2] - first[..., :2])
    confidence = tf.minimum(first[..., 2:], second[..., 2:])
    return tf.concat([joints, tf.concat([position, confidence], axis=-1)], axis=1)


def _squared_distances(
    start: Float32[tf.Tensor, "batch segments 2"],
    end: Float32[tf.Tensor, "batch segments 2"],
    image_shape: tuple[int, int],
    map_shape: tuple[int, int],
) -> Float32[tf.Tensor, "batch segments rows columns"]:
    """Squared distance of every cell centre to every segment.

    Args:
        start: (B, S, 2) x, y in pixels.
        end: (B, S, 2) x, y in pixels.
        image_shape: (H, W) pixels.
        map_shape: (h, w) cells.

    Returns:
        (B, S, h, w) square pixels.
    """
    (height, width), (rows, columns) = image_shape, map_shape
    y = ((np.arange(rows, dtype=np.float32) + 0.5) * (height / rows) - 0.5)[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5) * (width / columns) - 0.5)[None, :]
    direction = end - start
    length = tf.maximum(tf.reduce_sum(direction**2, axis=-1, keepdims=True), 1e-12)
    # x and y stay separate for as long as possible: the full (B, S, h, w) is the costly part.
    from_x = x - start[..., 0, None, None]
    from_y = y - start[..., 1, None, None]
    along_x, along_y = direction[..., 0, None, None], direction[..., 1, None, None]
    scale = 1.0 / length[..., None]
    position = tf.clip_by_value(from_x * (along_x * scale) + from_y * (along_y * scale), 0.0, 1.0)
    return (from_x - position * along_x) ** 2 + (from_y - position * along_y) ** 2


def _max_per_part(values: tf.Tensor) -> list[tf.Tensor]:
    """Maximum over each part's segments (axis 1)."""
    return [tf.reduce_max(part, axis=1) for part in tf.split(values, _SEGMENTS_PER_PART, axis=1)]
