"""Data sets that are folders of images named by identity and camera."""

import abc
import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from input_pipeline.builders.base import ReidBuilder, Survey
from input_pipeline.builders.names import (
    MissingSetError,
    explain_missing,
    find_root,
    scan_for,
)
from input_pipeline.builders.records import Record
from input_pipeline.errors import DataError
from input_pipeline.file_tree import IMAGE_SUFFIXES, FileTree, join

QUERY_CAMERA, GALLERY_CAMERA = 0, 1  # for sets without cameras; they differ, so nothing is junk
JUNK_IDENTITY = -1
_MAX_IDENTITY = 2**63 - 1  # they are stored as int64


@dataclasses.dataclass(frozen=True)
class Folder:
    """One folder of a split.

    Attributes:
        path: relative to the data set's folder.
        pattern: regular expression for a file's whole path within the folder, without its suffix;
            with the group ``identity`` and, unless ``camera`` is given, the group ``camera``.
        example: a path that matches, for messages.
        camera: the camera of all images in the folder, if names do not contain it.
    """

    path: str
    pattern: str
    example: str
    camera: int | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """The size of a split according to its authors."""

    images: int
    identities: int | None = None


class ImageSetBuilder(ReidBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A published data set, of which the user provides a copy.

    Attributes:
        PUBLISHED: counts of each split; a copy that differs is prepared with a warning.
        CAMERAS: all cameras; any other number in a file's name is an error. None: no cameras.
    """

    PUBLISHED: ClassVar[Mapping[str, Published]]
    CAMERAS: ClassVar[range | None] = None

    @abc.abstractmethod
    def survey_tree(self, tree: FileTree) -> Survey:
        """Find the data set in a tree of files and list its images.

        Raises:
            MissingSetError: the tree does not contain it.
            DataError: something is wrong with it.
        """

    def survey(self, source: Path) -> Survey:
        """List the images and compare their numbers with the published ones."""
        try:
            survey = self.survey_tree(scan_for(self._names(), source))
        except MissingSetError:  # it may be in an archive that is not named for it
            survey = self.survey_tree(scan_for((None, *self._names()), source))
        for split, records in survey.records.items():
            _check_records(source, split, records)
            survey.warnings += _differences(f"{self.name} {split}", records, self.PUBLISHED[split])
        if survey.unmatched:
            survey.warnings.append(
                f"{self.name}: {len(survey.unmatched)} files are not named or listed as its images "
                f"and are left out, the first is {survey.unmatched[0]}"
            )
        return survey

    def _names(self) -> tuple[str, ...]:
        """The data sets whose archives are to be opened."""
        return (self.name,)

    def root(self, tree: FileTree, entries: list[str]) -> str:
        """The data set's folder in the tree; DataError unless there is exactly one."""
        root = find_root(tree, self.name, entries)
        if root is None:
            raise explain_missing(tree, self.name, entries, str(self.MANUAL_DOWNLOAD_INSTRUCTIONS))
        return root

    def checked_camera(self, camera: int, file: str) -> int:
        """The camera, if the set has it; otherwise a DataError names the file."""
        if self.CAMERAS is not None and camera not in self.CAMERAS:
            raise DataError(
                f"{file}: camera {camera}, but {self.name} has cameras {self.CAMERAS[0]} to "
                f"{self.CAMERAS[-1]}; rename or remove the file"
            )
        return camera


class FolderBuilder(ImageSetBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A published data set whose splits are folders.

    Attributes:
        SPLITS: the folders of each split.
    """

    SPLITS: ClassVar[Mapping[str, tuple[Folder, ...]]]

    def survey_tree(self, tree: FileTree) -> Survey:
        """List the images of all folders."""
        entries = [folder.path for folders in self.SPLITS.values() for folder in folders]
        root = self.root(tree, entries)
        survey, junk = Survey(), {}
        for split, folders in self.SPLITS.items():
            records: list[Record] = []
            for folder in folders:
                found, unmatched = self._survey_folder(tree, root, folder)
                survey.unmatched += unmatched
                records += found
            people = [record for record in records if record.identity != JUNK_IDENTITY]
            if not people:
                places = " or ".join(tree.display(join(root, folder.path)) for folder in folders)
                raise DataError(
                    f"{places}: no image named like {folders[0].example} for the split {split}; "
                    "unpack the data set again"
                )
            survey.records[split] = people
            if len(records) > len(people):
                junk[split] = len(records) - len(people)
        survey.metadata["junk"] = junk
        return survey

    def _survey_folder(
        self, tree: FileTree, root: str, folder: Folder
    ) -> tuple[list[Record], list[str]]:
        """The images of one folder, and its other files.

        Those are the files that do not match its pattern, and masks and copies.
        """
        records, unmatched = [], []
        paths = tree.files_in(join(root, folder.path))
        matches = {path: match_image(folder.pattern, path) for path in paths}
        derived = _derived([path for path, match in matches.items() if match])
        for path, match in matches.items():
            filename = f"{folder.path}/{path}"
            if match is None or path in derived:
                unmatched.append(filename)
                continue
            full = join(root, filename)
            camera = folder.camera
            if camera is None:
                camera = self.checked_camera(int(match["camera"]), tree.display(full))
            records.append(Record(tree.files[full], filename, int(match["identity"]), camera))
        return records, unmatched


def match_image(pattern: str, path: str) -> re.Match[str] | None:
    """The match of an image's path, without its suffix; None also for files that are not images."""
    stem, dot, suffix = path.rpartition(".")
    if (dot + suffix).lower() not in IMAGE_SUFFIXES:
        return None
    return re.fullmatch(pattern, stem)


def _derived(paths: Sequence[str]) -> set[str]:
    """Those of a folder's images that are masks or copies of others, by their names.

    Such a name continues another one, or differs from it in the suffix alone; then the suffix that
    most images have is the picture's.

    >>> sorted(_derived(["1_c1.jpg", "1_c1.png", "1_c1_mask.jpg", "1_c1 (1).jpg", "1_c12.jpg"]))
    ['1_c1 (1).jpg', '1_c1.png', '1_c1_mask.jpg']
    """
    suffixes = collections.Counter(path.rpartition(".")[2] for path in paths)
    chosen: dict[str, str] = {}  # the picture of each name
    for path in sorted(paths, key=lambda path: -suffixes[path.rpartition(".")[2]]):
        chosen.setdefault(path.rpartition(".")[0], path)

    def continues(stem: str) -> bool:
        ends = (at for at, letter in enumerate(stem) if not letter.isalnum())
        return any(stem[:at] in chosen for at in ends)

    return {
        path for path in paths if chosen[stem := path.rpartition(".")[0]] != path or continues(stem)
    }


def _differences(name: str, records: list[Record], published: Published) -> list[str]:
    """Warnings for counts that differ from the published ones."""
    counts = {
        "images": (len(records), published.images),
        "identities": (len({record.identity for record in records}), published.identities),
    }
    return [
        f"{name}: {found:,} {what}, {expected:,} were published"
        for what, (found, expected) in counts.items()
        if expected is not None and found != expected
    ]


def _check_records(source: Path, split: str, records: list[Record]) -> None:
    """DataError if a file is listed twice in a split, or its identity cannot be stored."""
    seen: set[str] = set()
    for record in records:
        if record.identity > _MAX_IDENTITY:
            raise DataError(
                f"{'/'.join(record.location)}: identity {record.identity} is too large; rename or "
                "remove the file"
            )
        if record.filename in seen:
            raise DataError(f"{source}: {record.filename} is listed twice in the split {split}")
        seen.add(record.filename)
