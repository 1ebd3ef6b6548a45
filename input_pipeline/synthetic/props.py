"""Street objects, drawn with OpenCV in the background or in front of a person.

Every prop is a function ``(sprite, x, base, size, light, rng)``. It takes the place on the ground
in pixels, the body height there in pixels, and the direction of the light (-1 left, 1 right).
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.synthetic.attributes import CLOTHES, Color, tone


@dataclasses.dataclass(frozen=True)
class Sprite:
    """A picture to draw on; every shape is drawn into both its colour and its alpha."""

    color: UInt8[np.ndarray, "height width 3"]
    alpha: UInt8[np.ndarray, "height width"]

    @classmethod
    def empty(cls, height: int, width: int) -> "Sprite":
        """An empty sprite."""
        return cls(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8))

    def polygon(self, points: list[tuple[float, float]], tint: Color) -> None:
        """Fill a polygon given by (x, y) in pixels."""
        corners = np.rint(np.array(points) * 16).astype(np.int32)
        cv2.fillPoly(self.color, [corners], tint, cv2.LINE_AA, 4)
        cv2.fillPoly(self.alpha, [corners], 255, cv2.LINE_AA, 4)

    def rectangle(self, left: float, top: float, right: float, bottom: float, tint: Color) -> None:
        """Fill an upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], tint)

    def ellipse(
        self, at: tuple[float, float], axes: tuple[float, float], tint: Color, turn: float = 0.0
    ) -> None:
        """Fill an ellipse with half-axes in pixels, rotated by ``turn`` degrees."""
        center = round(at[0] * 16), round(at[1] * 16)
        size = max(round(axes[0] * 16), 8), max(round(axes[1] * 16), 8)
        for plane, value in ((self.color, tint), (self.alpha, 255)):
            cv2.ellipse(plane, center, size, turn, 0, 360, value, -1, cv2.LINE_AA, 4)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, tint: Color
    ) -> None:
        """Draw a line, such as a seam, on existing shapes; it covers nothing by itself."""
        first, last = ((round(x * 16), round(y * 16)) for x, y in (start, end))
        cv2.line(self.color, first, last, tint, max(1, round(width)), cv2.LINE_AA, 4)

    def layer(
        self, rng: np.random.Generator, grain: float = 5.0
    ) -> Float32[np.ndarray, "4 height width"]:
        """The sprite as a layer, with ``grain`` grey levels of texture."""
        cover = self.alpha.astype(np.float32) / 255
        texture = np.float32(grain) * rng.standard_normal(self.alpha.shape, np.float32)
        planes = [np.clip(plane + texture, 0, 255) * cover for plane in cv2.split(self.color)]
        return np.stack([*planes, cover])


Prop = Callable[[Sprite, float, float, float, float, np.random.Generator], None]


def any_color(rng: np.random.Generator) -> Color:
    """A slightly faded clothing colour, so that clothes do not stand out by their colour."""
    return tone(CLOTHES[int(rng.integers(len(CLOTHES)))], rng.uniform(0.75, 1.02))


def box(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A crate, a counter or a low wall, seen slightly from above."""
    tint = any_color(rng)
    half, tall, lid = rng.uniform(0.14, 0.45) * size, rng.uniform(0.28, 0.62) * size, 0.05 * size
    left, right, top = x - half, x + half, base - tall
    sprite.rectangle(left, top, right, base, tint)
    sprite.polygon(
        [(left + lid, top - lid), (right - lid, top - lid), (right, top), (left, top)],
        tone(tint, 1.25),
    )
    for seam in np.linspace(left, right, int(rng.integers(2, 6)))[1:-1]:
        sprite.line((seam, top), (seam, base), lid / 4, tone(tint, 0.72))
    sprite.rectangle(left, base - lid / 2, right, base, tone(tint, 0.6))


def litter_bin(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A round bin, shaded from side to side."""
    tint = any_color(rng)
    half, tall = rng.uniform(0.12, 0.22) * size, rng.uniform(0.4, 0.55) * size
    sprite.ellipse((x, base), (half, 0.03 * size), tone(tint, 0.7))
    for n in np.linspace(-1, 1, 9)[:-1]:
        middle = n + 0.125
        shade = 1.0 - 0.4 * middle**2 + 0.2 * light * middle
        sprite.rectangle(x + n * half, base - tall, x + (n + 0.25) * half, base, tone(tint, shade))
    sprite.ellipse((x, base - tall), (half, 0.035 * size), tone(tint, 0.45))


def pole(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A pillar, a lamp post or a tree trunk that reaches the top of the picture."""
    half = rng.uniform(0.04, 0.13) * size
    tint: Color = any_color(rng) if rng.random() < 0.4 else (112, 100, 88)
    for n in np.linspace(-1, 1, 13)[:-1]:
        middle = n + 1 / 12
        shade = 1.05 - 0.45 * middle**2 + 0.18 * light * middle
        sprite.rectangle(x + n * half, -1, x + (n + 1 / 6) * half, base, tone(tint, shade))


def _leaves(
    sprite: Sprite,
    x: float,
    y: float,
    spread: tuple[float, float],
    size: float,
    rng: np.random.Generator,
) -> None:
    green = rng.uniform((44, 82, 36), (92, 122, 62))
    count = 130
    places = np.clip(rng.normal(0, 0.6, (count, 2)), -1.15, 1.15) * spread + (x, y)
    axes = rng.uniform((0.02, 0.014), (0.055, 0.034), (count, 2)) * size
    turns, shades = rng.uniform(0, 180, count), rng.uniform(0.5, 1.3, count)
    # The upper leaves catch the light.
    shades *= 1.0 - 0.25 * (places[:, 1] - y) / max(spread[1], 1.0)
    for i in range(count):
        r, g, b = np.clip(green * shades[i], 0, 255).astype(int).tolist()
        at, half = (places[i, 0], places[i, 1]), (axes[i, 0], axes[i, 1])
        sprite.ellipse(at, half, (r, g, b), turns[i])


def bush(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """Leaves that grow from the ground."""
    wide, tall = rng.uniform(0.16, 0.32) * size, rng.uniform(0.12, 0.26) * size
    _leaves(sprite, x, base - 0.8 * tall, (wide, tall), size, rng)


def branches(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """Leaves that hang in front of the head and shoulders of a person at ``base``."""
    wide, tall = rng.uniform(0.18, 0.32) * size, rng.uniform(0.14, 0.26) * size
    _leaves(sprite, x, base - rng.uniform(0.75, 1.0) * size, (wide, tall), size, rng)


def car(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """The side of a parked car: body, windows, wheels."""
    tint, s = any_color(rng), size * rng.uniform(0.85, 1.1)
    flip = 1 if rng.random() < 0.5 else -1

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + flip * s * right, base - s * up) for right, up in points]

    sprite.polygon(at((-0.98, 0.02), (-0.98, 0.1), (0.98, 0.1), (0.98, 0.02)), (30, 30, 32))
    sprite.polygon(at((-0.62, 0.37), (-0.36, 0.62), (0.42, 0.62), (0.76, 0.38)), tone(tint, 0.92))
    sprite.polygon(at((-0.52, 0.40), (-0.33, 0.585), (0.02, 0.585), (0.02, 0.40)), (58, 68, 76))
    sprite.polygon(at((0.06, 0.40), (0.06, 0.585), (0.39, 0.585), (0.62, 0.40)), (66, 76, 84))
    sprite.polygon(
        at((-1.1, 0.08), (-1.1, 0.31), (-0.7, 0.395), (0.76, 0.41), (1.1, 0.33), (1.12, 0.08)), tint
    )
    sprite.polygon(at((-1.1, 0.08), (-1.1, 0.15), (1.12, 0.15), (1.12, 0.08)), tone(tint, 0.6))
    for start, end in (((0.04, 0.39), (0.04, 0.12)), ((-0.5, 0.38), (-0.5, 0.14))):
        first, last = at(start, end)
        sprite.line(first, last, 0.01 * s, tone(tint, 0.7))
    for wheel in at((-0.70, 0.11), (0.70, 0.11)):
        sprite.ellipse(wheel, (0.125 * s, 0.125 * s), (34, 34, 36))
        sprite.ellipse(wheel, (0.065 * s, 0.065 * s), (150, 150, 152))


def bench(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A bench with a back, seen from the front."""
    tint, half = tone((140, 104, 70), rng.uniform(0.7, 1.1)), rng.uniform(0.3, 0.5) * size
    for leg in (-0.85, 0.85):
        left = x + leg * half
        sprite.rectangle(
            left - 0.02 * size, base - 0.26 * size, left + 0.02 * size, base, (60, 60, 62)
        )
    for up in (0.25, 0.36, 0.44):
        sprite.rectangle(x - half, base - (up + 0.05) * size, x + half, base - up * size, tint)


def poster(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A framed poster or a notice on a wall; ``base`` is its lower edge."""
    half, tall = rng.uniform(0.08, 0.28) * size, rng.uniform(0.2, 0.5) * size
    ground, ink = any_color(rng), any_color(rng)
    edge = 0.02 * size
    sprite.rectangle(
        x - half - edge, base - tall - edge, x + half + edge, base + edge, (70, 68, 66)
    )
    sprite.rectangle(x - half, base - tall, x + half, base, ground)
    sprite.rectangle(x - 0.7 * half, base - 0.9 * tall, x + 0.7 * half, base - 0.5 * tall, ink)
    for row in (0.36, 0.24, 0.12):
        y = base - row * tall
        sprite.line((x - 0.7 * half, y), (x + 0.6 * half, y), edge, tone(ground, 0.6))


def door(
    sprite: Sprite, x: float, base: float, size: float, light: float, rng: np.random.Generator
) -> None:
    """A door in a wall, with its frame and a pane."""
    half, tall, tint = rng.uniform(0.2, 0.32) * size, 1.15 * size, any_color(rng)
    sprite.rectangle(x - 1.15 * half, base - 1.04 * tall, x + 1.15 * half, base, tone(tint, 0.6))
    sprite.rectangle(x - half, base - tall, x + half, base, tint)
    sprite.rectangle(
        x - 0.6 * half, base - 0.9 * tall, x + 0.6 * half, base - 0.5 * tall, (74, 86, 94)
    )
