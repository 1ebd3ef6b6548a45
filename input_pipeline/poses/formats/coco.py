"""COCO: results (MMPose, ViTPose, HRNet) and ground-truth annotations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    Annotation,
    PoseFile,
    field,
    group_by_image,
    pose_files,
    read_person,
)
from input_pipeline.progress import progress

_VISIBLE = 2  # the flag of a joint that is labelled and visible; 1: labelled only, 0: neither


def read_coco(path: Path, annotations: Path | None = None) -> Iterator[Annotation]:
    """Read COCO results or annotations, one file or all of a folder.

    Results are a list of ``{"image_id", "category_id", "keypoints": [51 numbers], "score"}``.
    Annotations are ``{"images": [{"id", "file_name"}], "annotations": [{"image_id",
    "keypoints"}]}`` with flags as confidences: 2 (labelled and visible) counts as 1, others as 0.

    Args:
        path: a file or a folder.
        annotations: a file whose ``images`` name the image numbers of results.

    Raises:
        DataError: malformed, or an image number without a name.
    """
    names = {}
    if annotations is not None:
        file = PoseFile(annotations, annotations.name)
        names = _image_names(file.read_json(), file)
    for file in progress(pose_files(path, (".json",)), "reading"):
        value = file.read_json()
        if isinstance(value, list):
            yield from group_by_image(list(_results(value, names, file)), file)
        else:
            yield from group_by_image(list(_ground_truth(value, file)), file)


def _image_names(value: Any, file: PoseFile) -> dict[Any, str]:
    """Number → file name."""
    return {
        field(image, "id", int | str, file): field(image, "file_name", str, file)
        for image in field(value, "images", list, file)
    }


def _results(
    entries: list[Any], names: dict[Any, str], file: PoseFile
) -> Iterator[tuple[str, np.ndarray]]:
    """Image name and person of each result."""
    for entry in entries:
        image = field(entry, "image_id", int | str, file)
        numbers = field(entry, "keypoints", list, file)
        yield _name(image, names, file), read_person(numbers, joints.COCO_ONLY, file)


def _ground_truth(value: Any, file: PoseFile) -> Iterator[tuple[str, np.ndarray]]:
    """Image name and person of each annotation."""
    names = _image_names(value, file)
    for entry in field(value, "annotations", list, file):
        image = field(entry, "image_id", int | str, file)
        numbers = field(entry, "keypoints", list, file)
        flags = numbers[2::3]
        if not all(flag in (0, 1, _VISIBLE) for flag in flags):
            raise file.error("annotations flag each joint with 0, 1 or 2; scores belong in results")
        person = read_person(numbers, joints.COCO_ONLY, file)
        person[:, 2] = np.array(flags) == _VISIBLE
        yield _name(image, names, file), person


def _name(image: int | str, names: dict[Any, str], file: PoseFile) -> str:
    """The image's file name."""
    if image not in names and isinstance(image, int):
        remedy = "give the file that numbers the images as --annotations"
        raise file.error(f"image_id {image} has no file name; {remedy}")
    return names.get(image, str(image))
