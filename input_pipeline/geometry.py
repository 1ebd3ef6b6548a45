"""Geometric augmentation: drawn for all images of a batch at once, applied to keypoints (NumPy).

Coordinates: pixel centres are integers, so an image covers [-0.5, W - 0.5) x [-0.5, H - 0.5).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from input_pipeline.keypoints import FLIP
from pgfl_jax.config import AugmentConfig, DataConfig

# Rectangles proposed per erasing; the first that fits is taken. With the usual ranges one in twenty
# does not fit a 2:1 image, so eight in a row practically never fail.
_ERASING_ATTEMPTS = 8
_NUM_DRAWS = 1 + 2 + 3 + 2 * _ERASING_ATTEMPTS  # flip, crop, erasing
_STREAM = 2  # of random numbers; the sampler draws from 0 and 1


class Geometry(NamedTuple):
    """The changes to B images, in this order, after they are resized to (H, W).

    Attributes:
        flip: (B,) bool, mirrored left and right.
        corner: (B, 2) int32 row and column at which (H, W) is cut out of the padded image.
        rectangle: (B, 4) int32 top, left, bottom, right of the erased area; empty if there is none.
    """

    flip: Bool[np.ndarray, " batch"]
    corner: Int32[np.ndarray, "batch 2"]
    rectangle: Int32[np.ndarray, "batch 4"]


def unchanged(count: int) -> Geometry:
    """The geometry of images for evaluation, which are neither padded nor changed.

    >>> unchanged(2).corner
    array([[0, 0],
           [0, 0]], dtype=int32)
    """
    return Geometry(
        np.zeros(count, bool), np.zeros((count, 2), np.int32), np.zeros((count, 4), np.int32)
    )


def draw(seed: int, step: int, config: DataConfig) -> Geometry:
    """The geometry of a training batch, a pure function of the arguments.

    Args:
        seed: non-negative.
        step: of the batch.
        config: the data options.

    Returns:
        The geometry of all rows of the batch, over all processes.
    """
    rng = np.random.default_rng([seed, step, _STREAM])
    draws = rng.random((config.batch_size, _NUM_DRAWS))
    options, shape = config.augment, np.array([config.height, config.width])
    return Geometry(
        flip=draws[:, 0] < options.flip,
        corner=(draws[:, 1:3] * (2 * options.pad + 1)).astype(np.int32),
        rectangle=_rectangles(draws[:, 3:], shape, options),
    )


def _rectangles(
    draws: Float[np.ndarray, "batch draws"], shape: Int[np.ndarray, "2"], options: AugmentConfig
) -> Int32[np.ndarray, "batch 4"]:
    """Rectangles to erase, each with the probability ``options.erasing``.

    The area is uniform in ``erasing_area``, height / width uniform in [a, 1/a] with a =
    ``erasing_aspect``. The first proposal that fits is taken; if none does, the first proposal is
    cut to the image.

    Args:
        draws: (B, 3 + 2·A) uniform in [0, 1): whether to erase, top, left, then (area, aspect) of
            every proposal.
        shape: (2,) height and width of the image.
        options: probability and ranges.

    Returns:
        (B, 4) int32 top, left, bottom, right.
    """
    proposals = draws[:, 3:].reshape(len(draws), -1, 2)
    smallest, largest = options.erasing_area
    area = shape.prod() * (smallest + (largest - smallest) * proposals[..., 0])
    lowest = options.erasing_aspect
    aspect = lowest + (1 / lowest - lowest) * proposals[..., 1]
    sizes = np.sqrt(np.stack([area * aspect, area / aspect], axis=-1)).round().astype(np.int32)
    fits = (sizes <= shape).all(axis=2)
    first = fits.argmax(axis=1)  # the first that fits, else the first
    size = np.minimum(sizes[np.arange(len(draws)), first], shape)
    size *= draws[:, :1] < options.erasing
    corner = (draws[:, 1:3] * (shape - size + 1)).astype(np.int32)
    return np.concatenate([corner, corner + size], axis=1).astype(np.int32)


def move_keypoints(
    keypoints: Float32[np.ndarray, "batch 17 3"],
    sizes: Int[np.ndarray, "batch 2"],
    geometry: Geometry,
    pad: int,
    config: DataConfig,
) -> Float32[np.ndarray, "batch 17 3"]:
    """Move keypoints with their pixels.

    Args:
        keypoints: (B, 17, 3) float32 x, y in pixels of the stored images and confidence.
        sizes: (B, 2) height and width of the stored images.
        geometry: what happens to the images.
        pad: pixels of padding on each side before the crop.
        config: the data options.

    Returns:
        (B, 17, 3) float32 in pixels of the network's input. What lies outside it or under the
        erased rectangle keeps its confidence, since the limb that ends there may be seen.
    """
    limits = np.array([config.width, config.height])
    scale = limits / np.maximum(sizes[:, ::-1], 1)  # a broken image has size 0
    position = (keypoints[..., :2] + 0.5) * scale[:, None] - 0.5
    confidence = keypoints[..., 2]
    mirrored = position[:, FLIP] * [-1, 1] + [config.width - 1, 0]
    position = np.where(geometry.flip[:, None, None], mirrored, position)
    confidence = np.where(geometry.flip[:, None], confidence[:, FLIP], confidence)
    position += (pad - geometry.corner)[:, None, ::-1]
    return np.concatenate([position, confidence[..., None]], axis=2).astype(np.float32)
