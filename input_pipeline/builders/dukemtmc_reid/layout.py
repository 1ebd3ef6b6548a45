"""Folders and names of DukeMTMC-reID, which Occluded-Duke shares."""

import types

from input_pipeline.builders.folders import Folder

_PATTERN = r"(?P<identity>\d+)_c(?P<camera>\d+)_f\d+.*"
_EXAMPLE = "0002_c1_f0044158.jpg"
SPLITS = types.MappingProxyType(
    {
        "train": (Folder("bounding_box_train", _PATTERN, _EXAMPLE),),
        "query": (Folder("query", _PATTERN, _EXAMPLE),),
        "gallery": (Folder("bounding_box_test", _PATTERN, _EXAMPLE),),
    }
)
CAMERAS = range(1, 9)
