"""Whether keypoints can be pixels of their images."""

import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.poses.target import CONFIDENT


def coordinate_fault(
    keypoints: Float[np.ndarray, "images 17 3"], sizes: Int[np.ndarray, "images 2"], remedy: str
) -> str:
    """Why most of the keypoints cannot be pixels of their images; empty if they can.

    Joints below a confidence of 0.2 do not count.

    Args:
        keypoints: (N, 17, 3) x, y, confidence.
        sizes: (N, 2) height, width of the images in pixels.
        remedy: what to do about keypoints outside their images.

    >>> pose = np.array([[[0.5, 0.25, 1.0]] * 17])
    >>> coordinate_fault(pose, np.array([[128, 64]]), "").partition(":")[0]
    'all keypoints lie between -1 and 1'
    """
    confident, outside = _outside(keypoints, sizes)
    if not confident.any():
        return ""
    if np.abs(keypoints[..., :2][confident]).max() <= 1 and np.median(sizes) > 8:
        return (
            "all keypoints lie between -1 and 1: they are fractions, or -1 for missing joints; "
            "they must be pixels (OpenPose: --keypoint_scale 0), with confidence 0 for missing "
            "joints"
        )
    share = outside.sum() / confident.sum()
    if share > 0.5:
        return f"{share:.0%} of the confident keypoints lie outside their images; {remedy}"
    return ""


def poses_outside(
    keypoints: Float[np.ndarray, "images 17 3"], sizes: Int[np.ndarray, "images 2"]
) -> Int[np.ndarray, " outside"]:
    """Indices of the images that have confident joints, all of them outside the image.

    Args:
        keypoints: (N, 17, 3) x, y, confidence.
        sizes: (N, 2) height, width of the images in pixels.
    """
    confident, outside = _outside(keypoints, sizes)
    return np.flatnonzero(confident.any(axis=1) & (outside == confident).all(axis=1))


def _outside(
    keypoints: np.ndarray, sizes: np.ndarray
) -> tuple[Bool[np.ndarray, "images 17"], Bool[np.ndarray, "images 17"]]:
    """Which joints are confident, and which of these are outside the image."""
    position, confident = keypoints[..., :2], keypoints[..., 2] >= CONFIDENT
    inside = np.logical_and(position >= -0.5, position <= sizes[:, None, ::-1] - 0.5)
    return confident, confident & ~inside.all(axis=-1)
