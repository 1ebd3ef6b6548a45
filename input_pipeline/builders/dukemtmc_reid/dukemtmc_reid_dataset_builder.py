"""TFDS builder of DukeMTMC-reID."""

import types

from input_pipeline.builders.dukemtmc_reid.layout import CAMERAS, SPLITS
from input_pipeline.builders.folders import FolderBuilder, Published


class Builder(FolderBuilder):
    """DukeMTMC-reID: eight cameras on a campus; withdrawn by its authors."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder DukeMTMC-reID (with bounding_box_train, query and bounding_box_test) "
        "or its zip archive"
    )
    SPLITS = SPLITS
    PUBLISHED = types.MappingProxyType(
        {
            "train": Published(16_522, 702),
            "query": Published(2_228, 702),
            "gallery": Published(17_661, 1_110),  # 702 people and 408 distractors
        }
    )
    CAMERAS = CAMERAS
