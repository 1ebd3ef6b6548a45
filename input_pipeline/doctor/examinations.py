"""What is odd about each split, each protocol and each pose file."""

from collections.abc import Iterator

import numpy as np

from input_pipeline import checks
from input_pipeline.catalog import DataError
from input_pipeline.checks import Findings, some
from input_pipeline.doctor.survey import Listing, Split, Survey
from input_pipeline.poses.cache import PoseCache
from input_pipeline.sampler import identity_batches
from pgfl_jax.config import Config

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


def preparation(survey: Survey) -> Found:
    """What was noticed when the data sets were prepared."""
    for dataset in survey.datasets:
        yield Findings(warnings=list(dataset.warnings))
        if dataset.unmatched:
            yield Listing(f"{dataset.name}: files left out when prepared", dataset.unmatched)


def images(survey: Survey) -> Found:
    """Images that cannot be read."""
    for split in survey.splits:
        catalog = split.catalog
        found = checks.check_images(split.label, catalog)
        # The others are whole as far as their markers tell: training would only fail on the way.
        further = split.unreadable[catalog.image_sizes[split.unreadable].all(axis=1)]
        if further.size:
            found.errors.append(
                f"{split.label}: {further.size} files are damaged and cannot be decoded: "
                f"{some(catalog.filenames[further])}; replace or remove them, and prepare the "
                "data set anew (delete its folder in config.data.data_dir)"
            )
        yield unless_used(found, split.used)
        if split.unreadable.size:
            lines = [split.describe(row) for row in split.unreadable]
            yield Listing(f"{split.label}: unreadable files", lines)


def training(survey: Survey) -> Found:
    """Whether batches can be made of the training split, and what it lacks."""
    config = survey.config
    for split in survey.splits:
        if split.name == "train" and split.used:
            wanted = config.model.pose_branches and config.data.pose.source != "none"
            found = checks.check_training(split.label, split.catalog, poses_wanted=wanted)
            yield Findings(warnings=found.warnings)  # its errors are those of its images
            yield Findings(errors=_batch_problems(config, split))


def _batch_problems(config: Config, split: Split) -> list[str]:
    """Why the sampler cannot make batches, if it cannot."""
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
        for protocol, query_name in dataset.protocols.items():
            query, gallery = dataset.splits[query_name], dataset.splits["gallery"]
            label = f"{dataset.name} {protocol}"
            found = checks.check_protocol(label, query.catalog, gallery.catalog)
            yield unless_used(found, dataset.scored)
            matchless = checks.queries_without_match(query.catalog, gallery.catalog)
            if matchless.size:
                lines = [query.describe(row) for row in matchless]
                yield Listing(f"{label}: queries without a possible match", lines)


def pose_files(survey: Survey) -> Found:
    """Pose files of other images."""
    splits = survey.splits
    digests = np.concatenate([split.digests for split in splits]) if splits else np.zeros(0, "U64")
    for index, (name, cache) in enumerate(survey.poses):
        if splits and not any(split.matches[index] for split in splits):
            yield Findings(
                errors=[
                    f"{name}: none of its {len(cache):,} poses is of an image of these data sets; "
                    "make it anew for them (docs/poses.md), or take it out of "
                    "config.data.pose.files"
                ]
            )
        elif splits:
            yield from _unmatched_poses(name, cache, digests)


def _unmatched_poses(name: str, cache: PoseCache, digests: np.ndarray) -> Found:
    """The rows of a pose file that are of no image here."""
    strangers = np.flatnonzero(~np.isin(cache.image_sha256, digests))
    if strangers.size:
        yield Findings(
            notes=[
                f"{name}: {strangers.size:,} of its {len(cache):,} poses are of images that these "
                "data sets do not have"
            ]
        )
        lines = [f"{cache.splits[row]}/{cache.filenames[row]}" for row in strangers]
        yield Listing(f"{name}: poses of no image here", lines)
