"""PGFA: OpenPose-style JSON, and dense confidence maps as .npy."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from input_pipeline.keypoints import NUM_PARTS
from input_pipeline.poses.annotation import Annotation, PoseFile, pose_files, stack_people
from input_pipeline.poses.formats.openpose import read_people
from input_pipeline.poses.joints import ORDERS, part_channels
from input_pipeline.progress import progress

_CHANNELS = {count: part_channels(order) for count, order in ORDERS.items()}
_CHANNELS[NUM_PARTS] = [[part] for part in range(NUM_PARTS)]  # the eight parts themselves
# Resampled maps exceed [0, 1] slightly; maps of 255 grey levels, or logits, exceed it by far.
_FAR_OUTSIDE = (-0.5, 1.5)


def read_pgfa(path: Path) -> Iterator[Annotation]:
    """Read ``sep-json/STEM.json`` and ``heatmaps/18heatmap_SPLIT/STEM.npy``, as far as they exist.

    A JSON file beside a folder ``sep-json`` is not read: AlphaPose writes the same people there
    once more, all images in one file. Dense maps of ones throughout mean nobody.

    Raises:
        DataError: malformed, or dense maps of different sizes.
    """
    first: tuple[Path, tuple[int, ...]] | None = None
    for file in progress(pose_files(path, (".json", ".npy")), "reading"):
        if _is_summary(file):
            continue
        if file.path.suffix.lower() == ".json":
            yield Annotation(file.source, file.source, read_people(file.read_json(), file))
            continue
        maps = read_part_maps(file)
        first = first or (file.path, maps.shape)
        if maps.shape != first[1]:
            sizes = "{}×{} cells, but {} has {}×{}".format(*maps.shape[:2], first[0], *first[1])
            raise file.error(f"{sizes}; import maps of one size")
        nobody = (maps == 255).all()  # how PGFA marks an image without a person
        part_maps = None if nobody else maps
        yield Annotation(file.source, file.source, stack_people([]), part_maps=part_maps)


def _is_summary(file: PoseFile) -> bool:
    """Whether a file is AlphaPose's summary of a folder ``sep-json`` beside it."""
    return file.path.suffix.lower() == ".json" and (file.path.parent / "sep-json").is_dir()


def read_part_maps(file: PoseFile) -> UInt8[np.ndarray, "rows columns 8"]:
    """Dense maps of joints or parts as maps of the eight parts.

    A part's map is the maximum over the channels of its joints. The neck counts for head and torso;
    the toes and heels of 25 channels for the feet.

    Args:
        file: an .npy of (C, h, w) in [0, 1]. C = 8: the parts in this project's order; 17, 18, 25:
            joints in the order of COCO, of OpenPose's COCO model (PGFA), of BODY_25.

    Returns:
        (h, w, 8) uint8, 255 for 1.

    Raises:
        DataError: unreadable, of a different shape, with the channels last, not finite, far
            outside [0, 1], or with a channel for the background.
    """
    content = io.BytesIO(file.path.read_bytes())
    try:
        maps = np.load(content, allow_pickle=False)
    except Exception:  # NumPy raises almost anything for a damaged file
        raise file.error("not an .npy array of numbers, or a damaged one") from None
    known = ", ".join(map(str, sorted(_CHANNELS)))
    if not isinstance(maps, np.ndarray) or maps.dtype.kind not in "biuf":
        raise file.error("not an .npy array of numbers")
    if maps.ndim != 3 or len(maps) not in _CHANNELS or not maps.size:
        raise file.error(f"shape {maps.shape}, not (channels, height, width) of {known} channels")
    height, width = maps.shape[1:]
    if height < width and width in _CHANNELS and maps.shape[0] >= height:
        raise file.error(
            f"shape {maps.shape} seems to be (height, width, channels), as a person is upright; "
            "give (channels, height, width)"
        )
    if not np.isfinite(maps).all():
        raise file.error("values must be finite")
    if maps.min() < _FAR_OUTSIDE[0] or maps.max() > _FAR_OUTSIDE[1]:
        raise file.error(f"values from {maps.min():g} to {maps.max():g}; they must be in [0, 1]")
    for channel in (0, len(maps) - 1):
        if _is_background(maps, channel):
            raise file.error(
                f"channel {channel} of {len(maps)} is 1 - the maximum of the others: the "
                "background; leave it out"
            )
    parts = np.stack([maps[channels].max(axis=0) for channels in _CHANNELS[len(maps)]], axis=-1)
    return np.rint(parts.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)


def _is_background(maps: np.ndarray, channel: int) -> bool:
    """Whether a channel is where nothing is: about 1 - the maximum of the others.

    With it, 17 joints would be taken for another 18. The channel of a joint differs from that at
    its peak, or wherever there is nobody.
    """
    values = maps.astype(np.float32)
    rest = 1 - np.delete(values, channel, axis=0).max(axis=0)
    return bool(values[channel].max() > 0.5 and np.abs(values[channel] - rest).max() < 0.2)
