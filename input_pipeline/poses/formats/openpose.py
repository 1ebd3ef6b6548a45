"""OpenPose: a folder with one JSON per image, 18 (COCO) or 25 (BODY_25) joints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from input_pipeline.keypoints import NUM_JOINTS
from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    Annotation,
    PoseFile,
    field,
    pose_files,
    read_person,
    stack_people,
)
from input_pipeline.progress import progress

# The keys of OpenPose and of AlphaPose's variant "cmu": the list of people, a person's numbers.
_SPELLINGS = (("people", "pose_keypoints_2d"), ("bodies", "joints"))


def read_openpose(path: Path) -> Iterator[Annotation]:
    """Read ``{"people": [{"pose_keypoints_2d": [...]}]}`` from every JSON file of a folder.

    ``null`` in place of the people, or of the whole, means nobody.

    Raises:
        DataError: malformed.
    """
    for file in progress(pose_files(path, (".json",)), "reading"):
        yield Annotation(file.source, file.source, read_people(file.read_json(), file))


def read_people(value: Any, file: PoseFile) -> Float32[np.ndarray, "people 17 3"]:
    """The people of one image in either spelling; ``null`` means nobody.

    A person without numbers, of whom only the hands or the face were found, has no pose.
    """
    if value is None:
        return stack_people([])
    for people, numbers in _SPELLINGS:
        if isinstance(value, Mapping) and people in value:
            persons = field(value, people, list | None, file) or []
            found = [field(person, numbers, list, file) for person in persons]
            return stack_people(
                [
                    read_person(one or [0.0] * NUM_JOINTS * 3, joints.COCO_FROM, file)
                    for one in found
                ]
            )
    raise file.error('not the format expected: no "people" at the top')
