"""TFDS builder of Market-1501."""

import types

from input_pipeline.builders.folders import Folder, FolderBuilder, Published

# Identity -1 marks detections to be ignored; 0 marks distractors, which stay in the gallery.
_PATTERN = r"(?P<identity>-1|\d+)_c(?P<camera>\d+)s\d+_\d+_\d+.*"
_EXAMPLE = "0002_c1s1_000451_03.jpg"


class Builder(FolderBuilder):
    """Market-1501: six cameras on a campus, people found by a detector."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Market-1501-v15.09.15 (with bounding_box_train, query and bounding_box_test) "
        "or its zip archive"
    )
    SPLITS = types.MappingProxyType(
        {
            "train": (Folder("bounding_box_train", _PATTERN, _EXAMPLE),),
            "query": (Folder("query", _PATTERN, _EXAMPLE),),
            "gallery": (Folder("bounding_box_test", _PATTERN, _EXAMPLE),),
        }
    )
    PUBLISHED = types.MappingProxyType(
        {
            "train": Published(12_936, 751),
            "query": Published(3_368, 750),
            "gallery": Published(15_913, 751),  # 750 people and the distractors
        }
    )
    CAMERAS = range(1, 7)
