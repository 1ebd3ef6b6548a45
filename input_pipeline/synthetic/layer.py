"""A transparent picture to draw on, and the one primitive that bodies are made of.

Pictures are planar, (channels, height, width), and drawn at ``SUPERSAMPLING`` times the resolution
of the stored image; the camera downsamples them.
"""

import dataclasses
from collections.abc import Callable
from math import hypot

import numpy as np
from jaxtyping import Float, Float32

SUPERSAMPLING = 2

# (along in 0..1, across in -1..1), both (h, w) → colour in 0..255, (3, 1, 1) or (3, h, w).
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]

_STEPS = 64  # resolution of a profile
_EVENLY = np.linspace(0.0, 1.0, _STEPS)


def new_layer(height: int, width: int) -> Float32[np.ndarray, "4 {height} {width}"]:
    """An empty layer: premultiplied colour in 0..255, alpha in 0..1."""
    return np.zeros((4, height, width), np.float32)


def over(
    below: Float32[np.ndarray, "channels height width"],
    layer: Float32[np.ndarray, "4 height width"],
) -> None:
    """Composite ``layer`` over ``below``, which has 3 or 4 channels, in place."""
    below *= 1.0 - layer[3]
    below += layer[: len(below)]


@dataclasses.dataclass(frozen=True)
class Solid:
    """A solid of revolution seen from the side: a limb, a trunk, a head, a skirt.

    Attributes:
        start: (x, y) of one end of the axis, pixels; the upper end of a standing body part.
        end: (x, y) of the other end.
        profile: (64,) half-widths in pixels, evenly spaced from ``start`` to ``end``.
        paint: colour by position along the axis and across it.
        depth: towards the camera; nearer solids are drawn later.
        shade: brightness factor of the whole solid.
        folds: depth of the folds of cloth, as a brightness fraction.
    """

    start: Float[np.ndarray, "2"]
    end: Float[np.ndarray, "2"]
    profile: Float[np.ndarray, "64"]
    paint: Paint
    depth: float
    shade: float = 1.0
    folds: float = 0.0


def profile(at: tuple[float, ...], widths: tuple[float, ...]) -> Float[np.ndarray, "64"]:
    """Half-widths interpolated linearly between the given positions in 0..1."""
    return np.interp(_EVENLY, at, widths)


def limb(
    start: Float[np.ndarray, " coordinates"],
    end: Float[np.ndarray, " coordinates"],
    radii: tuple[float, ...],
    paint: Paint,
    depth: float,
    shade: float = 1.0,
    folds: float = 0.0,
) -> Solid:
    """A limb with round ends: ``radii`` in pixels, evenly spaced from ``start`` to ``end``."""
    start, end = start[:2], end[:2]
    length = max(hypot(*(end - start)), 1e-3)
    axis = (end - start) / length
    at = _EVENLY * (length + radii[0] + radii[-1]) - radii[0]
    widths = np.interp(at, np.linspace(0.0, length, len(radii)), radii)
    beyond = np.maximum(np.maximum(-at / radii[0], (at - length) / radii[-1]), 0.0)
    widths *= np.sqrt(np.maximum(1.0 - beyond**2, 0.0))
    start, end = start - radii[0] * axis, end + radii[-1] * axis
    return Solid(start, end, widths, paint, depth, shade, folds)


def draw(layer: Float32[np.ndarray, "4 height width"], solid: Solid, light: float) -> None:
    """Draw one solid, anti-aliased and shaded like a column lit from the side.

    Args:
        layer: (4, height, width), changed in place.
        solid: the solid; parts outside the layer are cut off.
        light: direction of the light, -1 (left) to 1 (right).
    """
    (x0, y0), (x1, y1) = solid.start.tolist(), solid.end.tolist()
    reach = float(solid.profile.max()) + 1.0
    left, right = (
        max(int(min(x0, x1) - reach), 0),
        min(int(max(x0, x1) + reach) + 2, layer.shape[2]),
    )
    top, bottom = (
        max(int(min(y0, y1) - reach), 0),
        min(int(max(y0, y1) + reach) + 2, layer.shape[1]),
    )
    if left >= right or top >= bottom:
        return
    length = max(hypot(x1 - x0, y1 - y0), 1e-3)
    axis_x, axis_y = np.float32((x1 - x0) / length), np.float32((y1 - y0) / length)
    x = np.arange(left, right, dtype=np.float32) - np.float32(x0)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y0)
    along = (x * axis_x + y * axis_y) * np.float32(1 / length)
    distance = x * axis_y - y * axis_x
    # The table has an empty entry at either end, where nothing is drawn.
    table = np.zeros(_STEPS + 2, np.float32)
    table[1:-1] = solid.profile
    entry = np.minimum(np.maximum(along * np.float32(_STEPS - 1) + np.float32(1.5), 0), _STEPS + 1)
    half = table[entry.astype(np.int32)]
    coverage = np.minimum(np.maximum(half - np.abs(distance) + np.float32(0.5), 0), 1) * (half > 0)
    across = np.minimum(np.maximum(distance / np.maximum(half, np.float32(0.5)), -1), 1)
    brightness = np.float32(1.06) - across * (np.float32(0.34) * across - np.float32(0.16 * light))
    if solid.folds:
        brightness += np.float32(solid.folds) * np.sin(
            np.float32(13) * along + np.float32(4) * across
        )
    color = solid.paint(along, across)
    patch = layer[:, top:bottom, left:right]
    patch *= 1 - coverage
    patch[:3] += (coverage * brightness * np.float32(solid.shade)) * color
    patch[3] += coverage
