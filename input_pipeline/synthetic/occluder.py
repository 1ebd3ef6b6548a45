"""Puts something between the camera and the person so that it hides a given share of the body."""

import dataclasses

import cv2
import numpy as np

from input_pipeline.synthetic import props
from input_pipeline.synthetic.attributes import draw_person, tone
from input_pipeline.synthetic.figure import draw_figure, pose_figure
from input_pipeline.synthetic.layer import new_layer
from input_pipeline.synthetic.props import Sprite, any_color
from input_pipeline.synthetic.settings import SceneConfig
from input_pipeline.synthetic.skeleton import draw_gait

_SPRITES, _PLACES = 8, 12  # how often a sprite is redrawn, and moved, before the sure way is taken


@dataclasses.dataclass(frozen=True)
class Target:
    """What the occluder has to hide.

    Attributes:
        body: (height, width) bool at the supersampled size, true on the body.
        ground: y of the ground below the person; may lie outside.
        height: pixels per body height.
        pitch: the camera's, degrees.
        light: the camera's.
    """

    body: np.ndarray
    ground: float
    height: float
    pitch: float
    light: float


def _panel(target: Target, rng: np.random.Generator) -> np.ndarray:
    """A wall or a door frame that hides all on one side of the middle of the layer."""
    height, width = target.body.shape
    sprite = Sprite.empty(height, width)
    tint = any_color(rng) if rng.random() < 0.6 else (150, 140, 126)
    lean = rng.uniform(-0.04, 0.04) * width
    side = 0 if rng.random() < 0.5 else width
    top, bottom = (width / 2 + lean, -1), (width / 2 - lean, height + 1)
    sprite.polygon([(side, -1), top, bottom, (side, height + 1)], tint)
    step = height * rng.uniform(0.06, 0.3)
    for y in np.arange(0.0, height, step):
        sprite.line((0, y), (width, y), height / 160, tone(tint, 0.85))
    sprite.line(top, bottom, height / 64, tone(tint, 0.7))
    return sprite.layer(rng)


def _pedestrian(target: Target, rng: np.random.Generator) -> np.ndarray:
    """Somebody else, nearer to the camera, dressed from the same palettes."""
    height, width = target.body.shape
    layer = new_layer(height, width)
    tall = target.height * rng.uniform(0.9, 1.15)
    feet = (width / 2, target.ground + rng.uniform(0.03, 0.3) * target.height)
    figure = pose_figure(draw_person(rng), draw_gait(rng), target.pitch, tall, feet)
    draw_figure(layer, figure, target.light)
    return layer


def _prop(target: Target, prop: props.Prop, rng: np.random.Generator) -> np.ndarray:
    """A prop that stands a step nearer to the camera than the person."""
    height, width = target.body.shape
    sprite = Sprite.empty(height, width)
    base = target.ground + rng.uniform(0.0, 0.1) * target.height
    prop(sprite, width / 2, base, target.height * rng.uniform(1.0, 1.1), target.light, rng)
    return sprite.layer(rng)


_PROPS: dict[str, tuple[props.Prop, ...]] = {
    "box": (props.box, props.litter_bin),
    "pole": (props.pole,),
    "bush": (props.bush, props.bush, props.branches),
    "car": (props.car,),
}
KINDS = (*_PROPS, "panel", "pedestrian")


def _sprite(kind: str, target: Target, rng: np.random.Generator) -> np.ndarray:
    """A layer (4, h, w) with an occluder of a kind, its axis in the middle column."""
    if kind == "panel":
        return _panel(target, rng)
    if kind == "pedestrian":
        return _pedestrian(target, rng)
    choice = _PROPS[kind]
    return _prop(target, choice[int(rng.integers(len(choice)))], rng)


def _shifted(plane: np.ndarray, offset: int, *, edge: bool) -> np.ndarray:
    """Moves (..., h, w) sideways by `offset`; `edge` repeats its border instead of nothing."""
    width = plane.shape[-1]
    columns = np.arange(width) - offset
    moved = plane[..., np.clip(columns, 0, width - 1)]
    if not edge:
        moved[..., (columns < 0) | (columns >= width)] = 0
    return moved


def hidden_share(body: np.ndarray, hidden: np.ndarray) -> float:
    """Share of the `body` (h, w) bool that lies in `hidden` (h, w) bool; 0 for no body at all."""
    area = cv2.countNonZero(body.view(np.uint8))
    return cv2.countNonZero((body & hidden).view(np.uint8)) / area if area else 0.0


def draw_occluder(target: Target, scene: SceneConfig, rng: np.random.Generator) -> np.ndarray:
    """A layer (4, h, w) that hides a share of the target within `scene.cover`.

    Kinds of occluders, sizes and places are tried at random; if none fits (a person of whom the
    box shows little), a wall is pushed in from the side as far as it takes.

    Args:
        target: whom to hide.
        scene: how much to hide, and how often by what.
        rng: this image's stream.
    """
    weights = np.array([getattr(scene, f"{kind}_weight") for kind in KINDS])
    low, high = scene.cover
    width = target.body.shape[1]
    columns = np.flatnonzero(target.body.any(axis=0))
    middle = columns.mean() if columns.size else width / 2
    reach = max(columns.size, 2)
    for _ in range(_SPRITES):
        kind = str(rng.choice(KINDS, p=weights / weights.sum()))
        layer, edge = _sprite(kind, target, rng), kind == "panel"
        covered = layer[3] > 0.5
        for _ in range(_PLACES):
            offset = round(middle - width / 2 + rng.uniform(-0.8, 0.8) * reach)
            if low <= hidden_share(target.body, _shifted(covered, offset, edge=edge)) <= high:
                return _shifted(layer, offset, edge=edge)
    return _wall_from_the_left(target, rng.uniform(low, high), rng)


def _wall_from_the_left(target: Target, share: float, rng: np.random.Generator) -> np.ndarray:
    """A wall whose upright edge leaves `share` of the body hidden, to within a column."""
    height, width = target.body.shape
    filled = np.cumsum(target.body.sum(axis=0))
    edge = int(np.searchsorted(filled, share * filled[-1])) + 1
    sprite = Sprite.empty(height, width)
    sprite.color[:] = any_color(rng)
    sprite.alpha[:, :edge] = 255
    return sprite.layer(rng)
