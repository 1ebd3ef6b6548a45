"""TFDS builder of Occluded-REID."""

import types

from input_pipeline.builders.folders import (
    GALLERY_CAMERA,
    QUERY_CAMERA,
    Folder,
    FolderBuilder,
    Published,
)

# The folder is named for the person, and so are the files in it.
_PATTERN = r"0*(?P<identity>\d+)/0*(?P=identity)_[^/]*"


class Builder(FolderBuilder):
    """Occluded-REID: 200 people, five occluded and five whole pictures of each; for testing."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Occluded_REID (with occluded_body_images and whole_body_images) or its zip "
        "archive"
    )
    SPLITS = types.MappingProxyType(
        {
            "query": (Folder("occluded_body_images", _PATTERN, "001/001_01.tif", QUERY_CAMERA),),
            "gallery": (Folder("whole_body_images", _PATTERN, "001/001_06.tif", GALLERY_CAMERA),),
        }
    )
    PUBLISHED = types.MappingProxyType(
        {"query": Published(1_000, 200), "gallery": Published(1_000, 200)}
    )
