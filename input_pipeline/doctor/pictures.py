"""Pictures for the page, as JPEG."""

import cv2
import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from input_pipeline import augment, drawing
from input_pipeline.catalog import Catalog
from pgfl_jax.config import PoseConfig
from pgfl_jax.report.painting import paint_parts

_SIDE = 192  # each picture fits into a square of this many pixels
_GAP, _GREY = 4, 128


def draw_picture(catalog: Catalog, row: int) -> bytes:
    """An image that can be decoded, as JPEG of the page's size."""
    return _encode(_scaled(catalog, row))


def draw_sample(catalog: Catalog, row: int, pose: PoseConfig) -> bytes:
    """Image, skeleton and part maps side by side, as JPEG; only those that there are.

    Args:
        catalog: the split.
        row: an image that can be decoded.
        pose: how to draw the part maps.
    """
    image = _scaled(catalog, row)
    panels, joints = [image], catalog.keypoints[row].copy()
    given = None if catalog.part_maps is None else catalog.part_maps[row]
    scale = np.array(image.shape[:2]) / catalog.image_sizes[row]
    joints[:, :2] = (joints[:, :2] + 0.5) * scale[::-1].astype(np.float32) - 0.5
    # A joint far outside would overflow OpenCV's coordinates.
    joints[:, :2] = joints[:, :2].clip(-10 * _SIDE, 10 * _SIDE)
    if joints[:, 2].any():
        panels.append(drawing.draw_skeleton(image, joints, 1.0, pose.threshold))
    if given is not None and given.any():
        panels.append(paint_parts(image, given.astype(np.float32) / 255))
    elif joints[:, 2].any():
        shape = image.shape[0], image.shape[1]
        maps = drawing.keypoint_maps(joints, shape, sigma=pose.sigma, threshold=pose.threshold)
        panels.append(paint_parts(image, maps))
    gap = np.full((len(image), _GAP, 3), _GREY, np.uint8)
    return _encode(np.hstack([part for panel in panels for part in (gap, panel)][1:]))


def _scaled(catalog: Catalog, row: int) -> UInt8[np.ndarray, "height width 3"]:
    """An image, fitted into the square."""
    # Decoded as in training: OpenCV would rotate an image by its EXIF, and the pose would not fit.
    image = augment.decode(tf.constant(catalog.images[row])).numpy()
    height, width = image.shape[:2]
    return drawing.scale_to_rows(image, max(1, min(_SIDE, round(_SIDE * height / width))))


def _encode(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 82))[1].tobytes()
