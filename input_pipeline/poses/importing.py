"""From annotations of any format to the pose file: join, scale, choose the target, check."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_JOINTS, origin_warnings, without_origin
from input_pipeline.poses.annotation import Annotation
from input_pipeline.poses.cache import PoseCache
from input_pipeline.poses.images import Images
from input_pipeline.poses.join import AMBIGUOUS, UNMATCHED, ImageIndex
from input_pipeline.poses.target import choose_target
from input_pipeline.validation import check_pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """The annotation of each image.

    Attributes:
        annotations: for each of the N images, its annotation or None.
        unmatched: labels of annotations whose image is not in the data set, sorted.
        ambiguous: labels of annotations that could belong to different images, sorted.
        superseded: number of annotations that gave way to another one of the same image.
        at_origin: number of joints at (0, 0) whose confidence was set to 0, of each annotation that
            belongs to an image and had any.
    """

    annotations: Sequence[Annotation | None]
    unmatched: tuple[str, ...]
    ambiguous: tuple[str, ...]
    superseded: int
    at_origin: Sequence[int] = ()


def join(images: Images, annotations: Iterable[Annotation], root: str) -> Joined:
    """Give every image its annotation.

    If several files belong to one image, the one whose folders agree best with the image's wins;
    then keypoints win over part maps and part maps over an empty file; then the first by name.

    Args:
        images: of the data set.
        annotations: as read, with paths below ``root``.
        root: the folder that the paths are relative to; its name, too, can tell equal stems apart.
    """
    index = ImageIndex(images)
    chosen: dict[int, tuple[Annotation, int]] = {}
    lost: dict[int, list[str]] = {UNMATCHED: [], AMBIGUOUS: []}
    superseded = 0
    at_origin: list[int] = []
    for annotation in annotations:
        content, shared = index.find(annotation.image, root)
        if content in lost:
            lost[content].append(annotation.label)
            continue
        people, dropped = without_origin(annotation.people)
        if dropped.any():
            annotation = dataclasses.replace(annotation, people=people)
            at_origin.append(int(dropped.sum()))
        superseded += content in chosen
        claim = (annotation, shared)
        chosen[content] = min(chosen.get(content, claim), claim, key=lambda one: _rank(*one))
    return Joined(
        annotations=[
            chosen[content][0] if content in chosen else None for content in index.contents.tolist()
        ],
        unmatched=tuple(sorted(lost[UNMATCHED])),
        ambiguous=tuple(sorted(lost[AMBIGUOUS])),
        superseded=superseded,
        at_origin=at_origin,
    )


def _rank(annotation: Annotation, shared: int) -> tuple[int, int, str]:
    """Sort key; the lowest annotation wins. ``shared`` counts components of the image's path."""
    kind = 0 if annotation.people[..., 2].any() else 2 if annotation.part_maps is None else 1
    return -shared, kind, annotation.label


def build_cache(
    images: Images,
    joined: Joined,
    *,
    estimator: str,
    seen_size: tuple[int, int] | None = None,
    keep_distractors: bool = False,
) -> tuple[PoseCache, list[str]]:
    """The pose file's rows, from annotations that are joined to their images.

    The target is the flagged person, else the one that :func:`choose_target` picks. An image whose
    target has no confident joint has no pose.

    Args:
        images: of the data set.
        joined: their annotations.
        estimator: what made the poses.
        seen_size: height, width to which the images were resized for the estimator; None: the size
            that an annotation gives, or else that of the image.
        keep_distractors: whether to keep the people who are not the target.

    Returns:
        The pose file's content, and warnings, one line each.

    Raises:
        DataError: no image has a pose, or the coordinates cannot be pixels of these images.
    """
    warnings = [] if seen_size else _other_sizes(images, joined)
    warnings += origin_warnings("--input", sum(joined.at_origin), len(joined.at_origin))
    poses = [
        pose
        for row, annotation in enumerate(joined.annotations)
        if annotation is not None and (pose := _pose(row, annotation, images.sizes[row], seen_size))
    ]
    if not poses:
        raise DataError(_nothing_found(joined))
    rows = np.array([pose.row for pose in poses])
    keypoints = np.stack([pose.target for pose in poses])
    found = check_pixels(
        "--input", images.filenames[rows], keypoints, images.sizes[rows], _remedy(seen_size)
    )
    found.raise_errors()
    others = [pose.others for pose in poses]
    owners = np.repeat(np.arange(len(poses)), [len(people) for people in others])
    cache = PoseCache(
        image_sha256=images.sha256[rows],
        splits=images.splits[rows],
        filenames=images.filenames[rows],
        keypoints=keypoints,
        sources=np.array([pose.source for pose in poses]),
        estimators=np.full(len(poses), estimator),
        part_maps=_stack_maps([pose.part_maps for pose in poses]),
        distractors=np.concatenate(others) if keep_distractors else None,
        distractor_rows=owners if keep_distractors else None,
    )
    return cache, warnings + found.warnings


def _other_sizes(images: Images, joined: Joined) -> list[str]:
    """A warning about images whose annotations give them another size; DataError if turned."""
    given = {
        row: annotation.size
        for row, annotation in enumerate(joined.annotations)
        if annotation and annotation.size and annotation.size != tuple(images.sizes[row])
    }
    turned = [row for row, size in given.items() if size[::-1] == tuple(images.sizes[row])]
    if not given:
        return []
    row = (turned or [*given])[0]
    first = (
        f"(first: {images.filenames[row]}, height × width {_times(given[row])} there, "
        f"{_times(images.sizes[row])} here)"
    )
    if turned:
        raise DataError(
            f"--input: it swaps height and width of {len(turned):,} images {first}; correct them, "
            "or turn the images and make their poses again"
        )
    return [
        f"--input: it gives {len(given):,} images another size than they have {first}; their "
        "keypoints are scaled"
    ]


def _times(size: Iterable[int]) -> str:
    """A size as text.

    >>> _times((128, 64))
    '128 × 64'
    """
    return " × ".join(map(str, size))


@dataclasses.dataclass(frozen=True, eq=False)
class _Pose:
    """One image's pose: its row, the target (17, 3), the others (P, 17, 3), or part maps."""

    row: int
    source: str
    target: Float32[np.ndarray, "17 3"]
    others: Float32[np.ndarray, "others 17 3"]
    part_maps: UInt8[np.ndarray, "rows columns 8"] | None = None


def _pose(
    row: int, annotation: Annotation, size: np.ndarray, seen_size: tuple[int, int] | None
) -> _Pose | None:
    """The pose that an annotation gives an image; people without a confident joint do not count."""
    people = _to_stored_pixels(annotation.people, size, seen_size or annotation.size)
    if len(people):
        chosen = annotation.target
        if chosen is None:
            chosen = choose_target(people, *size.tolist())
        if not people[chosen, :, 2].any():
            return None
        others = np.delete(people, chosen, axis=0)
        return _Pose(row, annotation.source, people[chosen], others[others[..., 2].any(axis=1)])
    if annotation.part_maps is None or not annotation.part_maps.any():
        return None
    nobody = np.zeros((NUM_JOINTS, 3), np.float32)
    return _Pose(row, annotation.source, nobody, people, annotation.part_maps)


def _to_stored_pixels(
    people: Float32[np.ndarray, "people 17 3"], size: np.ndarray, seen_size: tuple[int, int] | None
) -> Float32[np.ndarray, "people 17 3"]:
    """Keypoints of the resized image as keypoints of the stored one: x' = (x + 0.5) W / w - 0.5."""
    if seen_size is None or seen_size == tuple(size):
        return people
    people = people.copy()
    scale = (size / seen_size)[::-1].astype(np.float32)
    people[..., :2] = (people[..., :2] + np.float32(0.5)) * scale - np.float32(0.5)
    return people


def _stack_maps(
    maps: list[np.ndarray | None],
) -> UInt8[np.ndarray, "posed rows columns 8"] | None:
    """(M, h, w, 8) with zeros where a row has none; None if no row has any."""
    shape = next((one.shape for one in maps if one is not None), None)
    if shape is None:
        return None
    return np.stack([np.zeros(shape, np.uint8) if one is None else one for one in maps])


def _nothing_found(joined: Joined) -> str:
    """Why there is no pose at all."""
    lost = joined.unmatched + joined.ambiguous
    if any(annotation is not None for annotation in joined.annotations):
        return "--input: its files belong to images of the data set, but none shows a person"
    return (
        f"--input: none of its {len(lost)} poses belongs to exactly one image of the data set "
        f"(first: {lost[0]}); poses are joined by file name and folder: check --dataset and --input"
    )


def _remedy(seen_size: tuple[int, int] | None) -> str:
    """What to do about keypoints outside their images."""
    if seen_size:
        return "check --seen-size"
    return "give the size at which the estimator saw the images as --seen-size HEIGHT WIDTH"
