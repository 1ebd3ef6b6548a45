"""Dress a projected skeleton: one solid per part of the body, the nearest drawn last."""

import dataclasses
from math import cos, hypot, pi, sin

import numpy as np
from jaxtyping import Float32

from input_pipeline.synthetic import attributes as palette
from input_pipeline.synthetic.attributes import Attributes, Color, Person
from input_pipeline.synthetic.layer import Paint, Solid, draw, limb, profile
from input_pipeline.synthetic.skeleton import (
    HEAD_HALF_HEIGHT,
    HEAD_HALF_WIDTH,
    Gait,
    body_points,
    project,
)

_CLOTH_FOLDS = 0.055


@dataclasses.dataclass(frozen=True)
class Figure:
    """A person at one moment and place in a picture, ready to be drawn.

    Attributes:
        person: the identity and build.
        gait: the moment of the walk.
        points: name → (x, y, depth) in pixels.
        height: pixels per body height.
    """

    person: Person
    gait: Gait
    points: dict[str, np.ndarray]
    height: float

    @property
    def ground(self) -> float:
        """The lowest y of the soles, pixels; may lie outside the picture."""
        ends = ("left_heel", "left_toe", "right_heel", "right_toe")
        return float(max(self.points[end][1] for end in ends))


def pose_figure(
    person: Person, gait: Gait, pitch: float, height: float, origin: tuple[float, float]
) -> Figure:
    """Place a person: ``height`` in pixels, ``origin`` is the ground point below the pelvis."""
    points = project(body_points(gait, person.shoulders), gait.yaw, pitch, height, origin)
    return Figure(person, gait, points, height)


def _rgb(color: Color) -> np.ndarray:
    return np.array(color, np.float32)[:, None, None]


def flat(color: Color) -> Paint:
    """Paint of one colour."""
    value = _rgb(color)
    return lambda along, across: value


def _around(across: np.ndarray, yaw: float) -> np.ndarray:
    """Angle about the body: 0 at its front, growing to its left, in -π..π."""
    return (np.arcsin(across) + np.float32(pi - yaw)) % np.float32(2 * pi) - np.float32(pi)


def _garment_pattern(
    pattern: str, along: np.ndarray, around: np.ndarray, *, trunk: bool
) -> np.ndarray | None:
    """Where the second colour shows, (h, w) bool; ``None`` for nowhere.

    Args:
        pattern: one of ``PATTERNS``.
        along: 0 at the neck or shoulder, 1 at the hem or wrist.
        around: angle about the body.
        trunk: the trunk, or a part of a sleeve.
    """
    if pattern == "stripes":
        return along * (9 if trunk else 7) % 2 >= 1
    if pattern == "checks":
        return (along * (7 if trunk else 5) % 2 < 1) ^ (around * np.float32(6 / pi) % 2 < 1)
    if pattern == "two_tone" and trunk:
        return along > 0.55
    if pattern == "print" and trunk:
        # On both chest and back, or half of the views would not show it.
        beside = np.abs(np.abs(around) - np.float32(pi / 2))
        return (beside > 0.85) & (along > 0.28) & (along < 0.60)
    return None


def garment(outfit: Attributes, yaw: float, *, trunk: bool) -> Paint:
    """Paint of the upper garment, wrapped around the trunk or around a sleeve.

    Args:
        outfit: colours and pattern.
        yaw: heading, so that the pattern turns with the body.
        trunk: the trunk (with neckline, print and the straps of a backpack) or a sleeve.
    """
    first, second = (_rgb(palette.CLOTHES[i]) for i in (outfit.upper_color, outfit.second_color))
    strap, skin = _rgb(palette.BAGS[outfit.bag_color]), _rgb(palette.SKIN[outfit.skin])
    pattern = palette.PATTERNS[outfit.pattern]
    has_straps = palette.BAG_KINDS[outfit.bag] == "backpack"
    if pattern == "plain" and not trunk:
        return lambda along, across: first

    def paint(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        around = _around(across, yaw)
        where = _garment_pattern(pattern, along, around, trunk=trunk)
        color = first if where is None else np.where(where, second, first)
        if not trunk:
            return color
        beside = np.abs(around)
        color = np.where((beside < 0.5 - 4.5 * along), skin, color)
        if has_straps:
            on_strap = (np.abs(beside - np.float32(0.62)) < 0.13) & (along < 0.55)
            color = np.where(on_strap, strap, color)
        return color * np.where(along > 0.965, np.float32(0.72), np.float32(1))

    return paint


def head_paint(outfit: Attributes, yaw: float) -> Paint:
    """Paint of the head: hair over the skull and down the sides and back, skin in the face."""
    skin, hair = _rgb(palette.SKIN[outfit.skin]), _rgb(palette.HAIR[outfit.hair_color])
    fall = {"short": 0.62, "long": 1.01, "bun": 0.68}[palette.HAIR_STYLES[outfit.hair_style]]

    def paint(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        sideways = np.abs(_around(across, yaw))
        fringe = np.float32(0.20) + np.float32(0.06) * sideways
        is_hair = (along < fringe) | ((sideways > 1.25 - 0.3 * along) & (along < fall))
        return np.where(is_hair, hair, skin)

    return paint


def _seen_half_width(yaw: float, half_width: float, half_depth: float) -> float:
    """Half-width of an elliptic column as seen under a heading."""
    return hypot(half_width * cos(yaw), half_depth * sin(yaw))


def _trunk(figure: Figure) -> Solid:
    """Neck base to hem: sloping shoulders, chest, waist and hips."""
    h, yaw, build = figure.height, figure.gait.yaw, figure.person.build
    neck, pelvis = figure.points["neck"][:2], figure.points["pelvis"][:2]
    axis = pelvis - neck
    shoulder = _seen_half_width(yaw, 0.112 * figure.person.shoulders, 0.070 * build)
    chest = _seen_half_width(yaw, 0.108 * build, 0.080 * build)
    waist = _seen_half_width(yaw, 0.094 * build, 0.074 * build)
    hips = _seen_half_width(yaw, 0.107 * build, 0.082 * build)
    at = (0.0, 0.03, 0.08, 0.13, 0.20, 0.40, 0.66, 0.90, 1.0)
    widths = (0.034, 0.05, 0.76 * shoulder, 0.96 * shoulder, shoulder, chest, waist, hips, hips)
    return Solid(
        neck - 0.02 * axis,
        pelvis + 0.17 * axis,
        h * profile(at, widths),
        garment(figure.person.attributes, yaw, trunk=True),
        figure.points["chest"][2],
        folds=_CLOTH_FOLDS,
    )


def _arm(figure: Figure, side: str) -> list[Solid]:
    h, outfit, points = figure.height, figure.person.attributes, figure.points
    shoulder, elbow = points[f"{side}_shoulder"], points[f"{side}_elbow"]
    wrist, hand = points[f"{side}_wrist"], points[f"{side}_hand"]
    skin = flat(palette.SKIN[outfit.skin])
    cloth = garment(outfit, figure.gait.yaw, trunk=False)
    long = palette.SLEEVES[outfit.sleeves] == "long"
    # The whole arm is either in front of the trunk or behind it.
    far = shoulder[2] < points["chest"][2] - 0.01 * h
    depth = points["chest"][2] + (-1.0 if far else 1.0) * h
    shade = 0.82 if far else 0.97
    b = figure.person.build * h
    fore = (0.030 * b, 0.028 * b, 0.024 * b) if long else (0.026 * b, 0.026 * b, 0.018 * b)
    folds = _CLOTH_FOLDS if long else 0.0
    return [
        limb(wrist, hand, (0.018 * h, 0.022 * h, 0.014 * h), skin, depth, shade),
        limb(elbow, wrist, fore, cloth if long else skin, depth + 1, shade, folds),
        limb(shoulder, elbow, (0.034 * b, 0.037 * b, 0.031 * b), cloth, depth + 2, shade, folds),
    ]


def _leg(figure: Figure, side: str) -> list[Solid]:
    h, outfit, points = figure.height, figure.person.attributes, figure.points
    hip, knee, ankle = (points[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
    heel, toe = points[f"{side}_heel"], points[f"{side}_toe"]
    cloth, skin = flat(palette.LOWER_CLOTHES[outfit.lower_color]), flat(palette.SKIN[outfit.skin])
    shoe = flat(palette.SHOES[outfit.shoes])
    kind = palette.LOWERS[outfit.lower]
    far = hip[2] < points["pelvis"][2] - 0.005 * h
    # Legs go behind the trunk's hem, the farther one behind the nearer one.
    depth = points["chest"][2] - (0.8 if far else 0.5) * h
    shade = 0.78 if far else 0.96
    b = figure.person.build * h
    thigh = (0.048 * b, 0.062 * b, 0.056 * b, 0.046 * b)
    calf, calf_paint, folds = (0.045 * b, 0.043 * b, 0.036 * b), cloth, _CLOTH_FOLDS
    if kind != "trousers":
        calf, calf_paint, folds = (0.037 * b, 0.038 * b, 0.022 * b), skin, 0.0
    thigh_paint = skin if kind == "skirt" else cloth
    return [
        limb(heel, toe, (0.024 * h, 0.026 * h, 0.018 * h), shoe, depth, shade),
        limb(knee, ankle, calf, calf_paint, depth + 1, shade, folds),
        limb(hip, knee, thigh, thigh_paint, depth + 2, shade, _CLOTH_FOLDS),
    ]


def _skirt(figure: Figure) -> Solid:
    h, points, build = figure.height, figure.points, figure.person.build
    knees = 0.5 * (points["left_knee"] + points["right_knee"])[:2]
    spread = abs(points["left_knee"][0] - points["right_knee"][0]) / 2
    pelvis = points["pelvis"][:2]
    hips = _seen_half_width(figure.gait.yaw, 0.104 * build, 0.080 * build) * h
    widths = profile((0.0, 1.0), (hips, max(1.2 * hips, 0.8 * spread + 0.05 * h)))
    cloth = flat(palette.LOWER_CLOTHES[figure.person.attributes.lower_color])
    hem = pelvis + 0.88 * (knees - pelvis)
    return Solid(pelvis, hem, widths, cloth, points["chest"][2] - 0.3 * h, folds=0.08)


def _head(figure: Figure) -> list[Solid]:
    h, outfit, points = figure.height, figure.person.attributes, figure.points
    yaw = figure.gait.yaw + figure.gait.head_turn
    head, neck, depth = points["head"][:2], points["neck"][:2], points["chest"][2] + 0.2 * h
    up = np.array([0.0, -HEAD_HALF_HEIGHT * h])
    position = np.linspace(-1.0, 1.0, 64)
    egg = np.sqrt(1 - position**2) * (1.0 - 0.12 * position)
    width = _seen_half_width(yaw, HEAD_HALF_WIDTH, 1.12 * HEAD_HALF_WIDTH) * h
    skin, hair = flat(palette.SKIN[outfit.skin]), flat(palette.HAIR[outfit.hair_color])
    solids = [
        limb(head, neck, (0.028 * h, 0.032 * h), skin, depth, 0.82),
        Solid(head + up, head - up, width * egg, head_paint(outfit, yaw), depth + 1),
    ]
    backward = np.array([-sin(yaw), 0.0]) * HEAD_HALF_WIDTH * h
    hair_depth = depth + (2 if cos(yaw) < 0 else -1)
    style = palette.HAIR_STYLES[outfit.hair_style]
    if style == "long":
        top, tip = head + 0.5 * backward + 0.1 * up, neck + 0.9 * backward - 0.5 * up
        solids.append(
            limb(top, tip, (0.046 * h, 0.05 * h, 0.036 * h), hair, hair_depth, folds=0.06)
        )
    elif style == "bun":
        knot = head + 0.95 * backward + 0.8 * up
        solids.append(limb(knot, knot + 0.1 * up, (0.028 * h, 0.028 * h), hair, hair_depth))
    return solids


def _eyes(figure: Figure) -> list[Solid]:
    """Dark dots for the eyes that face the camera."""
    h, points = figure.height, figure.points
    dark = flat(palette.tone(palette.SKIN[figure.person.attributes.skin], 0.4))
    dots = []
    for eye in (points["left_eye"], points["right_eye"]):
        if eye[2] - points["head"][2] > 0.02 * h:
            below = eye + np.array([0.0, 0.003 * h, 0.0])
            dots.append(
                limb(eye, below, (0.0065 * h, 0.0065 * h), dark, points["chest"][2] + 0.9 * h)
            )
    return dots


def _backpack(figure: Figure) -> Solid:
    h, yaw, points = figure.height, figure.gait.yaw, figure.points
    chest, pelvis = points["chest"], points["pelvis"]
    backward = np.array([-sin(yaw), 0.0]) * 0.100 * h
    down = (pelvis - chest)[:2]
    widths = profile((0, 0.1, 0.6, 0.94, 1), (0.5, 0.88, 1, 1, 0.75))
    depth = chest[2] + (2.0 if cos(yaw) < 0.15 else -2.0) * h
    return Solid(
        chest[:2] + 0.02 * down + backward,
        chest[:2] + 0.76 * down + 1.1 * backward,
        _seen_half_width(yaw, 0.088, 0.055) * h * widths,
        flat(palette.BAGS[figure.person.attributes.bag_color]),
        depth,
        folds=0.08,
    )


def _shoulder_bag(figure: Figure) -> list[Solid]:
    """A strap from the right shoulder to a bag at the left hip."""
    h, yaw, points = figure.height, figure.gait.yaw, figure.points
    color = flat(palette.BAGS[figure.person.attributes.bag_color])
    left = np.array([cos(yaw), 0.0])
    hip = points["pelvis"][:2] + 0.135 * h * left
    turned_away = sin(yaw) > 0.3
    depth = points["chest"][2] + (-2.0 if turned_away else 2.0) * h
    shoulder = points["right_shoulder"][:2] + 0.02 * h * left - np.array([0.0, 0.02 * h])
    radii = (0.009 * h, 0.009 * h)
    top, bottom = hip + np.array([0.0, -0.02 * h]), hip + np.array([0.0, 0.10 * h])
    widths = _seen_half_width(yaw, 0.04, 0.085) * h * profile((0, 0.2, 1), (0.9, 1, 1))
    return [
        limb(shoulder, hip, radii, color, points["chest"][2] + 0.1 * h),
        Solid(top, bottom, widths, color, depth),
    ]


def _solids(figure: Figure) -> list[Solid]:
    outfit = figure.person.attributes
    solids = [_trunk(figure), *_head(figure), *_eyes(figure)]
    for side in ("left", "right"):
        solids += _arm(figure, side) + _leg(figure, side)
    if palette.LOWERS[outfit.lower] == "skirt":
        solids.append(_skirt(figure))
    bag = palette.BAG_KINDS[outfit.bag]
    if bag == "backpack":
        solids.append(_backpack(figure))
    elif bag == "shoulder":
        solids += _shoulder_bag(figure)
    return solids


def draw_figure(layer: Float32[np.ndarray, "4 height width"], figure: Figure, light: float) -> None:
    """Draw a dressed person onto ``layer``, in place."""
    for solid in sorted(_solids(figure), key=lambda solid: solid.depth):
        draw(layer, solid, light)
