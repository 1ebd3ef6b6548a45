"""TFDS builder of Partial-iLIDS."""

import types

from input_pipeline.builders.folders import (
    GALLERY_CAMERA,
    QUERY_CAMERA,
    Folder,
    FolderBuilder,
    Published,
)

_PATTERN = r"(?P<identity>\d+)"


class Builder(FolderBuilder):
    """Partial-iLIDS: 119 people in an airport, a partial and a whole picture of each."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Partial_iLIDS (with Probe and Gallery) or its zip archive"
    )
    SPLITS = types.MappingProxyType(
        {
            "query": (Folder("Probe", _PATTERN, "1.jpg", QUERY_CAMERA),),
            "gallery": (Folder("Gallery", _PATTERN, "1.jpg", GALLERY_CAMERA),),
        }
    )
    PUBLISHED = types.MappingProxyType({split: Published(119, 119) for split in SPLITS})
