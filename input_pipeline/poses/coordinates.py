"""Whether keypoints can be pixels of their images."""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.poses.target import CONFIDENT

_SMALL = 8  # in smaller images, pixels can be between -1 and 1
# From top to bottom on an upright person.
_LEVELS = (slice(0, 5), slice(11, 13), slice(15, 17))  # nose, eyes and ears; hips; ankles
_CLEARLY = 0.25  # of a pose's height; less is a stoop, a seat, or a joint that was guessed


def joints_outside(
    keypoints: Float[np.ndarray, "images 17 3"], sizes: Int[np.ndarray, "images 2"]
) -> tuple[Bool[np.ndarray, "images 17"], Bool[np.ndarray, "images 17"]]:
    """Which joints have a confidence of at least 0.2, and which of these are outside the image.

    Args:
        keypoints: (N, 17, 3) x, y in pixels, confidence.
        sizes: (N, 2) height, width of the images in pixels.

    >>> pose = np.array([[[70.0, 20.0, 1.0]] * 17])
    >>> [joints.all() for joints in joints_outside(pose, np.array([[128, 64]]))]
    [np.True_, np.True_]
    """
    position, confident = keypoints[..., :2], keypoints[..., 2] >= CONFIDENT
    inside = np.logical_and(position >= -0.5, position <= sizes[:, None, ::-1] - 0.5)
    return confident, confident & ~inside.all(axis=-1)


def are_fractions(
    keypoints: Float[np.ndarray, "images 17 3"], sizes: Int[np.ndarray, "images 2"]
) -> Bool[np.ndarray, " images"]:
    """Which images have all their confident joints between -1 and 1, and are larger than 8 pixels.

    Args:
        keypoints: (N, 17, 3) x, y, confidence.
        sizes: (N, 2) height, width of the images in pixels.

    >>> pose = np.array([[[0.5, 0.25, 1.0]] * 17])
    >>> are_fractions(pose, np.array([[128, 64]])), are_fractions(pose, np.array([[4, 2]]))
    (array([ True]), array([False]))
    """
    confident = keypoints[..., 2] >= CONFIDENT
    small = (np.abs(keypoints[..., :2]) <= 1).all(axis=-1)
    return confident.any(axis=1) & (small | ~confident).all(axis=1) & (sizes > _SMALL).all(axis=1)


def out_of_order(
    keypoints: Float[np.ndarray, "images 17 3"],
) -> tuple[Bool[np.ndarray, " images"], Bool[np.ndarray, " images"]]:
    """Which poses show whether head, hips and ankles follow from top to bottom; which deny it.

    A pose shows it if two of the three have confident joints. It denies it if a joint of one is
    below a joint of a later one by more than a quarter of the pose's height.

    >>> pose = np.full((1, 17, 3), 1.0)
    >>> pose[0, :, 1] = [10, 8, 8, 9, 9, 25, 25, 40, 40, 50, 50, 52, 52, 72, 72, 95, 95]
    >>> [out_of_order(given)[1].item() for given in (pose, pose[:, ::-1])]
    [False, True]
    """
    confident = keypoints[..., 2] >= CONFIDENT
    lowest, highest = (
        np.where(confident, keypoints[..., 1], outside) for outside in (-np.inf, np.inf)
    )
    height = lowest.max(axis=1) - highest.min(axis=1)
    shown = np.zeros(len(keypoints), bool)
    denied = np.zeros(len(keypoints), bool)
    for upper, lower in itertools.combinations(_LEVELS, 2):
        shown |= confident[:, upper].any(axis=1) & confident[:, lower].any(axis=1)
        below = lowest[:, upper].max(axis=1) - highest[:, lower].min(axis=1)
        denied |= below > _CLEARLY * height  # -inf where there is nothing to compare
    return shown, denied


def reach(
    keypoints: Float[np.ndarray, "images 17 3"], sizes: Int[np.ndarray, "images 2"]
) -> Float[np.ndarray, "2"]:
    """How far the confident joints of all images spread: the 99th percentiles of x / W and y / H.

    Args:
        keypoints: (N, 17, 3) x, y in pixels, confidence; at least one of them is confident.
        sizes: (N, 2) height, width of the images in pixels, above 0.

    >>> pose = np.array([[[31.5, 31.5, 1.0]] * 17])
    >>> reach(pose, np.array([[128, 64]])).tolist()
    [0.5, 0.25]
    """
    shares = (keypoints[..., :2] + 0.5) / sizes[:, None, ::-1]
    return np.percentile(shares[keypoints[..., 2] >= CONFIDENT], 99, axis=0)
