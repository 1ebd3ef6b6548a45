"""Procedural pictures on which an artifact can be checked anywhere, without people in them."""

import numpy as np
from jaxtyping import UInt8

COUNT = 32


def probe_pictures(height: int, width: int, *, seed: int = 0) -> UInt8[np.ndarray, "32 h w 3"]:
    """Smooth fields of colour with blocks and stripes over them, as RGB.

    Each picture has other colours at its top, bottom, left and right, so that swapped channels, a
    transposition or a shift by a pixel move its embedding.

    Args:
        height: of the pictures.
        width: of the pictures.
        seed: another seed gives other pictures.
    """
    rng = np.random.default_rng(seed)
    pictures = [_picture(rng, height, width) for _ in range(COUNT)]
    return np.stack(pictures)


def _picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    rows = np.linspace(0, 1, height)[:, None, None]
    columns = np.linspace(0, 1, width)[None, :, None]
    picture = np.full((height, width, 3), 128.0)
    for _ in range(4):  # waves of any direction, one phase a channel
        down, across = rng.uniform(-3, 3, 2)
        phase = rng.uniform(0, 2 * np.pi, 3)
        wave = np.sin(2 * np.pi * (down * rows + across * columns) + phase)
        picture += rng.uniform(10, 50, 3) * wave
    for _ in range(3):  # blocks
        top, left = rng.integers(0, height - 1), rng.integers(0, width - 1)
        tall, wide = rng.integers(2, height // 2), rng.integers(2, width // 2)
        picture[top : top + tall, left : left + wide] = rng.uniform(0, 255, 3)
    start, step, thick = rng.integers(0, height // 2), rng.integers(4, 12), rng.integers(1, 3)
    for line in range(thick):  # stripes below a row
        picture[start + line :: step] = rng.uniform(0, 255, 3)
    noise = rng.normal(0, 6, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)
