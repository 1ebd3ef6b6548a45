"""COCO: results (MMPose, ViTPose, HRNet) and ground-truth annotations."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.keypoints import NUM_JOINTS
from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    SIMCC_LIMIT,
    Annotation,
    PoseFile,
    field,
    group_by_image,
    orders_by_name,
    pose_files,
    read_person,
)
from input_pipeline.poses.join import bare_path
from input_pipeline.progress import progress

_VISIBLE = 2  # the flag of a joint that is labelled and visible; 1: labelled only, 0: neither
_LABELLED = 1


def read_coco(path: Path, annotations: Path | None = None) -> Iterator[Annotation]:
    """Read COCO results or annotations, one file or all of a folder.

    Results are a list of ``{"image_id", "category_id", "keypoints": [51 numbers], "score"}``, by
    Ultralytics also with a ``"file_name"``, which names the image if ``annotations`` do not.
    Annotations are ``{"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "keypoints"}]}`` with flags as confidences: 2 (labelled and visible) counts as 1, others as 0.
    If no file flags any joint with 2, 1 counts as 1: PoseTrack knows only 0 and 1. An annotation
    without keypoints is a person without a pose. Keypoints may also be lists of three. A list whose
    confidences are all 0, 1 or 2 has flags, too: it is the list of annotations alone.

    If ``categories`` name their ``keypoints``, the joints are mapped by name; otherwise they are
    COCO's 17. Numbers may be written as text.

    Args:
        path: a file or a folder.
        annotations: a file whose ``images`` name the image numbers of results, and whose
            ``categories`` name their joints.

    Raises:
        DataError: malformed, an image number without a name or with two, or unknown joints.
    """
    legend = _Legend()
    if annotations is not None:
        file = PoseFile(annotations, annotations.name)
        legend = _Legend.read(file.read_json(), file)
    flagged: list[Annotation] = []
    for file in progress(pose_files(path, (".json",)), "reading"):
        value = file.read_json()
        if isinstance(value, list) and not _have_flags(value):
            yield from group_by_image(list(_results(value, legend, file)), file, legend.sizes)
            continue
        whole = {"annotations": value} if isinstance(value, list) else value
        legend_here = legend if isinstance(value, list) else _Legend.read(value, file)
        named = list(_ground_truth(whole, legend_here, file))
        flagged += group_by_image(named, file, legend_here.sizes)
    yield from _flags_to_confidences(flagged)


@dataclasses.dataclass(frozen=True)
class _Legend:
    """What the numbers in COCO files mean. The keys are numbers as text.

    Attributes:
        names: image → file name.
        sizes: file name → height, width in pixels, where the file gives them.
        orders: category → which of its joints are COCO's, as in :func:`read_person`.
        path: the file that says so; None if none does.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    orders: Mapping[str, Mapping[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def read(cls, value: Any, file: PoseFile) -> "_Legend":
        """From ``images`` and, if there are any, ``categories``."""
        images = field(value, "images", list, file)
        categories = field(value, "categories", list, file) if "categories" in value else []
        names = _by_id("image", images, lambda image: field(image, "file_name", str, file), file)
        joint_names = _by_id("category", categories, lambda one: _joint_names(one, file), file)
        orders = {
            category: orders_by_name(one, file) if one else joints.COCO_ONLY
            for category, one in joint_names.items()
        }
        sizes: dict[str, tuple[int, int]] = {}
        for image in images:
            name, size = image["file_name"], _size(image)
            if size and sizes.setdefault(name, size) != size:  # keypoints have one scale alone
                raise file.error(f"images give {name} two sizes, {sizes[name]} and {size}")
        return cls(names, sizes, orders, file.path)

    def name(self, entry: Any, file: PoseFile) -> str:
        """The file name of the image that an entry belongs to."""
        image = _number(entry, "image_id", file)
        own = field(entry, "file_name", str, file) if "file_name" in entry else ""
        if str(image) in self.names:
            name = self.names[str(image)]
            if own and _stem(own) != _stem(name):
                raise file.error(f"image_id {image} is {own}, but {name} in {self.path}")
            return name
        if own:
            return own
        if isinstance(image, str):
            return image
        if self.path is None:
            remedy = "give the file that numbers the images as --annotations"
            raise file.error(f"image_id {image} has no file name; {remedy}")
        raise file.error(f"image_id {image} is not among the images of {self.path}")

    def person(self, entry: Any, numbers: list[Any], file: PoseFile) -> np.ndarray:
        """(17, 3) keypoints of an entry with these numbers, by the joints of its category."""
        if not self.orders:
            return read_person(numbers, joints.COCO_ONLY, file, SIMCC_LIMIT)
        if entry.get("category_id") is not None:
            category = _number(entry, "category_id", file)
        elif len(self.orders) == 1:
            (category,) = self.orders
        else:
            count = len(self.orders)
            raise file.error(f"a category_id is missing; {self.path} has {count} categories")
        if str(category) not in self.orders:
            raise file.error(f"category_id {category} is not among the categories of {self.path}")
        return read_person(numbers, self.orders[str(category)], file, SIMCC_LIMIT)


def _stem(name: str) -> str:
    r"""What identifies an image's file in any folder.

    >>> _stem("query\\7.jpg"), _stem("7.png")
    ('7', '7')
    """
    return bare_path(name.replace("\\", "/")).rpartition("/")[2]


def _number(entry: Any, name: str, file: PoseFile) -> int | str:
    """A number or a name; pandas writes whole numbers as 7.0, which count as 7."""
    value = field(entry, name, int | float | str, file)
    if not isinstance(value, float):
        return value
    if not value.is_integer():
        raise file.error(f"{name} {value} is not a whole number")
    return int(value)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of an entry of ``images``; None unless both are whole and above 0.

    >>> _size({"height": 128, "width": 64}), _size({"height": 0, "width": 0}), _size({})
    ((128, 64), None, None)
    """
    given = [image.get(name) for name in ("height", "width")]
    height, width = (
        int(length) if isinstance(length, int | float) and length > 0 and length % 1 == 0 else 0
        for length in given
    )
    return (height, width) if height and width else None


def _joint_names(category: Any, file: PoseFile) -> list[Any]:
    """The names of a category's joints; none if it does not give them."""
    return field(category, "keypoints", list, file) if category.get("keypoints") else []


def _by_id(
    kind: str, entries: list[Any], value: Callable[[Any], Any], file: PoseFile
) -> dict[str, Any]:
    """Number as text → value; DataError if a number has two values."""
    found: dict[str, Any] = {}
    for entry in entries:
        number = str(_number(entry, "id", file))
        one = value(entry)
        if found.setdefault(number, one) != one:
            both = f"{found[number]} and {one}"
            raise file.error(f"{kind} id {number} is both {both}; give each an id of its own")
    return found


def _have_flags(entries: list[Any]) -> bool:
    """Whether all entries of a list have flags in place of confidences, as annotations do.

    >>> [_have_flags([{"keypoints": [9.5, 9.5, one, 9.5, 9.5, 2]}]) for one in (1, 0.7)]
    [True, False]
    """
    flags: set[Any] = set()
    for entry in entries:
        numbers = entry.get("keypoints") if isinstance(entry, dict) else None
        if not isinstance(numbers, list):
            return False
        nested = all(isinstance(point, list) for point in numbers)
        last = [point[-1] for point in numbers if point] if nested else numbers[2::3]
        flags |= {value if isinstance(value, int | float) else None for value in last}
    return bool(flags) and flags <= {0, _LABELLED, _VISIBLE}


def _results(
    entries: list[Any], legend: _Legend, file: PoseFile
) -> Iterator[tuple[str, np.ndarray]]:
    """Image name and person of each result."""
    for entry in entries:
        name = legend.name(entry, file)
        yield name, legend.person(entry, field(entry, "keypoints", list, file), file)


def _ground_truth(value: Any, legend: _Legend, file: PoseFile) -> Iterator[tuple[str, np.ndarray]]:
    """Image name and person of each annotation, with half its flag in place of a confidence."""
    for entry in field(value, "annotations", list, file):
        name = legend.name(entry, file)
        if not entry.get("keypoints") or entry.get("num_keypoints") == 0:  # a box alone
            yield name, np.zeros((NUM_JOINTS, 3), np.float32)
            continue
        numbers = list(field(entry, "keypoints", list, file))
        if all(isinstance(point, list) and len(point) == 3 for point in numbers):
            numbers = [number for point in numbers for number in point]
        flags = numbers[2::3]
        if not all(flag in (0, _LABELLED, _VISIBLE) for flag in flags):
            raise file.error("annotations flag each joint with 0, 1 or 2; scores belong in results")
        numbers[2::3] = [flag / _VISIBLE for flag in flags]
        yield name, legend.person(entry, numbers, file)


def _flags_to_confidences(annotations: list[Annotation]) -> Iterator[Annotation]:
    """Confidence 1 for joints with the highest flag of all annotations together, 0 for others."""
    highest = max((one.people[..., 2].max() for one in annotations), default=0)
    for annotation in annotations:
        people = annotation.people.copy()
        people[..., 2] = (people[..., 2] == highest) & (highest > 0)
        yield dataclasses.replace(annotation, people=people)
