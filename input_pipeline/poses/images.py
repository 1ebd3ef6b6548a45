"""The images of a data set, over all its splits, as poses are joined to them."""

import dataclasses
from typing import Any

import numpy as np

from input_pipeline.catalog import Catalog, read_catalog


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """All N images of a data set, sorted by split and file name.

    Attributes:
        splits: (N,) str.
        filenames: (N,) str.
        sizes: (N, 2) int64 height, width.
        sha256: (N,) hex digests of the encoded files.
    """

    splits: np.ndarray
    filenames: np.ndarray
    sizes: np.ndarray
    sha256: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.splits)


def read_catalogs(builder: Any) -> dict[str, Catalog]:
    """Every split's catalog, sorted by the split's name."""
    return {split: read_catalog(builder, split) for split in sorted(builder.info.splits)}


def images_of(catalogs: dict[str, Catalog]) -> Images:
    """What poses are joined by, of every image of the splits, in their order."""
    return Images(
        splits=np.repeat(list(catalogs), [len(catalog) for catalog in catalogs.values()]),
        filenames=np.concatenate([c.filenames for c in catalogs.values()]).astype(str),
        sizes=np.concatenate([c.image_sizes for c in catalogs.values()]),
        sha256=np.concatenate([c.image_sha256 for c in catalogs.values()]),
    )
