"""Pictures of a pose: the skeleton over the image, and the part maps that training uses."""

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from input_pipeline import keypoints as kp

# One colour (red, green, blue) for each of ``keypoints.PARTS``.
_PART_COLORS = np.array(
    [
        (240, 200, 60),
        (220, 70, 70),
        (70, 160, 240),
        (40, 90, 200),
        (110, 210, 110),
        (30, 140, 70),
        (220, 120, 230),
        (150, 60, 170),
    ]
)


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
        color = _PART_COLORS[part].tolist()
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


def draw_part_maps(
    image: UInt8[np.ndarray, "height width 3"], maps: Float[np.ndarray, "rows columns 8"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Part maps in their colours over a grey picture.

    Args:
        image: (h, w, 3) uint8.
        maps: (rows, columns, 8) in [0, 1], over the whole picture.

    Returns:
        A new (h, w, 3) uint8.
    """
    strongest = maps.max(axis=2, keepdims=True)
    color = _PART_COLORS[maps.argmax(axis=2)] * strongest
    size = image.shape[1], image.shape[0]
    color, strongest = cv2.resize(color, size), cv2.resize(strongest, size)[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.5
    return np.clip(grey * (1 - 0.8 * strongest) + 0.8 * color, 0, 255).astype(np.uint8)
