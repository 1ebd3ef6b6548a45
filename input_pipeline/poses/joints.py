"""The joint orders of public pose tools, and how each maps to COCO-17 and to the parts."""

import numpy as np

from input_pipeline.keypoints import JOINTS, PARTS

# OpenPose's model "COCO"; AlphaPose's OpenPose-like output and PGFA use the same order.
OPENPOSE_18 = (
    "nose",
    "neck",
    *("right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
# OpenPose's model "BODY_25".
OPENPOSE_25 = (
    "nose",
    "neck",
    *("right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    "mid_hip",
    *("right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
    *("left_big_toe", "left_small_toe", "left_heel"),
    *("right_big_toe", "right_small_toe", "right_heel"),
)
ORDERS = {len(order): order for order in (JOINTS, OPENPOSE_18, OPENPOSE_25)}

# ``points[COCO_FROM[len(points)]]`` are the COCO joints; neck, hip centre and feet are dropped.
COCO_FROM = {
    count: np.array([order.index(joint) for joint in JOINTS]) for count, order in ORDERS.items()
}
# AlphaPose's larger sets (Halpe-26, Halpe-136, COCO whole body) begin with COCO's joints.
COCO_FIRST = {count: np.arange(len(JOINTS)) for count in (17, 26, 133, 136)}
COCO_ONLY = {17: COCO_FROM[17]}
LIMB_JOINTS = JOINTS[5:]  # shoulders to ankles

# The parts that joints outside COCO belong to.
_FURTHER_PARTS = {
    "neck": ("head", "torso"),
    "mid_hip": ("torso",),
    **{
        f"{side}_{toe}": (f"{side} foot",)
        for side in ("left", "right")
        for toe in ("big_toe", "small_toe", "heel")
    },
}


def part_channels(order: tuple[str, ...]) -> list[list[int]]:
    """The channels that make up each of the eight parts, in a stack of heat maps in this order.

    >>> part_channels(OPENPOSE_18)[0]  # head: nose, neck, eyes, ears
    [0, 1, 14, 15, 16, 17]
    """
    return [
        [
            channel
            for channel, joint in enumerate(order)
            if joint in part.joints or part.name in _FURTHER_PARTS.get(joint, ())
        ]
        for part in PARTS
    ]
