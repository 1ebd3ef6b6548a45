"""A walking skeleton in three dimensions, and its projection to 17 COCO keypoints.

Body frame: x to the person's left, y forward, z up, in units of the person's height, feet at 0.
Camera frame: x to the right of the image, y down the image, and depth towards the camera.
"""

import dataclasses
from math import cos, pi, radians, sin

import numpy as np
from jaxtyping import Bool

from input_pipeline.keypoints import JOINTS

NUM_FACE_JOINTS = 5  # they come first in the COCO order

# Segment lengths and offsets as fractions of the height of an adult.
THIGH, SHIN, ANKLE_HEIGHT = 0.245, 0.245, 0.045
UPPER_ARM, FOREARM, HAND = 0.172, 0.150, 0.055
HIP_HALF, SHOULDER_HALF = 0.058, 0.100
WAIST_TO_SHOULDER, SHOULDER_TO_NECK, NECK_TO_HEAD = 0.272, 0.044, 0.080
HEAD_HALF_WIDTH, HEAD_HALF_HEIGHT = 0.050, 0.068

# The face's joints relative to the head's centre: (left, forward, up).
FACE = {
    "nose": (0.0, 0.056, -0.012),
    "left_eye": (0.021, 0.046, 0.010),
    "right_eye": (-0.021, 0.046, 0.010),
    "left_ear": (0.049, 0.0, 0.0),
    "right_ear": (-0.049, 0.0, 0.0),
}
# A joint of the face is visible up to this depth behind the head's centre (fraction of height).
FACE_HORIZON = -0.012


@dataclasses.dataclass(frozen=True)
class Gait:
    """A person's movement at one moment. Angles in radians.

    Attributes:
        yaw: heading; 0 walks towards the camera, π/2 to the right of the image, π away.
        head_turn: the head's yaw relative to the body's.
        phase: of the walking cycle, 0..2π.
        stride: largest angle of the thigh; near 0, the person stands.
        elbow: mean bend of the elbows.
        raised: extra bend and lift of the (left, right) arm: a phone, a coffee, a strap.
    """

    yaw: float
    head_turn: float
    phase: float
    stride: float
    elbow: float
    raised: tuple[float, float]


def draw_gait(rng: np.random.Generator) -> Gait:
    """Draw a moment of a person walking (four times in five) or standing."""
    stride = rng.uniform(0.28, 0.5) if rng.random() < 0.8 else rng.uniform(0.02, 0.10)
    raised = [0.0, 0.0]
    if rng.random() < 0.2:
        raised[int(rng.integers(2))] = rng.uniform(0.5, 1.0)
    return Gait(
        yaw=rng.uniform(-pi, pi),
        head_turn=rng.uniform(-0.45, 0.45),
        phase=rng.uniform(0.0, 2 * pi),
        stride=stride,
        elbow=rng.uniform(0.15, 0.5),
        raised=(raised[0], raised[1]),
    )


def _leg(side: int, gait: Gait) -> dict[str, np.ndarray]:
    """Hip, knee, ankle, heel and toe of one leg, relative to the pelvis. side: +1 is left."""
    phase = gait.phase if side > 0 else gait.phase + pi
    thigh = gait.stride * (sin(phase) + 0.15)
    bend = 0.06 + 1.7 * gait.stride * max(0.0, cos(phase)) ** 2
    shin = thigh - bend
    hip = np.array([side * HIP_HALF, 0.0, 0.0])
    knee = hip + THIGH * np.array([-side * 0.03, sin(thigh), -cos(thigh)])
    ankle = knee + SHIN * np.array([-side * 0.04, sin(shin), -cos(shin)])
    lift = 0.8 * min(shin, 0.0) + 0.5 * max(shin, 0.0)  # heel up behind, toes up in front
    forward = np.array([side * 0.12, cos(lift), sin(lift)])
    down = np.array([0.0, sin(lift), -cos(lift)])
    sole = ankle + ANKLE_HEIGHT * 0.65 * down
    return {"hip": hip, "knee": knee, "ankle": ankle,
            "heel": sole - 0.035 * forward, "toe": sole + 0.095 * forward}  # fmt: skip


def _arm(side: int, gait: Gait, shoulder_half: float) -> dict[str, np.ndarray]:
    """Shoulder, elbow, wrist and hand of one arm, relative to the middle of the shoulders."""
    phase = gait.phase if side > 0 else gait.phase + pi
    raised = gait.raised[0 if side > 0 else 1]
    upper = -0.85 * gait.stride * sin(phase) * (1 - raised) + 0.35 * raised
    bend = gait.elbow * (1.0 + 0.5 * sin(-phase)) + 1.5 * raised
    fore = upper + bend
    shoulder = np.array([side * shoulder_half, 0.0, 0.0])
    elbow = shoulder + UPPER_ARM * np.array([side * 0.16, sin(upper), -cos(upper)])
    direction = np.array([-side * 0.12 * raised + side * 0.05, sin(fore), -cos(fore)])
    wrist = elbow + FOREARM * direction
    return {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": wrist + HAND * direction}


def body_points(gait: Gait, shoulders: float = 1.0) -> dict[str, np.ndarray]:
    """All points of the skeleton in the body frame, the lowest sole at z = 0.

    Args:
        gait: the moment of the walk.
        shoulders: width factor of the shoulders.

    Returns:
        Name → (3,), for the COCO joints and for neck, pelvis, head, hands, heels and toes.
    """
    shoulder_half = SHOULDER_HALF * shoulders
    chest = np.array([0.0, 0.10 * gait.stride, WAIST_TO_SHOULDER])
    neck = chest + np.array([0.0, 0.004, SHOULDER_TO_NECK])
    head = neck + np.array([0.0, 0.012, NECK_TO_HEAD])
    points = {"pelvis": np.zeros(3), "chest": chest, "neck": neck, "head": head}
    turn = np.array(
        [[cos(gait.head_turn), -sin(gait.head_turn)], [sin(gait.head_turn), cos(gait.head_turn)]]
    )
    for name, offset in FACE.items():
        # A positive turn is to the person's left, as a positive yaw is.
        x, y = np.array(offset[:2]) @ turn
        points[name] = head + np.array([x, y, offset[2]])
    for side, word in ((1, "left"), (-1, "right")):
        for name, point in _leg(side, gait).items():
            points[f"{word}_{name}"] = point
        for name, point in _arm(side, gait, shoulder_half).items():
            points[f"{word}_{name}"] = chest + point
    ground = min(
        points[f"{word}_{end}"][2] for word in ("left", "right") for end in ("heel", "toe")
    )
    return {name: point - [0.0, 0.0, ground] for name, point in points.items()}


def project(
    points: dict[str, np.ndarray],
    yaw: float,
    pitch: float,
    height: float,
    origin: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Project body-frame points into the image (orthographic, camera looking down by ``pitch``).

    Args:
        points: name → (3,) in the body frame.
        yaw: heading in radians.
        pitch: how far the camera looks down, degrees.
        height: pixels per body height.
        origin: (x, y) image position of the ground point below the pelvis, pixels.

    Returns:
        Name → (x, y, depth): pixels, and pixels towards the camera.
    """
    tilt = radians(pitch)
    rows = np.stack(list(points.values()))
    right = rows[:, 0] * cos(yaw) + rows[:, 1] * sin(yaw)
    towards = rows[:, 1] * cos(yaw) - rows[:, 0] * sin(yaw)
    down = towards * sin(tilt) - rows[:, 2] * cos(tilt)
    depth = towards * cos(tilt) + rows[:, 2] * sin(tilt)
    projected = np.stack(
        [origin[0] + height * right, origin[1] + height * down, height * depth], axis=1
    )
    return dict(zip(points, projected, strict=True))


def faces_camera(projected: dict[str, np.ndarray], height: float) -> Bool[np.ndarray, "17"]:
    """Which of the 17 joints are not turned away from the camera.

    Only joints of the face turn away: estimators place joints behind the body, too.
    """
    head = projected["head"][2]
    depth = np.array([projected[name][2] - head for name in JOINTS])
    turned = depth < FACE_HORIZON * height
    turned[NUM_FACE_JOINTS:] = False
    return ~turned
