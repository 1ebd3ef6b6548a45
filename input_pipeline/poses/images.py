"""The images of all splits of a data set, with the columns by which poses are joined."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

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

    splits: Shaped[np.ndarray, " images"]
    filenames: Shaped[np.ndarray, " images"]
    sizes: Int[np.ndarray, "images 2"]
    sha256: Shaped[np.ndarray, " images"]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.splits)


def read_catalogs(builder: Any) -> dict[str, Catalog]:
    """Every split's catalog, sorted by the split's name."""
    return {split: read_catalog(builder, split) for split in sorted(builder.info.splits)}


def images_of(catalogs: dict[str, Catalog]) -> Images:
    """The images of the splits, in the order of the catalogs."""
    return Images(
        splits=np.repeat(list(catalogs), [len(catalog) for catalog in catalogs.values()]),
        filenames=np.concatenate([c.filenames for c in catalogs.values()]).astype(str),
        sizes=np.concatenate([c.image_sizes for c in catalogs.values()]),
        sha256=np.concatenate([c.image_sha256 for c in catalogs.values()]),
    )
