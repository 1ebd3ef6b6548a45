"""TFDS builder of MSMT17, whose splits are given by lists of files."""

import dataclasses
import types

import tensorflow_datasets as tfds

from input_pipeline.builders.base import Survey
from input_pipeline.builders.folders import ImageSetBuilder, Published
from input_pipeline.builders.msmt17.lists import LISTS, survey_lists
from input_pipeline.file_tree import FileTree


@dataclasses.dataclass(eq=False)
class Msmt17Config(tfds.core.BuilderConfig):
    """An edition of the set.

    Attributes:
        train: the folder of list_train and list_val.
        test: the folder of list_query and list_gallery.
    """

    train: str = ""
    test: str = ""


class Builder(ImageSetBuilder):
    """MSMT17: fifteen cameras, indoors and outdoors, at three times of the day."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder MSMT17_V1 (with train and test) or MSMT17_V2 (with mask_train_v2 and "
        "mask_test_v2), in it list_train.txt, list_val.txt, list_query.txt and list_gallery.txt; "
        "or its zip archive"
    )
    BUILDER_CONFIGS = (
        Msmt17Config(name="v1", description="As first published.", train="train", test="test"),
        Msmt17Config(
            name="v2",
            description="With faces masked.",
            train="mask_train_v2",
            test="mask_test_v2",
        ),
    )
    PUBLISHED = types.MappingProxyType(
        {
            "train": Published(32_621, 1_041),
            "query": Published(11_659, 3_060),
            "gallery": Published(82_161, 3_060),
        }
    )
    CAMERAS = range(1, 16)
    builder_config: Msmt17Config

    def survey_tree(self, tree: FileTree) -> Survey:
        """List the images that the four lists name."""
        config = self.builder_config
        names = [name for lists in LISTS.values() for name in lists]
        root = self.root(tree, [config.train, config.test, *names])
        return survey_lists(self, tree, root, config.train, config.test)
