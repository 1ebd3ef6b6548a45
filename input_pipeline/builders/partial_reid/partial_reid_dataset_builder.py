"""TFDS builder of Partial-REID."""

import types

from input_pipeline.builders.folders import (
    GALLERY_CAMERA,
    QUERY_CAMERA,
    Folder,
    FolderBuilder,
    Published,
)

_PATTERN = r"(?P<identity>\d+)_\d+"
_EXAMPLE = "001_001.jpg"


class Builder(FolderBuilder):
    """Partial-REID: 60 people, five partial, occluded and whole pictures of each; for testing."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder Partial_REID (with partial_body_images, occluded_body_images and "
        "whole_body_images) or its zip archive"
    )
    SPLITS = types.MappingProxyType(
        {
            "query_partial": (Folder("partial_body_images", _PATTERN, _EXAMPLE, QUERY_CAMERA),),
            "query_occluded": (Folder("occluded_body_images", _PATTERN, _EXAMPLE, QUERY_CAMERA),),
            "gallery": (Folder("whole_body_images", _PATTERN, _EXAMPLE, GALLERY_CAMERA),),
        }
    )
    PROTOCOLS = types.MappingProxyType({"partial": "query_partial", "occluded": "query_occluded"})
    PUBLISHED = types.MappingProxyType({split: Published(300, 60) for split in SPLITS})
