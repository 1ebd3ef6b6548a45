"""AlphaPose: its COCO-like results, and its two OpenPose-like variants."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    Annotation,
    PoseFile,
    field,
    group_by_image,
    pose_files,
    read_person,
)
from input_pipeline.poses.formats.openpose import read_people
from input_pipeline.progress import progress


def read_alphapose(path: Path) -> Iterator[Annotation]:
    """Read AlphaPose's output, one file or all of a folder.

    - The default, ``--format coco``: a list of ``{"image_id": name, "keypoints": [...]}`` of 17
      joints, or of 26, 133 or 136, which begin with the same 17.
    - ``--format cmu``, ``--format open``: ``{"version", "bodies": [{"joints"}]}`` and ``{"version",
      "people": [{"pose_keypoints_2d"}]}`` of 18 joints, in one file per image (``--sep``) or in one
      file whose keys are the images' names.

    Raises:
        DataError: malformed.
    """
    for file in progress(pose_files(path, (".json",)), "reading"):
        yield from _read_file(file)


def _read_file(file: PoseFile) -> Iterator[Annotation]:
    """The annotations of one file in any of these forms."""
    value = file.read_json()
    if isinstance(value, list):
        named = [
            (
                _name(entry, file),
                read_person(field(entry, "keypoints", list, file), joints.COCO_FIRST, file),
            )
            for entry in value
        ]
        yield from group_by_image(named, file)
    elif isinstance(value, Mapping) and value and not {"people", "bodies"} & value.keys():
        for name, image in value.items():
            yield Annotation(file.image(name), file.source, read_people(image, file))
    else:
        yield Annotation(file.source, file.source, read_people(value, file))


def _name(entry: Any, file: PoseFile) -> str:
    """The file name of the image of an entry."""
    name = field(entry, "image_id", str | int | float, file)
    if not isinstance(name, str):
        raise file.error(f"image_id {name} is not a file name; run AlphaPose without --eval")
    return name
