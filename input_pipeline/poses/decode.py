"""From the outputs of pose models to positions in their input (NumPy, vectorised over images)."""

import numpy as np
from jaxtyping import Float, Float32, Integer


def decode_heatmaps(
    maps: Float[np.ndarray, "images joints rows columns"],
    input_size: tuple[int, int],
    *,
    udp: bool = False,
) -> tuple[Float[np.ndarray, "images joints 2"], Float[np.ndarray, "images joints"]]:
    """Peaks of heat maps, to fractions of a cell.

    On each axis, the peak is the vertex of the parabola through the logarithms of the maximum and
    its two neighbours, which is exact for a Gaussian. At the border of the map, or next to a value
    that is not positive, it is the cell itself. Cell i of w is input pixel i · W / w (HRNet), or
    i · (W - 1) / (w - 1) with ``udp`` (ViTPose, and all models trained with UDP).

    Args:
        maps: (N, J, h, w).
        input_size: (H, W) of the input in pixels.
        udp: whether cells map to pixels by UDP's convention.

    Returns:
        (N, J, 2) x, y in pixels of the input, and (N, J) the maxima clipped to [0, 1].

    >>> maps = np.exp(-((np.arange(12) - 5.25) ** 2) / 2)[None, None, None] * np.ones((1, 1, 3, 1))
    >>> decode_heatmaps(maps, (12, 48))[0].round(6)  # cell 5.25 is pixel 5.25 · 48 / 12
    array([[[21.,  0.]]])
    """
    size = np.array(maps.shape[2:])
    flat = maps.reshape(*maps.shape[:2], -1)
    y, x = np.unravel_index(flat.argmax(axis=-1), maps.shape[2:])
    images, joints = np.ogrid[: maps.shape[0], : maps.shape[1]]
    rows = maps[images, joints, y]  # (N, J, w): the row through each peak
    columns = maps[images, joints, :, x]  # (N, J, h)
    cells = np.stack([x + _vertex(rows, x), y + _vertex(columns, y)], axis=-1)
    step = (np.array(input_size) - udp) / np.maximum(size - udp, 1)
    return cells * step[::-1], flat.max(axis=-1).clip(0, 1)


def _vertex(
    lines: Float[np.ndarray, "images joints length"], peaks: Integer[np.ndarray, "images joints"]
) -> Float[np.ndarray, "images joints"]:
    """Offset in [-0.5, 0.5] of the log-parabola's vertex from each line's peak.

    Args:
        lines: (N, J, L) values along an axis.
        peaks: (N, J) the index of each line's maximum.

    Returns:
        (N, J) offsets; 0 where a neighbour is missing or not positive, and on a plateau.
    """
    length = lines.shape[-1]
    indices = np.stack([peaks - 1, peaks, peaks + 1], axis=-1)
    three = np.take_along_axis(lines, indices.clip(0, length - 1), axis=-1).astype(np.float64)
    usable = (peaks > 0) & (peaks < length - 1) & (three > 0).all(axis=-1)
    before, here, after = np.moveaxis(np.log(np.where(usable[..., None], three, 1.0)), -1, 0)
    curvature = 2 * here - before - after  # ≥ 0, since here is the maximum
    flat = curvature <= 0
    return np.where(flat, 0.0, (after - before) / np.where(flat, 1.0, 2 * curvature))


def decode_simcc(
    x_scores: Float32[np.ndarray, "images joints x_bins"],
    y_scores: Float32[np.ndarray, "images joints y_bins"],
    input_size: tuple[int, int],
) -> tuple[Float[np.ndarray, "images joints 2"], Float32[np.ndarray, "images joints"]]:
    """Peaks of SimCC's two classifications (RTMPose).

    Bin i of L along an axis of W input pixels is pixel i · W / L.

    Args:
        x_scores: (N, J, Lx).
        y_scores: (N, J, Ly).
        input_size: (H, W) of the input in pixels.

    Returns:
        (N, J, 2) x, y in pixels of the input, and (N, J) the smaller of the two maxima, clipped to
        [0, 1].
    """
    height, width = input_size
    x = x_scores.argmax(axis=-1) * (width / x_scores.shape[-1])
    y = y_scores.argmax(axis=-1) * (height / y_scores.shape[-1])
    confidence = np.minimum(x_scores.max(axis=-1), y_scores.max(axis=-1))
    return np.stack([x, y], axis=-1), confidence.clip(0, 1)
