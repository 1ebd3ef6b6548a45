"""All checks of a configuration's data before training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline import validation
from input_pipeline.doctor import duplicates
from input_pipeline.doctor.loading import open_dataset, open_pose_files
from input_pipeline.doctor.statistics import Found, Listing, Split, Survey, unless_used
from input_pipeline.errors import DataError
from input_pipeline.poses.cache import PoseCache
from input_pipeline.sampler import identity_batches
from input_pipeline.validation import Findings, some
from pgfl_jax.config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """The data of a configuration and the doctor's findings.

    Attributes:
        survey: the data.
        findings: errors, warnings and notes, one line each.
        listings: the files that the findings are about.
    """

    survey: Survey
    findings: Findings
    listings: Sequence[Listing]


def preparation(survey: Survey) -> Found:
    """The warnings about how the data sets were prepared."""
    for dataset in survey.datasets:
        yield Findings(warnings=list(dataset.warnings))
        if dataset.unmatched:
            yield Listing(f"{dataset.name}: files left out when prepared", dataset.unmatched)


def images(survey: Survey) -> Found:
    """Images that cannot be read."""
    for split in survey.splits:
        catalog = split.catalog
        found = validation.check_images(split.label, catalog)
        # The markers of the others are complete, so training would fail only on reading them.
        further = split.unreadable[catalog.image_sizes[split.unreadable].all(axis=1)]
        if further.size:
            found.errors.append(
                f"{split.label}: {further.size} files are damaged and cannot be decoded: "
                f"{some(catalog.filenames[further])}; replace or remove them, and prepare the "
                "data set again (delete its folder in config.data.data_dir)"
            )
        yield unless_used(found, split.used)
        if split.unreadable.size:
            lines = [split.describe(row) for row in split.unreadable]
            yield Listing(f"{split.label}: unreadable files", lines)
        if split.dark.size:
            line = (
                f"{split.label}: {split.dark.size:,} images are nearly black (no value above 15 of "
                f"255): {some(catalog.filenames[split.dark])}; if they hold 10 or 12 bits in 16, "
                "save them with 8"
            )
            yield unless_used(Findings(warnings=[line]), split.used)
            lines = [split.describe(row) for row in split.dark]
            yield Listing(f"{split.label}: nearly black images", lines)


def training(survey: Survey) -> Found:
    """Whether the training split yields batches, and what it lacks."""
    config = survey.config
    for split in survey.splits:
        if split.name == "train" and split.used:
            found = validation.check_training(split.label, split.catalog)
            yield Findings(warnings=found.warnings)  # its errors are those of its images
            if config.trains_with_poses:
                pose = config.data.pose
                yield validation.check_poses(split.label, split.catalog, pose.files, pose.threshold)
            yield Findings(errors=_batch_problems(config, split))


def keypoints(survey: Survey) -> Found:
    """Keypoints that are not pixels of their images, or of images that other tools turn."""
    config = survey.config
    for split in survey.splits:
        read = config.trains_with_poses if split.name == "train" else config.scores_with_poses
        found = validation.check_keypoints(split.label, split.catalog)
        posed = split.catalog.has_pose
        if posed.any():  # else no image has to be read again
            turned = split.catalog.filenames[posed & split.catalog.turned]
            found.add(validation.check_upright(split.label, turned))
        yield unless_used(found, split.used and read)


def _batch_problems(config: Config, split: Split) -> list[str]:
    """The sampler's error, if it cannot make batches."""
    try:
        identity_batches(
            split.catalog.identities,
            split.catalog.cameras,
            identities_per_batch=config.data.identities_per_batch,
            images_per_identity=config.data.images_per_identity,
            seed=config.seed,
        )
    except DataError as error:
        return [f"config.{error}"]
    return []


def protocols(survey: Survey) -> Found:
    """Queries without a possible match."""
    for dataset in survey.datasets:
        for protocol in dataset.protocols:
            query, gallery = protocol.query, protocol.gallery
            if protocol.matchless.size:
                found = validation.check_protocol(protocol.label, query.catalog, gallery.catalog)
                yield unless_used(found, dataset.scored)
                lines = [query.describe(row) for row in protocol.matchless]
                yield Listing(f"{protocol.label}: queries without a possible match", lines)


def pose_files(survey: Survey) -> Found:
    """Pose files that belong to other images."""
    splits = survey.splits
    for index, (name, cache) in enumerate(survey.poses):
        if splits and not any(split.matches[index] for split in splits):
            yield Findings(
                errors=[
                    f"{name}: none of its {len(cache):,} poses belongs to an image of these data "
                    "sets; make it again for them (docs/poses.md), or remove it from "
                    "config.data.pose.files"
                ]
            )
        elif splits:
            digests = [split.catalog.image_sha256 for split in splits]
            yield from _unmatched_poses(name, cache, np.concatenate(digests))


def _unmatched_poses(name: str, cache: PoseCache, digests: np.ndarray) -> Found:
    """The rows of a pose file that belong to no image here."""
    strangers = np.flatnonzero(~np.isin(cache.image_sha256, digests))
    if strangers.size:
        yield Findings(
            notes=[
                f"{name}: {strangers.size:,} of its {len(cache):,} poses belong to images that "
                "these data sets do not have"
            ]
        )
        lines = [f"{cache.splits[row]}/{cache.filenames[row]}" for row in strangers]
        yield Listing(f"{name}: poses without an image here", lines)


_CHECKS = (
    preparation,
    images,
    training,
    keypoints,
    protocols,
    pose_files,
    duplicates.within_splits,
    duplicates.test_images_in_training,
    duplicates.queries_in_galleries,
    duplicates.shared_identities,
)


def diagnose(config: Config) -> Diagnosis:
    """Open the data of a configuration and check everything; no error stops it.

    Errors in splits that the configuration does not use become warnings.
    """
    findings, listings = Findings(), []
    poses = open_pose_files(config, findings)
    names = dict.fromkeys((config.data.dataset, *config.eval.datasets))
    survey = Survey(config, [open_dataset(config, name, poses, findings) for name in names], poses)
    for check in _CHECKS:
        for found in check(survey):
            if isinstance(found, Listing):
                listings.append(found)
            else:
                findings.add(found)
    # A pose file can cause the same error for every split.
    findings.errors = list(dict.fromkeys(findings.errors))
    findings.warnings = list(dict.fromkeys(findings.warnings))
    return Diagnosis(survey, findings, listings)
