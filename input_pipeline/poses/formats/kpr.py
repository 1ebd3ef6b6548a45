"""KPR: one JSON per image, a list of people with the target flagged."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from input_pipeline.poses import joints
from input_pipeline.poses.annotation import (
    Annotation,
    PoseFile,
    field,
    people_in,
    pose_files,
    read_person,
    stack_people,
)
from input_pipeline.progress import progress


def read_kpr(path: Path) -> Iterator[Annotation]:
    """Read ``[{"keypoints": 17 × [x, y, c] or 51 numbers, "is_target": bool}]``.

    The first flagged person is the target; without any flags, the first person is. If all flags
    are false, the image has no pose of its target. A person without a list around it is the only
    one; ``null`` means nobody.

    Raises:
        DataError: malformed.
    """
    for file in progress(pose_files(path, (".json",)), "reading"):
        yield _read_file(file)


def _read_file(file: PoseFile) -> Annotation:
    """The one annotation of a file."""
    value = file.read_json()
    persons = people_in([value] if isinstance(value, Mapping) else value, file)
    people = [
        read_person(field(person, "keypoints", list, file), joints.COCO_ONLY, file)
        for person in persons
    ]
    flags = [person.get("is_target") for person in persons]
    if not all(flag in (None, False, True) for flag in flags):
        raise file.error("is_target must be true or false")
    if any(flags):
        return Annotation(file.source, file.source, stack_people(people), flags.index(True))
    if any(flag is not None for flag in flags):
        people = []
    return Annotation(file.source, file.source, stack_people(people), 0 if people else None)
