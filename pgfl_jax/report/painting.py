"""Maps in colour over a grey picture."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

PART_COLORS: Int[np.ndarray, "8 3"] = np.array(
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
"""Red, green, blue of each body part."""

ENERGY_COLOR = (235, 173, 71)
"""That of the main branch's energy."""

_LUMA = np.array([0.299, 0.587, 0.114])


def paint_parts(
    picture: UInt8[np.ndarray, "height width 3"], maps: Float[np.ndarray, "rows columns parts"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Part maps over a picture: each cell in the colour of its strongest part.

    Args:
        picture: RGB.
        maps: in [0, 1], over the whole picture.
    """
    strength = maps.max(axis=-1)
    return _paint(picture, PART_COLORS[maps.argmax(axis=-1)] * strength[..., None], strength)


def paint_energy(
    picture: UInt8[np.ndarray, "height width 3"], energy: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "height width 3"]:
    """One map over a picture.

    Args:
        picture: RGB.
        energy: in [0, 1], over the whole picture.
    """
    return _paint(picture, np.array(ENERGY_COLOR) * energy[..., None], energy)


def _paint(
    picture: UInt8[np.ndarray, "height width 3"],
    color: Float[np.ndarray, "rows columns 3"],
    strength: Float[np.ndarray, "rows columns"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Blend colours, which are multiplied by their strength, with the darkened grey picture."""
    size = picture.shape[1], picture.shape[0]
    red, green, blue, opacity = (
        np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR))
        for layer in np.stack([*np.moveaxis(color, -1, 0), strength]).astype(np.float32)
    )
    grey = 0.5 * (picture @ _LUMA) * (1 - 0.8 * opacity)
    blended = grey[..., None] + 0.8 * np.stack([red, green, blue], axis=-1)
    return blended.clip(0, 255).astype(np.uint8)
