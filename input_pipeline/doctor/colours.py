"""Pictures whose colours match another identity better than their own: labels worth a look."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Float32, Int, Int64

from input_pipeline.cores import available_cores
from input_pipeline.doctor.statistics import Split
from input_pipeline.progress import progress

# Bins of lightness and of both colour axes of 8-bit CIELAB, and the values they divide: coarse,
# because light and noise move colours. Values beyond the limits count as the limits.
_BINS = (5, 7, 7)
_LOWEST = np.array([0, 100, 100], np.uint8)
_HIGHEST = np.array([255, 155, 155], np.uint8)
_RANGES = [0, 256, 100, 156, 100, 156]
_ROWS = 32  # images are reduced while they are decoded, to at least so many rows
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_CHUNK = 1024  # rows of the distances that are in memory at once


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One image of a split."""

    split: Split
    row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Suspect:
    """A picture whose label may be wrong.

    Attributes:
        picture: the picture.
        own: the picture of its identity with the most similar colours.
        other: the picture of another identity under its camera with the most similar colours.
        excess: by how much ``own`` is farther away than ``other``; above 0, at most 1.
    """

    picture: Picture
    own: Picture
    other: Picture
    excess: float


def suspects(
    splits: Sequence[Split], people: Int[np.ndarray, " people"], count: int = 6
) -> list[Suspect]:
    """Pictures whose colours match another identity much better than their own.

    This is a hint. Occlusion, light and similar clothes have the same effect, and a wrong label
    between people in similar clothes has none. A large distance within an identity alone would be a
    worse one: it finds the occluded pictures.

    Args:
        splits: where identities mean the same people.
        people: the identities to compare.
        count: maximum number of suspects, one for each identity.

    Returns:
        The clearest first; a function of the arguments only.
    """
    pictures = [
        Picture(split, int(row))
        for split in splits
        for row in np.setdiff1d(
            np.flatnonzero(np.isin(split.catalog.identities, people)), split.unreadable
        )
    ]
    if not pictures:
        return []
    catalogs = [(picture.split.catalog, picture.row) for picture in pictures]
    identities = np.array([catalog.identities[row] for catalog, row in catalogs])
    cameras = np.array([catalog.cameras[row] for catalog, row in catalogs])
    colours = _histograms(pictures)
    everyone = np.arange(len(pictures))
    own, own_distance = _nearest(colours, identities, everyone)
    other, other_distance = _nearest(colours, cameras, identities)
    excess = own_distance - other_distance  # NaN where there is no other picture
    order = [row for row in np.argsort(-excess, kind="stable") if excess[row] > 0]
    _, firsts = np.unique(identities[order], return_index=True)
    return [
        Suspect(pictures[row], pictures[own[row]], pictures[other[row]], float(excess[row]))
        for row in (order[first] for first in np.sort(firsts)[:count])
    ]


def _nearest(
    colours: Float32[np.ndarray, "pictures bins"],
    groups: Int[np.ndarray, " pictures"],
    labels: Int[np.ndarray, " pictures"],
) -> tuple[Int64[np.ndarray, " pictures"], Float32[np.ndarray, " pictures"]]:
    """The nearest picture of the same group under another label, and its distance; NaN if none.

    The Hellinger distance: 0 for equal histograms, 1 for those without a common colour.
    """
    nearest = np.zeros(len(colours), np.int64)
    distances = np.full(len(colours), np.nan, np.float32)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        for rows in np.split(members, range(_CHUNK, len(members), _CHUNK)):
            overlap = colours[rows] @ colours[members].T
            overlap[labels[rows][:, None] == labels[members]] = -np.inf
            best = overlap.argmax(axis=1)
            nearest[rows] = members[best]
            found = overlap[np.arange(len(rows)), best]
            distances[rows] = np.where(np.isinf(found), np.nan, np.sqrt(np.maximum(1 - found, 0)))
    return nearest, distances


def _histograms(pictures: Sequence[Picture]) -> Float32[np.ndarray, "pictures bins"]:
    with ThreadPoolExecutor(available_cores()) as pool:
        rows = pool.map(_histogram, pictures)
        return np.stack([*progress(rows, "colours", total=len(pictures), unit=" images")])


def _histogram(picture: Picture) -> Float32[np.ndarray, " bins"]:
    catalog = picture.split.catalog
    return colour_histogram(catalog.images[picture.row], int(catalog.image_sizes[picture.row, 0]))


def colour_histogram(encoded: bytes, height: int) -> Float32[np.ndarray, " bins"]:
    """Roots of the colours' shares in the upper and lower half, in the middle of the width.

    The middle is mostly the person, as boxes are drawn around people.

    Args:
        encoded: a JPEG or PNG that can be decoded.
        height: its rows.

    Returns:
        Of unit length, or zeros if OpenCV cannot decode it. The dot product of two is the overlap
        of their histograms (the Bhattacharyya coefficient).
    """
    reduction = next(factor for factor in _REDUCED if factor == 1 or height >= factor * _ROWS)
    flags = _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:  # unlike TensorFlow, OpenCV cannot decode it; it resembles nothing
        return np.zeros(2 * np.prod(_BINS), np.float32)
    height, width = pixels.shape[:2]
    margin = 3 * width // 10
    lab = cv2.cvtColor(pixels[:, margin : width - margin], cv2.COLOR_BGR2LAB)
    lab = lab.clip(_LOWEST, _HIGHEST)
    halves = lab[: (height + 1) // 2], lab[height // 2 :]
    counts = np.stack([cv2.calcHist([half], [0, 1, 2], None, _BINS, _RANGES) for half in halves])
    return np.sqrt(counts / counts.sum()).ravel()
