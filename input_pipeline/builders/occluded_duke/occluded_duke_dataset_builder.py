"""TFDS builder of Occluded-Duke, from its own folder or from DukeMTMC-reID and three lists."""

import types

from input_pipeline.builders.base import Survey
from input_pipeline.builders.dukemtmc_reid import dukemtmc_reid_dataset_builder as original
from input_pipeline.builders.dukemtmc_reid.layout import CAMERAS, SPLITS
from input_pipeline.builders.folders import FolderBuilder, Published
from input_pipeline.builders.names import find_root, named_root
from input_pipeline.builders.occluded_duke.lists import check_unlisted, find_lists, survey_lists
from input_pipeline.errors import DataError
from input_pipeline.file_tree import FileTree

_FOLDERS = [folder.path for folders in SPLITS.values() for folder in folders]


class Builder(FolderBuilder):
    """Occluded-Duke: DukeMTMC-reID in a new split, with an occluded person in every query."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Occluded_Duke (with bounding_box_train, query and bounding_box_test) or its "
        "zip archive; or DukeMTMC-reID (folder or zip) and the lists train.list, query.list and "
        "gallery.list"
    )
    SPLITS = SPLITS
    PUBLISHED = types.MappingProxyType(
        {
            "train": Published(15_618, 702),
            "query": Published(2_210, 519),
            "gallery": Published(17_661, 1_110),
        }
    )
    CAMERAS = CAMERAS

    def _names(self) -> tuple[str, ...]:
        return (self.name, "dukemtmc_reid")

    def survey_tree(self, tree: FileTree) -> Survey:
        """List the images of a folder with this name, or else of the three lists."""
        own = find_root(tree, self.name, _FOLDERS)
        if own is not None and named_root(tree, own) == self.name:
            survey = super().survey_tree(tree)
            check_unlisted(tree, survey, own)
            _check_counts(tree, survey, own)
            return survey
        lists = find_lists(tree)
        # Folders that are named for no set and accompany the lists are DukeMTMC-reID's.
        duke = None if lists is None else find_root(tree, "dukemtmc_reid", _FOLDERS)
        if lists is None or duke is None:
            return super().survey_tree(tree)
        return survey_lists(self, tree, duke, lists)


def _check_counts(tree: FileTree, survey: Survey, root: str) -> None:
    """DataError if every split has as many images as that of DukeMTMC-reID, so without lists."""
    published = original.Builder.PUBLISHED
    if all(len(records) == published[split].images for split, records in survey.records.items()):
        raise DataError(
            f"{tree.display(root)}: has as many images as DukeMTMC-reID, from which Occluded-Duke "
            "is made; rename the folder to DukeMTMC-reID, and put the lists train.list, query.list "
            "and gallery.list beside it"
        )
