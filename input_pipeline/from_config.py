"""From a configuration to what a run reads: the training set and the evaluation splits."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.builders import prepared_builder
from input_pipeline.catalog import Catalog, DataError, read_catalog
from input_pipeline.pipeline import evaluation_batches, train_batches
from input_pipeline.poses.cache import PoseCache, read_poses
from input_pipeline.validation import (
    Findings,
    check_images,
    check_poses,
    check_protocol,
    check_training,
    queries_without_match,
)
from pgfl_jax.config import Config
from pgfl_jax.distributed.collectives import is_primary
from pgfl_jax.retrieval.protocols import EvaluationData, EvaluationSplit, Protocol
from pgfl_jax.train import TrainingData

_DRY_RUN_QUERIES = 4  # queries of each protocol


def open_builder(config: Config, name: str) -> Any:
    """The builder of a data set, prepared if it was not yet."""
    return prepared_builder(name, config.data.data_dir, config.data.manual_dir)


def open_catalog(
    builder: Any, split: str, poses: Sequence[PoseCache] = (), *, memory_gib: float = 0.0
) -> Catalog:
    """A split, with given poses where they know its images; the last that does counts."""
    catalog = read_catalog(builder, split, memory_gib=memory_gib)
    for cache in poses:
        catalog = catalog.with_poses(cache)
    return catalog


def read_pose_files(config: Config) -> list[PoseCache]:
    """The poses of ``config.data.pose.files``; a DataError names one that cannot be read."""
    return [read_poses(path) for path in _pose_files(config)]


def _pose_files(config: Config) -> list[Path]:
    return [Path(path).expanduser() for path in config.data.pose.files]


def training_data(config: Config) -> TrainingData:
    """The training split, with the poses that ``config.data.pose`` asks for.

    What is odd about it is printed; what cannot work is an error.

    Raises:
        DataError: the data set cannot be trained on.
    """
    builder = open_builder(config, config.data.dataset)
    poses = read_pose_files(config)
    catalog = open_catalog(builder, "train", poses, memory_gib=config.data.memory_gib)
    source = config.data.pose.source
    label = f"{builder.info.full_name} train"
    findings = check_training(label, catalog)
    if config.trains_with_poses:
        findings.add(check_poses(label, catalog, config.data.pose.files))
    if config.data.dataset not in evaluated_sets(config):  # else the evaluation tells
        findings.warnings += stored_warnings(builder)
    _report(findings)
    if source == "shuffled":
        catalog = catalog.shuffle_poses(config.seed)
    elif source == "none":
        catalog = catalog.without_poses()

    def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return train_batches(
            catalog,
            config.data,
            map_shape=config.map_shape,
            seed=config.seed,
            start_step=start_step,
            parts=config.train.accumulation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return TrainingData(
        num_identities=catalog.num_identities,
        filenames=catalog.filenames,
        batches=batches,
        description=_describe(catalog, builder, source),
        origin={
            "dataset": builder.info.full_name,
            "pose_files": _describe_pose_files(config, poses),
        },
    )


def evaluation_data(config: Config) -> EvaluationData:
    """The splits and protocols of ``config.eval.datasets``, or else of the training set.

    Results of named data sets carry the set's name, those of the training set the protocol's
    alone. Poses of files are joined only if a teacher is evaluated, since nobody else reads them.

    Raises:
        DataError: a data set cannot be scored.
    """
    dry_run = EvaluationData(splits={}, protocols=[])
    data = EvaluationData(splits={}, protocols=[], dry_run=dry_run)
    findings = Findings()
    poses = [] if config.eval.embeddings == ("main",) else read_pose_files(config)
    for name in evaluated_sets(config):
        builder = open_builder(config, name)
        full_name = builder.info.full_name
        findings.warnings += stored_warnings(builder)
        queries = protocols(builder)
        catalogs = {
            split: open_catalog(builder, split, poses)
            for split in sorted({*queries.values(), "gallery"})
        }
        for split, catalog in catalogs.items():
            findings.add(check_images(f"{full_name} {split}", catalog))
            data.splits[f"{name}/{split}"] = evaluation_split(catalog, config)
        for protocol, query in queries.items():
            label = f"{full_name} {protocol}"
            findings.add(check_protocol(label, catalogs[query], catalogs["gallery"]))
            data.protocols.append(
                Protocol(
                    name=_result_name(name, protocol) if config.eval.datasets else protocol,
                    dataset=full_name,
                    query=f"{name}/{query}",
                    gallery=f"{name}/gallery",
                )
            )
            _add_few(dry_run, label, catalogs[query], catalogs["gallery"], config)
    _report(findings)
    return data


def _add_few(
    dry_run: EvaluationData, label: str, query: Catalog, gallery: Catalog, config: Config
) -> None:
    """Add a protocol over the first queries that have matches, and the images of their people."""
    matched = np.setdiff1d(np.arange(len(query)), queries_without_match(query, gallery))
    asked = query.select(matched[:_DRY_RUN_QUERIES])
    answers = gallery.select(np.isin(gallery.identities, asked.identities))
    if len(asked):
        splits = f"{label}: query", f"{label}: gallery"
        for name, catalog in zip(splits, (asked, answers), strict=True):
            dry_run.splits[name] = evaluation_split(catalog, config)
        dry_run.protocols.append(Protocol(label, label, *splits))


def evaluated_sets(config: Config) -> tuple[str, ...]:
    """Names of the data sets that are scored."""
    return config.eval.datasets or (config.data.dataset,)


def protocols(builder: Any) -> Mapping[str, str]:
    """From the name of each protocol to its query split.

    A builder's ``PROTOCOLS``, or else one for every split whose name begins with ``query``.

    Raises:
        DataError: the data set has no queries or no gallery.
    """
    splits = sorted(builder.info.splits)
    queries = {split: split for split in splits if split.startswith("query")}
    queries = getattr(builder, "PROTOCOLS", queries)
    if not queries or "gallery" not in splits:
        raise DataError(
            f"{builder.info.full_name}: needs splits query and gallery to be scored; it has "
            f"{', '.join(splits)}; name other sets in config.eval.datasets"
        )
    return queries


def _result_name(dataset: str, protocol: str) -> str:
    """``occluded_reid``, ``msmt17-v1``, ``partial_reid.occluded``: fit for a file name."""
    name = dataset.replace("/", "-")
    return name if protocol == "query" else f"{name}.{protocol}"


def stored_warnings(builder: Any) -> list[str]:
    """What was noticed when the data set was prepared."""
    return list((builder.info.metadata or {}).get("warnings", []))


def _report(findings: Findings) -> None:
    """Print the warnings, once for all processes; raise the errors."""
    for warning in findings.warnings if is_primary() else ():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    findings.raise_errors()


def evaluation_split(catalog: Catalog, config: Config) -> EvaluationSplit:
    """A catalog as the evaluation reads it."""
    batches = evaluation_batches(
        catalog,
        config.data,
        map_shape=config.map_shape,
        batch_size=config.eval.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return EvaluationSplit(
        filenames=catalog.filenames,
        identities=catalog.identities,
        cameras=catalog.cameras,
        occlusion=catalog.occlusion,
        batches=batches,
    )


def _describe(catalog: Catalog, builder: Any, pose_source: str) -> dict[str, Any]:
    """Fingerprints, so that two runs can be seen to have read the same."""
    description = {
        "name": builder.info.full_name.rpartition("/")[0],  # the content counts, not the version
        "images": len(catalog),
        "images_sha256": _sha256(*(digest.encode() for digest in catalog.image_sha256)),
        "identities_sha256": _sha256(
            *(str(name).encode() for name in catalog.filenames),
            catalog.labels.astype("<i8").tobytes(),
        ),
        "pose_source": pose_source,
        "pose_coverage": float(catalog.has_pose.mean()),
        "poses_sha256": _sha256(
            np.ascontiguousarray(catalog.keypoints).tobytes(),
            b"" if catalog.part_maps is None else np.ascontiguousarray(catalog.part_maps).tobytes(),
        ),
    }
    metadata = builder.info.metadata or {}
    if "identity_map_sha256" in metadata:
        description["identity_map_sha256"] = metadata["identity_map_sha256"]
    return description


def _describe_pose_files(config: Config, poses: Sequence[PoseCache]) -> list[dict[str, Any]]:
    """Name, hash and estimators of each pose file."""
    return [
        {
            "name": path.name,
            "sha256": _sha256(path.read_bytes()),
            "estimators": sorted({str(name) for name in cache.estimators}),
        }
        for path, cache in zip(_pose_files(config), poses, strict=True)
    ]


def _sha256(*chunks: bytes) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
