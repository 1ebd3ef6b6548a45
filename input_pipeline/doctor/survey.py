"""The splits of a data set as the doctor looks at them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.catalog import Catalog
from input_pipeline.poses.cache import PoseCache
from pgfl_jax.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split; N images.

    Attributes:
        dataset: the data set's full name.
        name: the split's name.
        catalog: its images, their poses joined.
        digests: (N,) hex digests of the encoded images.
        unreadable: (U,) rows of the images that are cut off or cannot be decoded, in order.
        matches: for each pose file, how many of the images it knows.
        used: whether the configuration trains on it or scores it.
    """

    dataset: str
    name: str
    catalog: Catalog
    digests: np.ndarray
    unreadable: np.ndarray
    matches: tuple[int, ...]
    used: bool

    @property
    def label(self) -> str:
        """Data set and split, for messages."""
        return f"{self.dataset} {self.name}"

    def describe(self, row: int) -> str:
        """File name, identity and camera of an image."""
        catalog = self.catalog
        return (
            f"{catalog.filenames[row]} (identity {catalog.identities[row]}, "
            f"camera {catalog.cameras[row]})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, as much of it as could be opened.

    Attributes:
        name: its full name; as it was given where it could not be opened.
        splits: by name: train, the query splits, gallery, others.
        protocols: from the name of each protocol that could be opened to its query split.
        scored: whether the configuration scores it.
        source: where it was prepared from; empty where that is not kept.
        warnings: what was noticed when it was prepared.
        unmatched: files left out then.
    """

    name: str
    splits: Mapping[str, Split]
    protocols: Mapping[str, str]
    scored: bool
    source: str = ""
    warnings: Sequence[str] = ()
    unmatched: Sequence[str] = ()

    @property
    def test_splits(self) -> list[Split]:
        """Queries and gallery."""
        return [split for name, split in self.splits.items() if is_test(name, self.protocols)]


def is_test(split: str, protocols: Mapping[str, str]) -> bool:
    """Whether a split holds queries or the gallery."""
    return split == "gallery" or split.startswith("query") or split in protocols.values()


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """All data that a configuration names, as much of it as could be opened.

    Attributes:
        config: the configuration.
        datasets: the training set first, then those that are scored.
        poses: the pose files that could be read, with their names.
        codes: for each split, (N,) int64; equal numbers in any two mean identical images.
    """

    config: Config
    datasets: Sequence[Dataset]
    poses: Sequence[tuple[str, PoseCache]]
    codes: Mapping[Split, np.ndarray]

    @property
    def splits(self) -> list[Split]:
        """The splits of all data sets."""
        return [split for dataset in self.datasets for split in dataset.splits.values()]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files to look at; the terminal shows the first of them, the page all."""

    title: str
    lines: Sequence[str]
