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
    survey = Survey()
    for split, (folder,) in builder.SPLITS.items():
        path = join(lists, LISTS[split])
        # Lines are names or paths; only the name identifies the image.
        names = [line.replace("\\", "/").rpartition("/")[2] for _, line in read_lines(tree, path)]
        missing = [name for name in names if name not in paths]
        if missing or not names:
            raise missing_files(tree, path, missing, tree.display(duke))
        survey.records[split] = [
            _record(builder, tree, folder, name, paths[name]) for name in names
        ]
    return survey


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
