"""Occluded-Duke, made from DukeMTMC-reID and the three public lists of file names."""

import types

from input_pipeline.builders.base import Survey
from input_pipeline.builders.folders import Folder, FolderBuilder, match_image
from input_pipeline.builders.names import MissingSetError
from input_pipeline.builders.records import Record
from input_pipeline.builders.text import missing_files, read_lines
from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree, join

LISTS = types.MappingProxyType(
    {"train": "train.list", "query": "query.list", "gallery": "gallery.list"}
)


def find_lists(tree: FileTree) -> str | None:
    """The folder with all three lists, whatever its name; None if there are no lists.

    Raises:
        MissingSetError: some of the lists are missing.
        DataError: there is more than one such folder.
    """
    roots = tree.roots(list(LISTS.values()))
    found = tree.distinct(root for root, missing in roots.items() if not missing)
    if roots and not found:
        root, missing = min(roots.items(), key=lambda item: len(item[1]))
        raise MissingSetError(
            f"{tree.display(root)}: lacks {', '.join(missing)}; put the three lists together there"
        )
    if len(found) > 1:
        shown = ", ".join(map(tree.display, found))
        raise DataError(f"{tree.source}: several folders hold {LISTS['train']}: {shown}; leave one")
    return found[0] if found else None


def survey_lists(builder: FolderBuilder, tree: FileTree, duke: str, lists: str) -> Survey:
    """The images that the lists name, under their paths in Occluded-Duke's folders.

    Args:
        builder: with the folders, patterns and cameras of Occluded-Duke.
        tree: the user's files.
        duke: the root of DukeMTMC-reID in the tree.
        lists: the folder of the three lists in the tree.

    Raises:
        DataError: a list is empty, or names files that are missing or not images of the set.
    """
    paths = _paths_by_name(builder, tree, duke)
    survey = Survey(lists=[tree.files[join(lists, name)] for name in LISTS.values()])
    for split, (folder,) in builder.SPLITS.items():
        path = join(lists, LISTS[split])
        names = _listed_names(tree, path)
        missing = [name for name in names if name not in paths]
        if missing or not names:
            raise missing_files(tree, path, missing, tree.display(duke))
        survey.records[split] = [
            _record(builder, tree, folder, name, paths[name]) for name in names
        ]
    return survey


def check_unlisted(tree: FileTree, survey: Survey, root: str) -> None:
    """Make sure that a folder named for Occluded-Duke is not the original DukeMTMC-reID.

    Both have the same folders. Where the user keeps the lists, too, they tell the two apart: the
    original has every image that they name, and others.

    Args:
        tree: the user's files.
        survey: the images of the folder.
        root: the folder in the tree.

    Raises:
        DataError: it has all images that the lists name, and others in a split.
    """
    held = {
        split: {record.filename.rpartition("/")[2]: record.filename for record in records}
        for split, records in survey.records.items()
    }
    roots = tree.roots(list(LISTS.values()))
    for lists in tree.distinct(found for found, missing in roots.items() if not missing):
        listed = {split: set(_listed_names(tree, join(lists, LISTS[split]))) for split in LISTS}
        unlisted = [
            file
            for split, files in held.items()
            for name, file in files.items()
            if name not in listed[split]
        ]
        if unlisted and set().union(*held.values()) >= set().union(*listed.values()):
            raise DataError(
                f"{tree.display(root)}: {len(unlisted):,} of its images are not in the lists of "
                f"{tree.display(lists)}, the first is {unlisted[0]}; if these are the folders of "
                "DukeMTMC-reID, rename the folder that holds them to DukeMTMC-reID, and the lists "
                "are applied; if not, remove these images"
            )


def _listed_names(tree: FileTree, path: str) -> list[str]:
    """The images that a list names; its lines are names or paths, of which only the name counts."""
    return [line.replace("\\", "/").rpartition("/")[2] for _, line in read_lines(tree, path)]


def _record(builder: FolderBuilder, tree: FileTree, folder: Folder, name: str, path: str) -> Record:
    """The record of the image with this name."""
    match = match_image(folder.pattern, name)
    if match is None:
        raise DataError(f"{tree.display(path)}: listed, but not named like {folder.example}")
    camera = builder.checked_camera(int(match["camera"]), tree.display(path))
    return Record(tree.files[path], join(folder.path, name), int(match["identity"]), camera)


def _paths_by_name(builder: FolderBuilder, tree: FileTree, duke: str) -> dict[str, str]:
    """File name → path in the tree, over the three folders of DukeMTMC-reID."""
    paths: dict[str, str] = {}
    for (folder,) in builder.SPLITS.values():
        root = join(duke, folder.path)
        for path in tree.files_in(root):
            paths.setdefault(path.rpartition("/")[2], join(root, path))
    return paths
