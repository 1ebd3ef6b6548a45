"""What must hold of a data set before anything is trained or scored; cheap, nothing is decoded."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.catalog import Catalog, DataError

_NAMED = 5  # so many of several files stand in a message


@dataclasses.dataclass
class Findings:
    """One line each.

    Attributes:
        errors: why training or evaluation cannot work.
        warnings: what a user should know, and may want.
        notes: what is worth knowing and as it should be.
    """

    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Append the findings of another check."""
        self.errors += other.errors
        self.warnings += other.warnings
        self.notes += other.notes

    def raise_errors(self) -> None:
        """Raise a DataError with all errors, if there are any."""
        if self.errors:
            raise DataError("; ".join(self.errors))


def check_images(name: str, catalog: Catalog) -> Findings:
    """Files that are cut off, or no JPEG or PNG at all.

    Args:
        name: of data set and split, for the messages.
        catalog: the split.
    """
    broken = np.flatnonzero(~catalog.image_sizes.all(axis=1))
    if not broken.size:
        return Findings()
    return Findings(
        errors=[
            f"{name}: {broken.size} files are no whole JPEG or PNG: "
            f"{some(catalog.filenames[broken])}; replace or remove them, and prepare the data set "
            "anew (delete its folder in config.data.data_dir)"
        ]
    )


def check_training(name: str, catalog: Catalog) -> Findings:
    """What a training split lacks.

    Args:
        name: of data set and split, for the messages.
        catalog: the split.
    """
    findings = check_images(name, catalog)
    counts = np.bincount(catalog.labels)
    single = int((counts == 1).sum())
    if single:
        findings.warnings.append(
            f"{name}: {single} of {len(counts)} identities have a single image; a batch repeats it"
        )
    return findings


def check_poses(name: str, catalog: Catalog, pose_files: Sequence[str]) -> Findings:
    """Whether there is a pose to train the pose branches with; an error if files were given.

    Args:
        name: of data set and split, for the messages.
        catalog: the training split, its poses joined.
        pose_files: from which poses were joined.
    """
    if catalog.has_pose.any():
        return Findings()
    if pose_files:
        return Findings(
            errors=[
                f"config.data.pose.files: no pose of {', '.join(pose_files)} is of an image of "
                f"{name}; make it for this data set (docs/poses.md)"
            ]
        )
    return Findings(
        warnings=[
            f"{name}: no image has a pose, so the main branch alone is trained; give "
            "config.data.pose.files (docs/poses.md), or set config.model.pose_branches=False"
        ]
    )


def queries_without_match(query: Catalog, gallery: Catalog) -> np.ndarray:
    """Indices of the queries whose identity no other camera of the gallery has seen."""
    _, seen = np.unique(
        np.stack([gallery.identities, gallery.cameras], axis=1), axis=0, return_index=True
    )
    pairs = {(gallery.identities[i], gallery.cameras[i]) for i in seen}
    cameras = dict(zip(*np.unique(gallery.identities[seen], return_counts=True), strict=True))
    matchless = [
        cameras.get(identity, 0) - ((identity, camera) in pairs) < 1
        for identity, camera in zip(query.identities, query.cameras, strict=True)
    ]
    return np.flatnonzero(matchless)


def check_protocol(name: str, query: Catalog, gallery: Catalog) -> Findings:
    """Queries that no gallery image can answer; an error if that is all of them.

    Args:
        name: of data set and protocol, for the messages.
        query: the query split.
        gallery: the gallery split.
    """
    lonely = queries_without_match(query, gallery)
    if not lonely.size:
        return Findings()
    line = (
        f"{name}: {lonely.size} of {len(query)} queries have no match from another camera in the "
        f"gallery: {some(query.filenames[lonely])}"
    )
    if lonely.size < len(query):
        return Findings(warnings=[f"{line}; they are left out of the scores"])
    return Findings(errors=[f"{line}; look at the identities and cameras of both splits"])


def some(names: np.ndarray) -> str:
    """The first names, and whether there are more."""
    more = ", …" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more
