"""OpenPifPaf: one JSON per image, a list of people."""

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    Annotation,
    field,
    people_in,
    pose_files,
    read_person,
    stack_people,
)
from input_pipeline.progress import progress


def read_openpifpaf(path: Path) -> Iterator[Annotation]:
    """Read ``[{"keypoints": 51 numbers, "bbox", "score", "category_id"}]``.

    OpenPifPaf writes ``NAME.jpg.predictions.json``, old versions ``NAME.jpg.pifpaf.json``. Its 133
    joints of the whole body begin with COCO's 17.

    Raises:
        DataError: malformed.
    """
    for file in progress(pose_files(path, (".json",)), "reading"):
        persons = people_in(file.read_json(), file)
        numbers = [field(person, "keypoints", list, file) for person in persons]
        people = [read_person(one, joints.COCO_FIRST, file) for one in numbers]
        yield Annotation(file.source, file.source, stack_people(people))
