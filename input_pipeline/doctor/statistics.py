"""The splits and protocols of the data as the doctor looks at them, and what it finds."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import validation
from input_pipeline.catalog import Catalog
from input_pipeline.poses.cache import PoseCache
from input_pipeline.validation import Findings
from pgfl_jax.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split; N images.

    Attributes:
        dataset: the data set's full name.
        name: the split's name.
        catalog: its images, their poses joined.
        unreadable: (U,) rows of the images that are cut off or cannot be decoded, in order.
        matches: for each pose file, how many of the images it knows.
        used: whether the configuration trains on it or scores it.
    """

    dataset: str
    name: str
    catalog: Catalog
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
class Protocol:
    """Q queries and their gallery.

    Attributes:
        label: data set and protocol, for messages.
        name: the protocol's name.
        query: the query split.
        gallery: the gallery split.
    """

    label: str
    name: str
    query: Split
    gallery: Split

    @functools.cached_property
    def matchless(self) -> np.ndarray:
        """Rows of the queries without a possible match, in order."""
        return validation.queries_without_match(self.query.catalog, self.gallery.catalog)

    @functools.cached_property
    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries whose image stands in the gallery, too.

        Returns:
            (Q,) bool, whether there is a copy, and (Q,) bool, whether all copies are junk: have the
            query's identity and camera, so that they leave its ranking.
        """
        catalogs = self.query.catalog, self.gallery.catalog
        count = len(self.query.catalog)
        contents = _codes(np.concatenate([one.image_sha256 for one in catalogs]))
        people = [[one.identities, one.cameras] for one in catalogs]
        rows = np.stack([contents, *np.concatenate(people, axis=1)], axis=1)
        alike, junk = (_occurrences(codes, count) for codes in (contents, _codes(rows)))
        return alike > 0, (alike > 0) & (junk == alike)


def _codes(values: np.ndarray) -> np.ndarray:
    """(N,) int64 numbers of N values or rows; equal ones have equal numbers."""
    return np.unique(values, axis=0, return_inverse=True)[1].ravel()


def _occurrences(codes: np.ndarray, count: int) -> np.ndarray:
    """How often each of the first ``count`` codes is among the others."""
    return np.bincount(codes[count:], minlength=codes.max() + 1)[codes[:count]]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, as much of it as could be opened.

    Attributes:
        name: its full name; as it was given where it could not be opened.
        splits: by name: train, the query splits, gallery, others.
        protocols: those that could be opened.
        scored: whether the configuration scores it.
        source: where it was prepared from; empty where that is not kept.
        warnings: what was noticed when it was prepared.
        unmatched: files left out then.
    """

    name: str
    splits: Mapping[str, Split]
    protocols: Sequence[Protocol]
    scored: bool
    source: str = ""
    warnings: Sequence[str] = ()
    unmatched: Sequence[str] = ()

    @property
    def test_splits(self) -> list[Split]:
        """Queries and gallery."""
        queries = {protocol.query.name for protocol in self.protocols}
        return [split for name, split in self.splits.items() if is_test(name, queries)]


def is_test(split: str, queries: Collection[str]) -> bool:
    """Whether a split holds queries or the gallery, given the protocols' query splits."""
    return split == "gallery" or split.startswith("query") or split in queries


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """All data that a configuration names, as much of it as could be opened.

    Attributes:
        config: the configuration.
        datasets: the training set first, then those that are scored.
        poses: the pose files that could be read, with their names.
    """

    config: Config
    datasets: Sequence[Dataset]
    poses: Sequence[tuple[str, PoseCache]]

    @property
    def splits(self) -> list[Split]:
        """The splits of all data sets."""
        return [split for dataset in self.datasets for split in dataset.splits.values()]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files to look at; the terminal shows the first of them, the page all."""

    title: str
    lines: Sequence[str]


Found = Iterator[Findings | Listing]


def unless_used(findings: Findings, used: bool) -> Findings:
    """The findings as they are if they matter to the configuration; else all as warnings."""
    if used:
        return findings
    lines = [*findings.errors, *findings.warnings]
    return Findings(
        warnings=[f"{line} (not used by this configuration)" for line in lines],
        notes=findings.notes,
    )
