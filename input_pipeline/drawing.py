"""Pictures of a pose: the skeleton over the image, and the part maps that training uses."""

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from input_pipeline import keypoints as kp
from pgfl_jax.report.painting import PART_COLORS


def scale_to_rows(
    image: UInt8[np.ndarray, "height width 3"], rows: int
) -> UInt8[np.ndarray, "{rows} columns 3"]:
    """Resize an image to a height of ``rows``, keeping its proportions."""
    size = (max(1, round(image.shape[1] * rows / image.shape[0])), rows)
    return cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)


def draw_skeleton(
    image: UInt8[np.ndarray, "height width 3"],
    joints: Float[np.ndarray, "17 3"],
    scale: float,
    threshold: float = 0.2,
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture with its pose: limbs in the colours of their parts, hidden joints as rings.

    Args:
        image: (h, w, 3) uint8, already enlarged by ``scale``.
        joints: (17, 3) keypoints of the picture before it was enlarged.
        scale: enlargement.
        threshold: joints with lower confidence count as hidden.

    Returns:
        A new (h, w, 3) uint8.
    """
    drawn = (image * 0.6).astype(np.uint8)
    at = np.rint(((joints[:, :2] + 0.5) * scale - 0.5) * 16).astype(int)
    seen = kp.shown_joints(joints, threshold)
    for part, start, end in kp.shown_limbs(joints, threshold):
        color = PART_COLORS[part].tolist()
        cv2.line(drawn, at[start].tolist(), at[end].tolist(), color, 2, cv2.LINE_AA, 4)
    for joint, point in enumerate(at.tolist()):
        if seen[joint]:
            cv2.circle(drawn, point, 40, (255, 255, 255), -1, cv2.LINE_AA, 4)
        elif joints[joint, 2] > 0:
            cv2.circle(drawn, point, 44, (255, 90, 90), 1, cv2.LINE_AA, 4)
    return drawn


def keypoint_maps(
    joints: Float[np.ndarray, "17 3"],
    image_shape: tuple[int, int],
    *,
    sigma: float = 0.035,
    threshold: float = 0.2,
) -> Float32[np.ndarray, "rows columns 8"]:
    """The part maps that training would use, at 4 pixels per cell.

    Args:
        joints: (17, 3) keypoints.
        image_shape: (height, width) of their image, pixels.
        sigma: width of spots and capsules, as a fraction of the image height.
        threshold: lowest confidence that is drawn.

    Returns:
        (height / 4, width / 4, 8) float32 in [0, 1].
    """
    # Imported late, because it imports TensorFlow, which the rendering processes do without.
    from input_pipeline.pose_maps import part_maps

    cells = max(1, image_shape[0] // 4), max(1, image_shape[1] // 4)
    maps, _ = part_maps(
        joints[None], image_shape=image_shape, map_shape=cells, sigma=sigma, threshold=threshold
    )
    return maps[0].numpy()
