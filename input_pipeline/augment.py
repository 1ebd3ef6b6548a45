"""Decode and augment one image together with its pose, in TensorFlow operations.

Coordinates: pixel centres lie at integers, so an image covers [-0.5, W - 0.5) x [-0.5, H - 0.5).
Every random choice comes from one stateless seed per image.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from input_pipeline.keypoints import FLIP, PART_FLIP
from pgfl_jax.config import AugmentConfig, DataConfig

# Rectangles proposed per erasing; the first that fits is taken. With the usual ranges one in twenty
# does not fit a 2:1 image, so that eight in a row practically never fail.
_ERASING_ATTEMPTS = 8
_NUM_DRAWS = 1 + 2 + 3 + 2 * _ERASING_ATTEMPTS  # flip, crop, erasing


class Pose(NamedTuple):
    """What stays on its pixels while an image is changed.

    Attributes:
        keypoints: (17, 3) float32 x, y in the image's pixels and confidence.
        part_maps: (h, w, 8) float32 part maps made by others, which cover the image, or None.
    """

    keypoints: tf.Tensor
    part_maps: tf.Tensor | None = None


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG or PNG image (scalar string) to (height, width, 3) uint8."""
    # Despite its name, PNG too. The accurate transform gives what OpenCV and PIL give.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def prepare(
    image: tf.Tensor, pose: Pose, config: DataConfig, map_shape: tuple[int, int]
) -> tuple[tf.Tensor, Pose]:
    """What an image goes through for evaluation: resize and normalise, nothing random.

    Args:
        image: (height, width, 3) uint8, any size.
        pose: of the image.
        config: the data options.
        map_shape: (h, w) of the network's feature map.

    Returns:
        Image (H, W, 3) float32, normalised, and the pose in its pixels, with part maps of
        ``map_shape``; joints outside the image have confidence 0.
    """
    image, pose = resize(image, pose, config.height, config.width)
    image, pose = random_crop(image, pose, tf.zeros(2), 0, map_shape)
    return normalise(image, config), hide_outside(pose, config)


def augment(
    image: tf.Tensor,
    pose: Pose,
    seed: tf.Tensor,
    config: DataConfig,
    map_shape: tuple[int, int],
) -> tuple[tf.Tensor, Pose]:
    """What an image goes through for training.

    Resize, flip, pad with black and crop, normalise, erase a rectangle; the pose follows.

    Args:
        image: (height, width, 3) uint8, any size.
        pose: of the image.
        seed: (2,) integers; the result is a pure function of the arguments.
        config: the data options.
        map_shape: (h, w) of the network's feature map.

    Returns:
        Image (H, W, 3) float32, normalised, and the pose in its pixels, with part maps of
        ``map_shape``; joints outside the image or under the erased rectangle have confidence 0,
        and part maps are 0 there.
    """
    draws = tf.random.stateless_uniform([_NUM_DRAWS], seed)
    image, pose = resize(image, pose, config.height, config.width)
    image, pose = random_flip(image, pose, draws[0], config.augment.flip)
    image, pose = random_crop(image, pose, draws[1:3], config.augment.pad, map_shape)
    image, pose = normalise(image, config), hide_outside(pose, config)
    return random_erasing(image, pose, draws[3:], config.augment)


def resize(image: tf.Tensor, pose: Pose, height: int, width: int) -> tuple[tf.Tensor, Pose]:
    """Resize bilinearly, with a wider filter when shrinking; uint8 to uint8 (H, W, 3)."""
    shape = tf.shape(image)[:2]
    target = tf.constant([height, width])

    def resized() -> tf.Tensor:
        # Without shrinking the wider filter changes nothing and costs much.
        smooth = tf.cond(
            tf.reduce_any(shape > target),
            lambda: tf.image.resize(image, (height, width), antialias=True),
            lambda: tf.image.resize(image, (height, width)),
        )
        return tf.cast(smooth + 0.5, tf.uint8)  # rounds: values lie in [0, 255]

    image = tf.cond(tf.reduce_all(shape == target), lambda: image, resized)
    scale = tf.cast(target / shape, tf.float32)[::-1]
    position = (pose.keypoints[:, :2] + 0.5) * scale - 0.5
    keypoints = tf.concat([position, pose.keypoints[:, 2:]], axis=1)
    return tf.ensure_shape(image, (height, width, 3)), pose._replace(keypoints=keypoints)


def random_flip(
    image: tf.Tensor, pose: Pose, draw: tf.Tensor, probability: float
) -> tuple[tf.Tensor, Pose]:
    """Mirror left and right, and swap the names of left and right joints, if draw < probability."""
    last = float(image.shape[1] - 1)

    def flipped() -> tuple[tf.Tensor, Pose]:
        swapped, maps = tf.gather(pose.keypoints, FLIP), pose.part_maps
        keypoints = tf.concat([last - swapped[:, :1], swapped[:, 1:]], axis=1)
        maps = None if maps is None else tf.gather(tf.reverse(maps, [1]), PART_FLIP, axis=2)
        return tf.reverse(image, [1]), Pose(keypoints, maps)

    return tf.cond(draw < probability, flipped, lambda: (image, pose))


def random_crop(
    image: tf.Tensor, pose: Pose, draws: tf.Tensor, pad: int, map_shape: tuple[int, int]
) -> tuple[tf.Tensor, Pose]:
    """Pad every side with ``pad`` pixels of zeros and cut the original size out at random.

    Args:
        image: (H, W, 3).
        pose: of the image; its part maps may have any grid.
        draws: (2,) uniform in [0, 1): top and left.
        pad: pixels.
        map_shape: grid of the part maps that come out, (h, w).

    Returns:
        Image (H, W, 3) and the moved pose.
    """
    corner = tf.cast(draws * (2 * pad + 1), tf.int32)
    shift = tf.cast(pad - corner, tf.float32)
    maps = pose.part_maps
    if maps is not None:
        maps = move_maps(maps, shift / np.float32(image.shape[:2]), map_shape)
    if pad:
        padded = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        cut = tf.slice(padded, (corner[0], corner[1], 0), image.shape)
        image = tf.ensure_shape(cut, image.shape)
    position = pose.keypoints[:, :2] + shift[::-1]
    return image, Pose(tf.concat([position, pose.keypoints[:, 2:]], axis=1), maps)


def move_maps(maps: tf.Tensor, shift: tf.Tensor, map_shape: tuple[int, int]) -> tf.Tensor:
    """Part maps of an image whose content moves, on another grid; bilinear, and 0 from outside.

    Args:
        maps: (h', w', 8) over the image.
        shift: (2,) how far the content moves down and right, as fractions of the image's size.
        map_shape: (h, w).

    Returns:
        (h, w, 8), sampled at the cells' centres.
    """
    rows = _interpolation(map_shape[0], maps.shape[0], shift[0])
    columns = _interpolation(map_shape[1], maps.shape[1], shift[1])
    return tf.einsum("ri,ijp,cj->rcp", rows, maps, columns)


def _interpolation(target: int, source: int, shift: tf.Tensor) -> tf.Tensor:
    """(target, source) weights that sample a line of ``source`` cells at ``target`` centres."""
    centre = (tf.range(target, dtype=tf.float32) + 0.5) / target - shift
    inside = (centre >= 0) & (centre < 1)
    position = tf.clip_by_value(centre * source - 0.5, 0.0, source - 1.0)
    distance = tf.abs(position[:, None] - tf.range(source, dtype=tf.float32))
    return tf.where(inside[:, None], tf.maximum(1 - distance, 0.0), 0.0)


def random_erasing(
    image: tf.Tensor, pose: Pose, draws: tf.Tensor, config: AugmentConfig
) -> tuple[tf.Tensor, Pose]:
    """Set a random rectangle to 0, the mean of the data, and hide the joints under it.

    The area is uniform in ``erasing_area``, height / width uniform in [a, 1/a] with a =
    ``erasing_aspect``. The first of eight proposals that fits is taken; if none does, the
    first is cut to the image.

    Args:
        image: (H, W, 3) float32, normalised.
        pose: of the image.
        draws: uniform in [0, 1): whether, top, left, then (area, aspect) of every proposal.
        config: probability and ranges.

    Returns:
        Image and pose after erasing.
    """
    if config.erasing == 0:
        return image, pose
    limits = tf.constant(image.shape[:2].as_list())
    size = _rectangle_size(tf.reshape(draws[3:], (-1, 2)), limits, config)
    size = tf.where(draws[0] < config.erasing, size, 0)
    corner = tf.cast(draws[1:3] * tf.cast(limits - size + 1, tf.float32), tf.int32)
    end = corner + size
    rows, columns = tf.range(image.shape[0]), tf.range(image.shape[1])
    in_rows = (rows >= corner[0]) & (rows < end[0])
    in_columns = tf.repeat((columns >= corner[1]) & (columns < end[1]), image.shape[2])
    kept = tf.where(in_rows[:, None] & in_columns[None, :], 0.0, _as_rows(image))
    image = tf.reshape(kept, image.shape)
    start, stop = tf.cast(corner, tf.float32), tf.cast(end, tf.float32)
    position = pose.keypoints[:, 1::-1] + 0.5  # y, x as the rectangle has them
    hidden = tf.reduce_all((position >= start) & (position < stop), axis=1)
    maps = None if pose.part_maps is None else _erase_maps(pose.part_maps, start, stop, limits)
    return image, Pose(_hide(pose.keypoints, hidden), maps)


def _erase_maps(maps: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Set the cells whose centres lie in the rectangle to 0.

    Args:
        maps: (h, w, 8).
        start: (2,) top, left of the rectangle in pixels.
        stop: (2,) its end.
        limits: (2,) the image's height and width.
    """
    inside = []
    for axis in (0, 1):
        centre = (np.arange(maps.shape[axis], dtype=np.float32) + 0.5) / maps.shape[axis]
        centre *= tf.cast(limits[axis], tf.float32)
        inside.append((centre >= start[axis]) & (centre < stop[axis]))
    return tf.where((inside[0][:, None] & inside[1][None, :])[..., None], 0.0, maps)


def _rectangle_size(draws: tf.Tensor, limits: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """Height and width (2,) int32 of the first proposal in ``draws`` (A, 2) within ``limits``."""
    smallest, largest = config.erasing_area
    total = tf.cast(tf.reduce_prod(limits), tf.float32)
    area = total * (smallest + (largest - smallest) * draws[:, 0])
    aspect = (
        config.erasing_aspect + (1 / config.erasing_aspect - config.erasing_aspect) * draws[:, 1]
    )
    sizes = tf.cast(tf.round(tf.sqrt(tf.stack([area * aspect, area / aspect], axis=1))), tf.int32)
    fits = tf.reduce_all(sizes <= limits, axis=1)
    return tf.minimum(sizes[tf.argmax(fits)], limits)  # argmax: the first that fits, else the first


def normalise(image: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """(x / 255 - mean) / std per channel, as float32."""
    mean, std = np.array(config.mean), np.array(config.std)
    scale = np.tile(1 / (255 * std), image.shape[1]).astype(np.float32)
    offset = np.tile(-mean / std, image.shape[1]).astype(np.float32)
    return tf.reshape(tf.cast(_as_rows(image), tf.float32) * scale + offset, image.shape)


def _as_rows(image: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) to (H, W · 3): broadcasting along three channels costs four times as much."""
    return tf.reshape(image, (image.shape[0], -1))


def hide_outside(pose: Pose, config: DataConfig) -> Pose:
    """Set the confidence of joints outside the image to 0."""
    position = pose.keypoints[:, :2]
    limits = tf.constant([config.width - 0.5, config.height - 0.5])
    outside = tf.reduce_any((position < -0.5) | (position >= limits), axis=1)
    return pose._replace(keypoints=_hide(pose.keypoints, outside))


def _hide(keypoints: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
    """Set the confidence of the joints where ``hidden`` (17,) to 0."""
    confidence = tf.where(hidden, 0.0, keypoints[:, 2])
    return tf.concat([keypoints[:, :2], confidence[:, None]], axis=1)
