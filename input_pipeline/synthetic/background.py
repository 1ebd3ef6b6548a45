"""Each camera's surroundings: a large canvas, from which each image crops its background."""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.synthetic import props
from input_pipeline.synthetic.attributes import Color, draw_person, tone
from input_pipeline.synthetic.camera import Camera, cameras
from input_pipeline.synthetic.figure import draw_figure, pose_figure
from input_pipeline.synthetic.layer import SUPERSAMPLING, new_layer, over
from input_pipeline.synthetic.props import Sprite
from input_pipeline.synthetic.settings import Preset, Stream, random_stream
from input_pipeline.synthetic.skeleton import draw_gait

# Canvas size in image widths and heights; the ground meets the wall at this share of the height.
WIDTHS, HEIGHTS, HORIZON = 14, 2, 0.42

# The materials and colours of the ground and of the wall behind it, one pair per camera.
PLACES: tuple[tuple[str, Color, str, Color], ...] = (
    ("paving", (150, 142, 130), "facade", (182, 166, 140)),
    ("grass", (92, 116, 62), "hedge", (56, 84, 48)),
    ("asphalt", (92, 94, 98), "shutters", (122, 132, 142)),
    ("tiles", (176, 168, 156), "fence", (112, 126, 106)),
    ("gravel", (142, 124, 102), "brick", (140, 84, 66)),
    ("crossing", (104, 102, 102), "glass", (96, 112, 124)),
)

_ON_THE_GROUND = (props.box, props.litter_bin, props.bush, props.car, props.bench, props.pole)
_ON_THE_WALL = (props.poster, props.poster, props.door)


def _mottle(
    rng: np.random.Generator, height: int, width: int, cell: int, amount: float
) -> np.ndarray:
    """Smooth random brightness (height, width, 1), grey levels, in three octaves from ``cell``."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        size = max(cell >> octave, 1)
        coarse = rng.normal(0, amount / 1.6**octave, (height // size + 2, width // size + 2))
        total += cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    return total[..., None]


def _slabs(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    """Joints between slabs, in rows that grow towards the camera."""
    height, width = canvas.shape[:2]
    y, line = float(horizon), max(1, unit // 24)
    while y < height:
        cv2.line(canvas, (0, int(y)), (width, int(y)), tone(color, 0.82), line)
        y += max(3.0, (y - horizon) * 0.16 + unit * 0.07)
    for x in range(-width, 2 * width, unit // 3):
        bottom = (int(x + (x - width / 2) * 0.35), height)
        cv2.line(canvas, (x, horizon), bottom, tone(color, 0.86), line, cv2.LINE_AA)


def _stripes(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    """The bars of a crossing."""
    height, width = canvas.shape[:2]
    for x in range(0, width, unit):
        top, bottom = (
            [(x, horizon), (x + unit // 2, horizon)],
            [(x + unit, height), (x + unit // 3, height)],
        )
        cv2.fillPoly(canvas, [np.array(top + bottom)], tone(color, 1.7), cv2.LINE_AA)


def _lane(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    """The line at the side of a road."""
    y = horizon + (canvas.shape[0] - horizon) // 3
    cv2.line(canvas, (0, y), (canvas.shape[1], y), (190, 184, 150), max(2, unit // 10))


def _bricks(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    width, dark = canvas.shape[1], tone(color, 0.7)
    for row, y in enumerate(range(0, horizon, unit // 5)):
        cv2.line(canvas, (0, y), (width, y), dark, 1)
        for x in range((row % 2) * unit // 5, width, unit * 2 // 5):
            cv2.line(canvas, (x, y), (x, y + unit // 5), dark, 1)


def _slats(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    for y in range(0, horizon, max(3, unit // 8)):
        cv2.line(canvas, (0, y), (canvas.shape[1], y), tone(color, 0.75), 1)


def _bars(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    for x in range(0, canvas.shape[1], max(4, unit // 5)):
        cv2.line(canvas, (x, 0), (x, horizon), tone(color, 0.7), max(1, unit // 16))


def _windows(canvas: np.ndarray, horizon: int, unit: int, color: Color) -> None:
    top, bottom, line = horizon // 6, horizon * 3 // 5, max(1, unit // 20)
    for left in range(unit // 3, canvas.shape[1], unit + unit // 2):
        right = left + unit * 4 // 5
        middle = (left + right) // 2
        cv2.rectangle(canvas, (left, top), (right, bottom), tone(color, 0.6), -1)
        cv2.rectangle(canvas, (left, top), (right, bottom), tone(color, 1.15), line)
        cv2.line(canvas, (middle, top), (middle, bottom), tone(color, 1.15), line)


_DETAIL: dict[str, Callable[[np.ndarray, int, int, Color], None]] = {
    "paving": _slabs,
    "tiles": _slabs,
    "crossing": _stripes,
    "asphalt": _lane,
    "brick": _bricks,
    "shutters": _slats,
    "fence": _bars,
    "facade": _windows,
    "glass": _windows,
}


def _furnish_wall(sprite: Sprite, size: float, light: float, rng: np.random.Generator) -> None:
    """Posters and doors."""
    height, width = sprite.alpha.shape
    for _ in range(WIDTHS):
        prop = _ON_THE_WALL[int(rng.integers(len(_ON_THE_WALL)))]
        base = HORIZON * height * (1.0 if prop is props.door else rng.uniform(0.5, 0.9))
        prop(sprite, rng.uniform(0, width), base, size, light, rng)


def _furnish_ground(
    sprite: Sprite, size: float, camera: Camera, people: int, rng: np.random.Generator
) -> None:
    """Street furniture and distant people, drawn from far to near, the near ones larger."""
    height, width = sprite.alpha.shape
    things = 2 * WIDTHS
    is_person = rng.permutation(things + people) < people
    for nearness, person in zip(np.linspace(0, 1, things + people), is_person, strict=True):
        x, base = rng.uniform(0, width), height * (HORIZON + nearness * (1 - HORIZON))
        scale = size * (0.5 + 0.5 * nearness)
        if person:
            _draw_passer_by(sprite.color, x, base, scale, camera, rng)
        else:
            prop = _ON_THE_GROUND[int(rng.integers(len(_ON_THE_GROUND)))]
            prop(sprite, x, base, scale, camera.light, rng)


def _draw_passer_by(
    surface: np.ndarray,
    x: float,
    base: float,
    size: float,
    camera: Camera,
    rng: np.random.Generator,
) -> None:
    """Draw a distant person, in place on (height, width, 3) uint8."""
    left, right = max(0, int(x - 0.5 * size)), min(surface.shape[1], int(x + 0.5 * size) + 1)
    layer = new_layer(surface.shape[0], right - left)
    feet = x - left, base
    figure = pose_figure(draw_person(rng), draw_gait(rng), camera.pitch, size, feet)
    draw_figure(layer, figure, camera.light)
    window = np.stack(cv2.split(surface[:, left:right])).astype(np.float32)
    over(window, layer)
    surface[:, left:right] = np.clip(np.rint(cv2.merge(list(window))), 0, 255)


@functools.cache
def canvas(preset: Preset, camera: int) -> UInt8[np.ndarray, "canvas_height canvas_width 3"]:
    """The surroundings of a camera: (2·height, 14·width, 3) at the image's resolution."""
    rng = random_stream(preset.seed, Stream.CAMERA, camera)
    height, width = HEIGHTS * preset.image_shape[0], WIDTHS * preset.image_shape[1]
    unit, horizon = preset.image_shape[1], int(HORIZON * height)
    size, eye = 0.8 * preset.image_shape[0], cameras(preset)[camera]
    ground, ground_color, wall, wall_color = PLACES[camera % len(PLACES)]

    # Props are drawn directly onto the surface: what they cover does not matter here.
    sprite = Sprite.empty(height, width)
    sprite.color[:horizon], sprite.color[horizon:] = wall_color, ground_color
    for name, color in ((ground, ground_color), (wall, wall_color)):
        if name in _DETAIL:
            _DETAIL[name](sprite.color, horizon, unit, color)
    edge = max(1, unit // 8)
    cv2.line(sprite.color, (0, horizon), (width, horizon), tone(wall_color, 0.55), edge)
    if wall != "hedge":
        _furnish_wall(sprite, 0.6 * size, eye.light, rng)
    _furnish_ground(sprite, size, eye, preset.scene.background_people, rng)
    texture = _mottle(rng, height, width, unit, 7.0) + _mottle(rng, height, width, 4, 5.0)
    return np.clip(np.rint(sprite.color + texture), 0, 255).astype(np.uint8)


def crop(
    place: UInt8[np.ndarray, "canvas_height canvas_width 3"],
    image_shape: tuple[int, int],
    rng: np.random.Generator,
) -> Float32[np.ndarray, "3 height width"]:
    """A random window of a canvas, at the supersampled size."""
    height, width = image_shape
    zoom = rng.uniform(0.8, 1.2)
    rows, columns = round(height * zoom), round(width * zoom)
    top = int(rng.integers(0, place.shape[0] - rows + 1))
    left = int(rng.integers(0, place.shape[1] - columns + 1))
    window = place[top : top + rows, left : left + columns]
    size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    scaled = cv2.resize(window, size, interpolation=cv2.INTER_LINEAR)
    return np.stack(cv2.split(scaled)).astype(np.float32)
