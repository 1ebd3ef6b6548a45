"""MMPose 1.x: one JSON per image, from its inferencer or its demo scripts."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32

from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    SIMCC_LIMIT,
    Annotation,
    PoseFile,
    field,
    orders_by_name,
    people_in,
    pose_files,
    read_person,
    stack_people,
)
from input_pipeline.progress import progress


def read_mmpose(path: Path) -> Iterator[Annotation]:
    """Read MMPose's predictions, one file or all of a folder.

    - The inferencer writes ``NAME.json``: ``[{"keypoints": K × [x, y], "keypoint_scores": K
      numbers, "bbox", "bbox_score"}]``, in some versions with one more list around it. K = 17, 26,
      133 or 136; the first 17 are COCO's.
    - The demo scripts write ``results_NAME.json``: ``{"meta_info": {"keypoint_id2name"},
      "instance_info": [...]}`` with the same people or one ``{"frame_id", "instances": [...]}``.
      The joints are mapped by their names.

    Raises:
        DataError: malformed, unknown joints, or more than one frame.
    """
    for file in progress(pose_files(path, (".json",)), "reading"):
        value = file.read_json()
        if isinstance(value, Mapping):
            name = PurePosixPath(file.source).name.removeprefix("results_")
            people = _people(field(value, "instance_info", list, file), _orders(value, file), file)
            yield Annotation(file.image(name), file.source, people)
        else:
            people = _people(value, joints.COCO_FIRST, file)
            yield Annotation(file.source, file.source, people)


def _orders(value: Mapping[str, Any], file: PoseFile) -> Mapping[int, np.ndarray]:
    """The ``orders`` of :func:`read_person`, from ``keypoint_id2name`` if it is there."""
    meta = value.get("meta_info")
    if not isinstance(meta, Mapping) or "keypoint_id2name" not in meta:
        return joints.COCO_FIRST
    names = field(meta, "keypoint_id2name", Mapping, file)
    numbers = [str(number) for number in range(len(names))]
    if set(numbers) != names.keys():
        raise file.error("keypoint_id2name must number the joints from 0")
    return orders_by_name([names[number] for number in numbers], file)


def _people(
    instances: Any, orders: Mapping[int, np.ndarray], file: PoseFile
) -> Float32[np.ndarray, "people 17 3"]:
    """The people of the file's only image."""
    entries = people_in(instances, file)
    if any(map(_is_frame, entries)):
        if len(entries) > 1:
            raise file.error(f"{len(entries)} frames of a video; run MMPose on the images instead")
        (frame,) = entries
        entries = frame if isinstance(frame, list) else field(frame, "instances", list, file)
    return stack_people([_person(entry, orders, file) for entry in entries])


def _is_frame(entry: Any) -> bool:
    """Whether an entry holds people instead of being one."""
    return isinstance(entry, list) or (isinstance(entry, Mapping) and "instances" in entry)


def _person(
    entry: Any, orders: Mapping[int, np.ndarray], file: PoseFile
) -> Float32[np.ndarray, "17 3"]:
    """One person's positions and scores."""
    positions = field(entry, "keypoints", list, file)
    scores = field(entry, "keypoint_scores", list, file)
    planar = all(isinstance(position, list) and len(position) == 2 for position in positions)
    if not planar or len(positions) != len(scores):
        raise file.error("keypoints must be x, y for each of the keypoint_scores")
    joined = [[*position, score] for position, score in zip(positions, scores, strict=True)]
    return read_person(joined, orders, file, SIMCC_LIMIT)
