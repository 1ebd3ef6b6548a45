"""Put an object between the camera and the person that hides a given share of the body."""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from input_pipeline.synthetic import props
from input_pipeline.synthetic.attributes import draw_person, tone
from input_pipeline.synthetic.figure import draw_figure, pose_figure
from input_pipeline.synthetic.layer import new_layer
from input_pipeline.synthetic.props import Sprite, any_color
from input_pipeline.synthetic.settings import SceneConfig
from input_pipeline.synthetic.skeleton import draw_gait

_KINDS_TRIED, _PLACES_TRIED = 6, 8  # before falling back to a wall


@dataclasses.dataclass(frozen=True)
class Target:
    """The person that the occluder has to hide.

    Attributes:
        body: (height, width) bool at the supersampled size, true on the body.
        ground: y of the ground below the person; may be outside the picture.
        height: pixels per body height.
        pitch: the camera's, degrees.
        light: the camera's.
    """

    body: Bool[np.ndarray, "height width"]
    ground: float
    height: float
    pitch: float
    light: float


Occluder = Callable[[Target, float, np.random.Generator], np.ndarray]


def _panel(target: Target, x: float, rng: np.random.Generator) -> np.ndarray:
    """A wall or door frame that hides everything on one side of a nearly upright edge at ``x``."""
    height, width = target.body.shape
    sprite = Sprite.empty(height, width)
    tint = any_color(rng) if rng.random() < 0.6 else (150, 140, 126)
    lean = rng.uniform(-0.04, 0.04) * width
    side = -1 if rng.random() < 0.5 else width
    top, bottom = (x + lean, -1.0), (x - lean, height + 1.0)
    sprite.polygon([(side, -1), top, bottom, (side, height + 1)], tint)
    for y in np.arange(0.0, height, height * rng.uniform(0.06, 0.3)):
        sprite.line((0, y), (width, y), height / 160, tone(tint, 0.85))
    sprite.line(top, bottom, height / 64, tone(tint, 0.7))
    return sprite.layer(rng)


def _pedestrian(target: Target, x: float, rng: np.random.Generator) -> np.ndarray:
    """Another person, nearer to the camera, dressed from the same palettes."""
    layer = new_layer(*target.body.shape)
    tall = target.height * rng.uniform(0.9, 1.15)
    feet = x, target.ground + rng.uniform(0.03, 0.3) * target.height
    figure = pose_figure(draw_person(rng), draw_gait(rng), target.pitch, tall, feet)
    draw_figure(layer, figure, target.light)
    return layer


def _one_of(*choice: props.Prop) -> Occluder:
    """A prop one step nearer to the camera than the person."""

    def occluder(target: Target, x: float, rng: np.random.Generator) -> np.ndarray:
        sprite = Sprite.empty(*target.body.shape)
        prop = choice[int(rng.integers(len(choice)))]
        base = target.ground + rng.uniform(0.0, 0.2) * target.height
        prop(sprite, x, base, target.height * rng.uniform(1.0, 1.15), target.light, rng)
        return sprite.layer(rng)

    return occluder


# Each kind with the maximum distance of its axis from the person's outline, in body heights.
KINDS: dict[str, tuple[Occluder, float]] = {
    "box": (_one_of(props.box, props.litter_bin), 0.2),
    "pole": (_one_of(props.pole), 0.0),
    "bush": (_one_of(props.bush, props.bush, props.branches), 0.1),
    "car": (_one_of(props.car), 1.0),
    "panel": (_panel, 0.0),
    "pedestrian": (_pedestrian, 0.1),
}


def hidden_share(
    body: Bool[np.ndarray, "height width"], hidden: Bool[np.ndarray, "height width"]
) -> float:
    """The share of the body that is hidden; 0 if there is no body.

    >>> hidden_share(np.array([[True, True, False]]), np.array([[True, False, True]]))
    0.5
    """
    area = cv2.countNonZero(body.view(np.uint8))
    return cv2.countNonZero((body & hidden).view(np.uint8)) / area if area else 0.0


def draw_occluder(
    target: Target, scene: SceneConfig, rng: np.random.Generator
) -> Float32[np.ndarray, "4 height width"]:
    """A layer that hides a share of the target within ``scene.cover``.

    Kinds, sizes and places of occluders are tried at random. If none fits (because the box shows
    little of the person), a wall is moved in from the side as far as necessary.

    Args:
        target: the person to hide.
        scene: the share to hide, and the frequencies of the kinds.
        rng: this image's stream.
    """
    weights = np.array([getattr(scene, f"{kind}_weight") for kind in KINDS])
    low, high = scene.cover
    columns = np.flatnonzero(target.body.any(axis=0))
    left, right = (columns[0], columns[-1]) if columns.size else (0, target.body.shape[1])
    for _ in range(_KINDS_TRIED):
        occluder, beside = KINDS[str(rng.choice(list(KINDS), p=weights / weights.sum()))]
        beside *= target.height
        for _ in range(_PLACES_TRIED):
            layer = occluder(target, rng.uniform(left - beside, right + beside), rng)
            if low <= hidden_share(target.body, layer[3] > 0.5) <= high:
                return layer
    return _wall_from_the_left(target, (low + high) / 2, rng)


def _wall_from_the_left(target: Target, share: float, rng: np.random.Generator) -> np.ndarray:
    """A wall whose upright edge hides ``share`` of the body, to within a column."""
    height, width = target.body.shape
    filled = np.cumsum(target.body.sum(axis=0))
    edge = int(np.searchsorted(filled, share * filled[-1])) + 1
    sprite = Sprite.empty(height, width)
    sprite.color[:] = any_color(rng)
    sprite.alpha[:, :edge] = 255
    return sprite.layer(rng)
