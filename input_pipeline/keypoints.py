"""COCO-17 keypoints and the eight body parts drawn from them (NumPy only)."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float32, Int

JOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
NUM_JOINTS = len(JOINTS)


def mirror_name(name: str) -> str:
    """The name of the same joint on the other side of the body; itself on the midline.

    >>> mirror_name("left_knee"), mirror_name("nose")
    ('right_knee', 'nose')
    """
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    return name.replace("right_", "left_")


# ``keypoints[FLIP]`` swaps the names left and right after mirroring.
FLIP: Int[np.ndarray, "17"] = np.array([JOINTS.index(mirror_name(name)) for name in JOINTS])

# Points that COCO lacks, each on the line through two joints: first + fraction · (second - first),
# with the lower of the two confidences. COCO ends at the ankle, so a foot is drawn as the shin
# extended by a quarter of its length. That reaches the sole of a standing person, wherever the toes
# point.
DERIVED_POINTS = {
    "neck": ("left_shoulder", "right_shoulder", 0.5),
    "left_sole": ("left_ankle", "left_knee", -0.25),
    "right_sole": ("right_ankle", "right_knee", -0.25),
}
POINTS = (*JOINTS, *DERIVED_POINTS)


@dataclasses.dataclass(frozen=True)
class Part:
    """A body part and how it is drawn.

    Attributes:
        name: its name in logs and pictures.
        joints: joints drawn as a spot.
        limbs: pairs of points drawn as a capsule.
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[str, str], ...]

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Spots and capsules as index pairs into ``POINTS``; a joint is a segment of length 0."""
        pairs = (*((joint, joint) for joint in self.joints), *self.limbs)
        return tuple((POINTS.index(start), POINTS.index(end)) for start, end in pairs)


def _side_parts(kind: str, chain: tuple[str, ...], extra: tuple[str, ...] = ()) -> list[Part]:
    """The left and the right part of a chain of joints, followed by derived points."""
    parts = []
    for side in ("left", "right"):
        points = [f"{side}_{name}" for name in chain + extra]
        limbs = tuple(itertools.pairwise(points))
        parts.append(Part(f"{side} {kind}", tuple(points[: len(chain)]), limbs))
    return parts


_HEAD = Part(
    "head",
    ("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    (
        ("nose", "neck"),
        ("nose", "left_eye"),
        ("nose", "right_eye"),
        ("left_eye", "left_ear"),
        ("right_eye", "right_ear"),
        # From behind, a pose often has ears and no nose.
        ("left_ear", "neck"),
        ("right_ear", "neck"),
    ),
)
# The sides and diagonals of the quadrilateral: together their capsules fill it.
_TORSO = Part(
    "torso",
    ("left_shoulder", "right_shoulder", "left_hip", "right_hip"),
    (
        ("left_shoulder", "right_shoulder"),
        ("left_hip", "right_hip"),
        ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"),
        ("left_shoulder", "right_hip"),
        ("right_shoulder", "left_hip"),
    ),
)
# The order is the order of the channel groups (docs/method.md).
PARTS = (
    _HEAD,
    _TORSO,
    *_side_parts("arm", ("shoulder", "elbow", "wrist")),
    *_side_parts("leg", ("hip", "knee", "ankle")),
    *_side_parts("foot", ("ankle",), ("sole",)),
)
NUM_PARTS = len(PARTS)
# ``maps[..., PART_FLIP]`` swaps left and right parts as ``FLIP`` swaps joints; after the first two
# parts, each left part is followed by its right one.
PART_FLIP: Int[np.ndarray, "8"] = np.array([0, 1, 3, 2, 5, 4, 7, 6])


def shown_joints(
    keypoints: Float32[np.ndarray, "*people 17 3"], threshold: float
) -> Bool[np.ndarray, "*people 17"]:
    """Which joints are drawn: those with a confidence of ``threshold`` or more, and above 0."""
    return (keypoints[..., 2] >= threshold) & (keypoints[..., 2] > 0)


def shown_limbs(
    joints: Float32[np.ndarray, "17 3"], threshold: float
) -> list[tuple[int, int, int]]:
    """The limbs of a skeleton whose two joints are shown.

    Args:
        joints: keypoints of a person.
        threshold: lowest confidence that is drawn.

    Returns:
        For each limb the number of its part and its two joints.
    """
    seen = shown_joints(joints, threshold)
    return [
        (number, start, end)
        for number, part in enumerate(PARTS)
        for start, end in part.segments
        if start != end and max(start, end) < NUM_JOINTS and seen[start] and seen[end]
    ]


def without_origin(
    keypoints: Float32[np.ndarray, "*people 17 3"],
) -> tuple[Float32[np.ndarray, "*people 17 3"], Bool[np.ndarray, "*people 17"]]:
    """Keypoints whose joints at exactly (0, 0) count as not found.

    Tools write (0, 0) for a joint that they did not find, and some leave its confidence above 0
    (Ultralytics). Drawn, it would be a limb into the corner of the image. A joint that was found
    has fractions, and is practically never there.

    Args:
        keypoints: (…, 17, 3) x, y, confidence, as the tool wrote them, before any scaling.

    Returns:
        A copy where such joints have confidence 0, and (…, 17) which joints had another.

    >>> points, dropped = without_origin(np.array([[0, 0, 0.4]] + [[7, 0, 0.4]] * 16, np.float32))
    >>> points[:2, 2].tolist() == [0, np.float32(0.4)], dropped.sum().item()
    (True, 1)
    """
    dropped = (keypoints[..., :2] == 0).all(axis=-1) & (keypoints[..., 2] > 0)
    kept = keypoints.copy()
    kept[dropped, 2] = 0
    return kept, dropped


def origin_warnings(name: str, joints: int, images: int) -> list[str]:
    """A warning if :func:`without_origin` dropped joints; else empty.

    Args:
        name: of the file or option, for the message.
        joints: number of joints dropped.
        images: number of images that they are from.
    """
    if not joints:
        return []
    return [
        f"{name}: {joints:,} joints of {images:,} images are at (0, 0) with a confidence above 0; "
        "tools write this for joints that they did not find, so these have confidence 0"
    ]
