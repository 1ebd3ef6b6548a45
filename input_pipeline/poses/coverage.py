"""How much of a data set a pose file covers, and which poses and images are left over."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from input_pipeline.keypoints import JOINTS
from input_pipeline.poses.cache import PoseCache
from input_pipeline.poses.images import Images
from input_pipeline.poses.importing import Joined

_SHOWN = 10  # names listed of each kind


@dataclasses.dataclass(frozen=True, eq=False)
class Coverage:
    """Counts of images and poses.

    Attributes:
        images: split → number of images.
        posed: split → number of images with a pose.
        confidence: (17,) mean confidence of each joint over the images with keypoints; NaN if none.
        mapped: number of images whose pose consists of part maps.
        people: number of people in an image → number of images, as far as pose files say.
        left_over: what is left over → the names, sorted.
        superseded: number of poses that gave way to another one of the same image.
    """

    images: dict[str, int]
    posed: dict[str, int]
    confidence: Float[np.ndarray, "17"]
    mapped: int
    people: dict[int, int]
    left_over: dict[str, Sequence[str]]
    superseded: int


def coverage(
    images: Images, cache: PoseCache, joined: Joined | None = None, undecodable: Sequence[str] = ()
) -> Coverage:
    """Count what a pose file covers.

    Args:
        images: of the data set.
        cache: the poses made for it.
        joined: of imported poses, the annotations of the images.
        undecodable: of estimated poses, the images that could not be decoded.
    """
    posed = collections.Counter(cache.splits.tolist())
    drawn = cache.keypoints[cache.keypoints[..., 2].any(axis=1)]
    people = collections.Counter(
        int(annotation.people[..., 2].any(axis=1).sum())
        for annotation in (joined.annotations if joined else ())
        if annotation is not None and annotation.part_maps is None
    )
    left_over = {
        "poses without an image": joined.unmatched if joined else (),
        "poses with several possible images": joined.ambiguous if joined else (),
        "images that cannot be decoded": undecodable,
    }
    splits = collections.Counter(images.splits.tolist())
    return Coverage(
        images=dict(sorted(splits.items())),
        posed={split: posed[split] for split in sorted(splits)},
        confidence=drawn[..., 2].mean(axis=0) if len(drawn) else np.full(len(JOINTS), np.nan),
        mapped=len(cache) - len(drawn),
        people=dict(sorted(people.items())),
        left_over={kind: names for kind, names in left_over.items() if names},
        superseded=joined.superseded if joined else 0,
    )


def format_coverage(found: Coverage, left_over_file: Path) -> str:
    """The report as text."""
    lines = [f"{'split':20} {'images':>8} {'with pose':>10} {'share':>7}"]
    total = ("all", sum(found.images.values()), sum(found.posed.values()))
    rows = [(split, count, found.posed[split]) for split, count in found.images.items()]
    for split, count, posed in (*rows, total):
        lines.append(f"{split:20} {count:8,} {posed:10,} {posed / count if count else 0:7.1%}")
    if found.mapped:
        lines.append(f"of these as part maps: {found.mapped:,}")
    if not np.isnan(found.confidence).any():
        lines += ["mean confidence", *_confidence_lines(found.confidence)]
    if found.people:
        counts = (f"{people} in {count:,}" for people, count in found.people.items())
        lines.append(f"people per image: {', '.join(counts)} images")
    if found.superseded:
        lines.append(f"other poses of the same images, not used: {found.superseded:,}")
    for kind, names in found.left_over.items():
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        lines.append(f"{kind}: {len(names):,} ({', '.join(names[:_SHOWN])}{more})")
    if found.left_over:
        lines.append(f"all of these: {left_over_file}")
    return "\n".join(lines)


def _confidence_lines(confidence: np.ndarray) -> list[str]:
    """The nose, then a line for each pair of joints."""
    values = dict(zip(JOINTS, confidence, strict=True))
    lines = [f"  {'nose':10} {values.pop('nose'):5.2f}"]
    for joint in [joint for joint in values if joint.startswith("left_")]:
        name = joint.removeprefix("left_")
        lines.append(f"  {name:10} {values[joint]:5.2f} left {values['right_' + name]:5.2f} right")
    return lines


def write_left_over(found: Coverage, path: Path) -> None:
    """List everything left over, one per line: its kind, a tab, its name; no file if nothing is."""
    lines = [f"{kind}\t{name}\n" for kind, names in found.left_over.items() for name in names]
    if not lines:
        path.unlink(missing_ok=True)
        return
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(lines), encoding="utf-8")
    beside.replace(path)
