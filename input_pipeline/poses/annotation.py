"""The common form of all pose formats, and the reading of files that they share."""

import dataclasses
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree
from input_pipeline.keypoints import JOINTS, NUM_JOINTS
from input_pipeline.poses.joints import LIMB_JOINTS

# OpenPose and AlphaPose write maxima of heat maps, up to about 1.4.
HEATMAP_LIMIT = 2.0
# MMPose writes the raw outputs of SimCC models (RTMPose, RTMW), which have no fixed bound.
SIMCC_LIMIT = 20.0


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """What one pose file says about one image.

    Attributes:
        image: the image's name with its known folders, below ``--input``; extensions do not count.
        source: the pose file, relative to ``--input``.
        people: (P, 17, 3) float32 x, y, confidence in [0, 1]; in the file's order.
        target: which of the people is flagged as the target; None where the format has no flags.
        part_maps: (h, w, 8) uint8, 255 for 1; None where the file holds keypoints.
        size: height, width in pixels that the file gives the image; None where it gives none.
    """

    image: str
    source: str
    people: Float32[np.ndarray, "people 17 3"]
    target: int | None = None
    part_maps: UInt8[np.ndarray, "rows columns 8"] | None = None
    size: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.source if self.image == self.source else f"{self.source}: {self.image}"


@dataclasses.dataclass(frozen=True)
class PoseFile:
    """One file below ``--input``.

    Attributes:
        path: the file.
        source: its path relative to ``--input``, with slashes; its name if it is ``--input``.
    """

    path: Path
    source: str

    def error(self, problem: str) -> DataError:
        """An error that names this file."""
        return DataError(f"{self.path}: {problem}")

    def image(self, name: str) -> str:
        """An image that the file names, below the file's own folder."""
        return str(PurePosixPath(self.source).parent / name.replace("\\", "/"))

    def read_json(self) -> Any:
        """The file's JSON value."""
        try:
            return json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self.error(f"not valid JSON ({error})") from None


def pose_files(folder: Path, suffixes: tuple[str, ...]) -> list[PoseFile]:
    """The files with these suffixes below a folder, sorted; or ``folder`` itself if it is a file.

    Links are followed, except to a folder above.

    Raises:
        DataError: there are none, a folder cannot be read, or a link is broken.
    """
    if folder.is_file():
        return [PoseFile(folder, folder.name)]
    tree = FileTree.scan(folder, opens=lambda archive: False)
    if tree.problems:
        raise DataError(f"--input={next(iter(tree.problems.values()))}")
    # Archives made on a Mac repeat every name, in __MACOSX or with a leading dot.
    visible = [
        source
        for source in tree.files
        if not any(part.startswith((".", "__MACOSX")) for part in source.split("/"))
    ]
    for source in visible:  # whatever its name, since a folder may have been behind it
        if not (folder / source).exists():
            raise DataError(f"--input={folder / source}: a broken link; repair or remove it")
    found = [
        PoseFile(folder / source, source)
        for source in visible
        if source.lower().endswith(suffixes) and (folder / source).is_file()
    ]
    if not found:
        raise DataError(f"--input={folder}: no {' or '.join(suffixes)} file there")
    return found


def field(value: Any, name: str, kind: type | types.UnionType, file: PoseFile) -> Any:
    """``value[name]``; DataError unless it is of this kind."""
    if not isinstance(value, Mapping) or not isinstance(value.get(name), kind):
        raise file.error(f"not the format expected: {name!r} is missing or of the wrong kind")
    return value[name]


def people_in(value: Any, file: PoseFile) -> list[Any]:
    """A list of people as it is, none for ``null``; DataError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise file.error("not the format expected: a list of people")
    return value


def read_person(
    numbers: Any,
    orders: Mapping[int, np.ndarray],
    file: PoseFile,
    limit: float = HEATMAP_LIMIT,
) -> Float32[np.ndarray, "17 3"]:
    """One person's keypoints from JSON.

    Args:
        numbers: K·3 numbers x, y, confidence, flat or as K lists of three.
        orders: for each allowed K, which of the K joints are COCO's 17; -1: none of them.
        file: for the error.
        limit: highest absolute confidence that the format's tools write.

    Returns:
        (17, 3) float32; confidences outside [0, 1] are clipped; zeros where the order has -1.

    Raises:
        DataError: other than K·3 finite numbers, or a confidence beyond the limit.
    """
    try:
        points = np.array(numbers)
    except ValueError:  # lists of different lengths
        points = np.array(None)
    if points.dtype.kind not in "iuf" or points.ndim not in (1, 2) or points.size % 3:
        raise file.error("keypoints must be numbers x, y, confidence for each joint")
    if points.ndim == 2 and points.shape[1] != 3:
        raise file.error(f"keypoints have {points.shape[1]} numbers a joint, not x, y, confidence")
    with np.errstate(over="ignore"):
        points = points.reshape(-1, 3).astype(np.float32)
    if len(points) not in orders:
        counts = " or ".join(map(str, orders))
        raise file.error(f"a person has {len(points)} joints instead of {counts}")
    if not np.isfinite(points).all():
        raise file.error("keypoints must be finite numbers")
    order = orders[len(points)]
    points = np.where(order[:, None] < 0, np.float32(0), points[order])
    low, high = points[:, 2].min(), points[:, 2].max()
    if max(high, -low) > limit:
        extreme = f"up to {high:g}" if high >= -low else f"down to {low:g}"
        raise file.error(f"confidences {extreme}; they must be in [0, 1]")
    points[:, 2] = points[:, 2].clip(0, 1)
    return points


def orders_by_name(names: list[Any], file: PoseFile) -> dict[int, np.ndarray]:
    """The ``orders`` of :func:`read_person` for joints with these names.

    Joints of the face may be absent (PoseTrack, CrowdPose); the limbs may not, since a list without
    them most likely spells them differently.

    Args:
        names: of the K joints; spaces, hyphens and capitals do not count.
        file: for the error.

    Raises:
        DataError: a joint of the limbs is missing, or a joint of COCO is named twice.
    """
    spelled = [str(name).lower().replace(" ", "_").replace("-", "_") for name in names]
    for joint in JOINTS:
        count = spelled.count(joint)
        if count > 1:
            raise file.error(f"its joints are named {joint!r} {count} times")
        if count == 0 and joint in LIMB_JOINTS:
            remedy = "name the joints as COCO does, or delete the names of COCO's own 17"
            raise file.error(f"none of its {len(names)} joints is named {joint!r}; {remedy}")
    order = [spelled.index(joint) if joint in spelled else -1 for joint in JOINTS]
    return {len(names): np.array(order)}


def stack_people(people: list[np.ndarray]) -> Float32[np.ndarray, "people 17 3"]:
    """People of shape (17, 3) as one array; also for none."""
    return np.stack(people) if people else np.zeros((0, NUM_JOINTS, 3), np.float32)


def group_by_image(
    named: list[tuple[str, np.ndarray]],
    file: PoseFile,
    sizes: Mapping[str, tuple[int, int]] = types.MappingProxyType({}),
) -> Iterator[Annotation]:
    """One annotation per image, in the order of first mention.

    Args:
        named: image name and person, (17, 3).
        file: that names them.
        sizes: height, width in pixels by image name, where known.
    """
    groups: dict[str, list[np.ndarray]] = {}
    for name, person in named:
        groups.setdefault(file.image(name), []).append(person)
    by_image = {file.image(name): size for name, size in sizes.items()}
    for image, people in groups.items():
        yield Annotation(image, file.source, stack_people(people), size=by_image.get(image))
