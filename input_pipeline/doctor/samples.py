"""A few images of a split with their poses, for the page."""

import cv2
import numpy as np
import tensorflow as tf

from input_pipeline import augment, drawing
from input_pipeline.catalog import Catalog
from input_pipeline.doctor.survey import Split
from pgfl_jax.config import PoseConfig

_SIDE = 192  # each picture fits into a square of so many pixels
_GAP, _GREY = 4, 128


def choose_samples(split: Split, count: int = 12) -> list[int]:
    """Rows of readable images, spread over the identities and over their cameras.

    Args:
        split: the split.
        count: how many, at most.

    Returns:
        Rows in the order of their identities; a function of the split alone.
    """
    catalog = split.catalog
    readable = np.ones(len(catalog), bool)
    readable[split.unreadable] = False
    identities = np.unique(catalog.identities[readable])
    total = len(identities)
    if not total:
        return []
    chosen = []
    for turn in range(count):
        position = turn * total // count if total >= count else turn % total
        members = np.flatnonzero(readable & (catalog.identities == identities[position]))
        members = members[_cameras_in_turn(catalog.cameras[members])]
        chosen.append((position, int(members[(turn % total + turn // total) % len(members)])))
    return [row for _, row in sorted(set(chosen))]


def _cameras_in_turn(cameras: np.ndarray) -> np.ndarray:
    """(M,) order: the first image of every camera, then the second of each."""
    order = np.argsort(cameras, kind="stable")
    rank = np.empty(len(cameras), np.int64)
    rank[order] = np.arange(len(cameras)) - np.searchsorted(cameras[order], cameras[order])
    return np.lexsort((cameras, rank))


def draw_sample(catalog: Catalog, row: int, pose: PoseConfig) -> bytes:
    """Image, skeleton and part maps side by side, as JPEG.

    Args:
        catalog: the split.
        row: which image; it can be decoded.
        pose: how the part maps are drawn.
    """
    # As training decodes it: OpenCV would turn an image that says so, and the pose would not fit.
    image = augment.decode(tf.constant(catalog.images[row])).numpy()
    height, width = image.shape[:2]
    image = drawing.scale_to_rows(image, max(1, min(_SIDE, round(_SIDE * height / width))))
    scale = np.array(image.shape[1::-1]) / (width, height)
    joints = catalog.keypoints[row].copy()
    joints[:, :2] = (joints[:, :2] + 0.5) * scale.astype(np.float32) - 0.5
    # A joint far outside would overflow the coordinates that OpenCV draws with.
    joints[:, :2] = joints[:, :2].clip(-10 * _SIDE, 10 * _SIDE)
    given = None if catalog.part_maps is None else catalog.part_maps[row]
    if given is not None and given.any():
        maps = given.astype(np.float32) / 255
    else:
        shape = image.shape[0], image.shape[1]
        maps = drawing.keypoint_maps(joints, shape, sigma=pose.sigma, threshold=pose.threshold)
    gap = np.full((len(image), _GAP, 3), _GREY, np.uint8)
    skeleton = drawing.draw_skeleton(image, joints, 1.0, pose.threshold)
    panels = np.hstack([image, gap, skeleton, gap, drawing.draw_part_maps(image, maps)])
    return cv2.imencode(".jpg", panels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 82))[1].tobytes()
