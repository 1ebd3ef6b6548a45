"""Decode and augment one image together with its keypoints, in TensorFlow operations.

Coordinates: pixel centres lie at integers, so an image covers [-0.5, W - 0.5) x [-0.5, H - 0.5).
Every random choice comes from one stateless seed per image.
"""

import numpy as np
import tensorflow as tf

from input_pipeline.keypoints import FLIP
from pgfl_jax.config import AugmentConfig, DataConfig

# Rectangles proposed per erasing; the first that fits is taken. With the usual ranges one in twenty
# does not fit a 2:1 image, so that eight in a row practically never fail.
_ERASING_ATTEMPTS = 8
_NUM_DRAWS = 1 + 2 + 3 + 2 * _ERASING_ATTEMPTS  # flip, crop, erasing


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG or PNG image (scalar string) to (height, width, 3) uint8."""
    # Despite its name, PNG too. The accurate transform gives what OpenCV and PIL give.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def prepare(
    image: tf.Tensor, keypoints: tf.Tensor, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """What an image goes through for evaluation: resize and normalise, nothing random.

    Args:
        image: (height, width, 3) uint8, any size.
        keypoints: (17, 3) float32 x, y in the image's pixels and confidence.
        config: the data options.

    Returns:
        Image (H, W, 3) float32, normalised, and keypoints (17, 3) in its pixels; joints outside
        it have confidence 0.
    """
    image, keypoints = resize(image, keypoints, config.height, config.width)
    return normalise(image, config), hide_outside(keypoints, config)


def augment(
    image: tf.Tensor, keypoints: tf.Tensor, seed: tf.Tensor, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """What an image goes through for training.

    Resize, flip, pad with black and crop, normalise, erase a rectangle; the keypoints follow.

    Args:
        image: (height, width, 3) uint8, any size.
        keypoints: (17, 3) float32 x, y in the image's pixels and confidence.
        seed: (2,) integers; the result is a pure function of the arguments.
        config: the data options.

    Returns:
        Image (H, W, 3) float32, normalised, and keypoints (17, 3) in its pixels; joints outside
        it or under the erased rectangle have confidence 0.
    """
    draws = tf.random.stateless_uniform([_NUM_DRAWS], seed)
    image, keypoints = resize(image, keypoints, config.height, config.width)
    image, keypoints = random_flip(image, keypoints, draws[0], config.augment.flip)
    image, keypoints = random_crop(image, keypoints, draws[1:3], config.augment.pad)
    image, keypoints = normalise(image, config), hide_outside(keypoints, config)
    return random_erasing(image, keypoints, draws[3:], config.augment)


def resize(
    image: tf.Tensor, keypoints: tf.Tensor, height: int, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
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
    position = (keypoints[:, :2] + 0.5) * scale - 0.5
    return (
        tf.ensure_shape(image, (height, width, 3)),
        tf.concat([position, keypoints[:, 2:]], axis=1),
    )


def random_flip(
    image: tf.Tensor, keypoints: tf.Tensor, draw: tf.Tensor, probability: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror left and right, and swap the names of left and right joints, if draw < probability."""
    last = float(image.shape[1] - 1)

    def flipped() -> tuple[tf.Tensor, tf.Tensor]:
        swapped = tf.gather(keypoints, FLIP)
        return tf.reverse(image, [1]), tf.concat([last - swapped[:, :1], swapped[:, 1:]], axis=1)

    return tf.cond(draw < probability, flipped, lambda: (image, keypoints))


def random_crop(
    image: tf.Tensor, keypoints: tf.Tensor, draws: tf.Tensor, pad: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pad every side with ``pad`` pixels of zeros and cut the original size out at random.

    Args:
        image: (H, W, 3).
        keypoints: (17, 3).
        draws: (2,) uniform in [0, 1): top and left.
        pad: pixels.

    Returns:
        Image (H, W, 3) and the moved keypoints.
    """
    if pad == 0:
        return image, keypoints
    padded = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corner = tf.cast(draws * (2 * pad + 1), tf.int32)
    image = tf.ensure_shape(tf.slice(padded, (corner[0], corner[1], 0), image.shape), image.shape)
    shift = tf.cast(pad - corner, tf.float32)[::-1]
    return image, tf.concat([keypoints[:, :2] + shift, keypoints[:, 2:]], axis=1)


def random_erasing(
    image: tf.Tensor, keypoints: tf.Tensor, draws: tf.Tensor, config: AugmentConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Set a random rectangle to 0, the mean of the data, and hide the joints under it.

    The area is uniform in ``erasing_area``, height / width uniform in [a, 1/a] with a =
    ``erasing_aspect``. The first of eight proposals that fits is taken; if none does, the
    first is cut to the image.

    Args:
        image: (H, W, 3) float32, normalised.
        keypoints: (17, 3) float32.
        draws: uniform in [0, 1): whether, top, left, then (area, aspect) of every proposal.
        config: probability and ranges.

    Returns:
        Image and keypoints after erasing.
    """
    if config.erasing == 0:
        return image, keypoints
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
    position = keypoints[:, 1::-1] + 0.5  # y, x as the rectangle has them
    inside = (position >= tf.cast(corner, tf.float32)) & (position < tf.cast(end, tf.float32))
    return image, _hide(keypoints, tf.reduce_all(inside, axis=1))


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


def hide_outside(keypoints: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Set the confidence of joints outside the image to 0."""
    position = keypoints[:, :2]
    limits = tf.constant([config.width - 0.5, config.height - 0.5])
    return _hide(keypoints, tf.reduce_any((position < -0.5) | (position >= limits), axis=1))


def _hide(keypoints: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
    """Set the confidence of the joints where ``hidden`` (17,) to 0."""
    confidence = tf.where(hidden, 0.0, keypoints[:, 2])
    return tf.concat([keypoints[:, :2], confidence[:, None]], axis=1)
