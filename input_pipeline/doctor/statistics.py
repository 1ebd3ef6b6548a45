"""The doctor's view of the data: splits, protocols, data sets, and the form of its findings."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from input_pipeline import validation
from input_pipeline.catalog import Catalog
from input_pipeline.copies import copied_queries
from input_pipeline.poses.cache import PoseCache
from input_pipeline.validation import Findings
from pgfl_jax.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split; N images.

    Attributes:
        dataset: the data set's full name.
        name: the split's name.
        catalog: its images, with their poses joined.
        unreadable: (U,) rows of the images that are truncated or cannot be decoded, in order.
        matches: for each pose file, the number of images that it has a pose for.
        used: whether the configuration trains on it or scores it.
        identities: names of the identities by their numbers; empty where these are the names.
        cameras: likewise.
        dark: (B,) rows of the images that are nearly black, in order.
    """

    dataset: str
    name: str
    catalog: Catalog
    unreadable: Int[np.ndarray, " unreadable"]
    matches: tuple[int, ...]
    used: bool
    identities: Sequence[str] = ()
    cameras: Sequence[str] = ()
    dark: Int[np.ndarray, " dark"] = dataclasses.field(default_factory=lambda: np.zeros(0, int))

    @property
    def label(self) -> str:
        """Data set and split, for messages."""
        return f"{self.dataset} {self.name}"

    def describe(self, row: int | np.integer) -> str:
        """File name, identity and camera of an image."""
        catalog = self.catalog
        camera = catalog.cameras[row]
        return (
            f"{catalog.filenames[row]} (identity {self.identity(catalog.identities[row])}, "
            f"camera {self.cameras[camera] if self.cameras else camera})"
        )

    def identity(self, number: int | np.integer) -> str:
        """The name of an identity."""
        return self.identities[int(number)] if self.identities else str(number)


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
    def matchless(self) -> Int[np.ndarray, " matchless"]:
        """Rows of the queries without a possible match, in order."""
        return validation.queries_without_match(self.query.catalog, self.gallery.catalog)

    @functools.cached_property
    def copies(self) -> tuple[Bool[np.ndarray, " queries"], Bool[np.ndarray, " queries"]]:
        """What :func:`copied_queries` finds."""
        return copied_queries(self.query.catalog, self.gallery.catalog)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, as far as it could be opened.

    Attributes:
        name: its full name, or the name in the configuration if it could not be opened.
        splits: by name: train, the query splits, gallery, others.
        protocols: those that could be opened.
        scored: whether the configuration scores it.
        source: the copy that it was prepared from; empty if unknown.
        warnings: those from when it was prepared.
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

    @property
    def queried(self) -> Int[np.ndarray, " people"]:
        """Identities that have queries; the others in the gallery are distractors."""
        people = [protocol.query.catalog.identities for protocol in self.protocols]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *people]))


def is_test(split: str, queries: Collection[str]) -> bool:
    """Whether a split holds queries or the gallery, given the protocols' query splits."""
    return split == "gallery" or split.startswith("query") or split in queries


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """All data that a configuration names, as far as they could be opened.

    Attributes:
        config: the configuration.
        datasets: the training set, then those that are scored.
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
    """Files to look at; the terminal shows the first ones, the page all of them."""

    title: str
    lines: Sequence[str]


Found = Iterator[Findings | Listing]


def unless_used(findings: Findings, used: bool) -> Findings:
    """The findings unchanged if the configuration uses the split; else errors become warnings."""
    if used:
        return findings
    lines = [*findings.errors, *findings.warnings]
    return Findings(
        warnings=[f"{line} (not used by this configuration)" for line in lines],
        notes=findings.notes,
    )
