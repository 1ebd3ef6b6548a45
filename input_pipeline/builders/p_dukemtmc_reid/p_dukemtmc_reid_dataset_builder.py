"""TFDS builder of P-DukeMTMC-reID."""

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
_EXAMPLE = "0002/0002_c1_f0044158.jpg"


def _folders(*paths: str) -> tuple[Folder, ...]:
    """Occluded pictures get the query's camera, whole ones the gallery's, also in training."""
    cameras = {"occluded_body_images": QUERY_CAMERA, "whole_body_images": GALLERY_CAMERA}
    return tuple(
        Folder(path, _PATTERN, _EXAMPLE, cameras[path.rpartition("/")[2]]) for path in paths
    )


class Builder(FolderBuilder):
    """P-DukeMTMC-reID: people of DukeMTMC-reID with occluded and whole pictures."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the folder P-DukeMTMC-reid (with train and test, each with occluded_body_images and "
        "whole_body_images) or its zip archive"
    )
    SPLITS = types.MappingProxyType(
        {
            "train": _folders("train/occluded_body_images", "train/whole_body_images"),
            "query": _folders("test/occluded_body_images"),
            "gallery": _folders("test/whole_body_images"),
        }
    )
    PUBLISHED = types.MappingProxyType(
        {"train": Published(12_927), "query": Published(2_163), "gallery": Published(9_053)}
    )
