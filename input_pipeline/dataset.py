"""From a configuration to what a run reads: the training set and the evaluation splits."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from input_pipeline.builders import load_builder
from input_pipeline.catalog import Catalog, DataError, read_catalog
from input_pipeline.pipeline import evaluation_batches, train_batches
from pgfl_jax.config import Config
from pgfl_jax.evaluate import EvaluationData, EvaluationSplit, Protocol
from pgfl_jax.train import TrainingData


def open_builder(config: Config) -> Any:
    """The builder of the configured data set, prepared if it was not yet."""
    builder = load_builder(config.data.dataset, config.data.data_dir)
    builder.download_and_prepare()
    return builder


def training_data(config: Config, builder: Any) -> TrainingData:
    """The training split, with the poses that ``config.data.pose.source`` asks for."""
    catalog = read_catalog(builder, "train")
    if config.data.pose.source == "shuffled":
        catalog = catalog.shuffle_poses(config.seed)
    elif config.data.pose.source == "none":
        catalog = catalog.without_poses()

    def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return train_batches(
            catalog,
            config.data,
            map_shape=config.map_shape,
            seed=config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return TrainingData(
        num_identities=catalog.num_identities,
        filenames=catalog.filenames,
        batches=batches,
        description=_describe(catalog, builder.info.full_name, config.data.pose.source),
    )


def evaluation_data(config: Config, builder: Any) -> EvaluationData:
    """The query and gallery splits with their own poses, and the protocols over them.

    A builder's ``PROTOCOLS`` maps each protocol's name to its query split, the first protocol
    deciding the best step. Without it every split whose name begins with ``query`` is a protocol.
    """
    splits = sorted(builder.info.splits)
    queries = {split: split for split in splits if split.startswith("query")}
    queries = getattr(builder, "PROTOCOLS", queries)
    if not queries or "gallery" not in splits:
        raise DataError(f"{builder.info.full_name}: needs splits query and gallery; has {splits}")
    protocols = [Protocol(name, query, gallery="gallery") for name, query in queries.items()]
    names = sorted({name for p in protocols for name in (p.query, p.gallery)})
    catalogs = {name: read_catalog(builder, name) for name in names}
    return EvaluationData(
        dataset=builder.info.full_name,
        splits={name: evaluation_split(catalog, config) for name, catalog in catalogs.items()},
        protocols=protocols,
    )


def evaluation_split(catalog: Catalog, config: Config) -> EvaluationSplit:
    """A catalog as the evaluation reads it."""
    batches = functools.partial(
        evaluation_batches,
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


def _describe(catalog: Catalog, name: str, pose_source: str) -> dict[str, Any]:
    """Fingerprints, so that two runs can be seen to have read the same."""
    posed = catalog.keypoints.any(axis=(1, 2))
    return {
        "name": name,
        "images": len(catalog),
        "images_sha256": _sha256(*catalog.images),
        "identities_sha256": _sha256(
            *(str(name).encode() for name in catalog.filenames),
            catalog.labels.astype("<i8").tobytes(),
        ),
        "pose_source": pose_source,
        "pose_coverage": float(posed.mean()),
        "poses_sha256": _sha256(np.ascontiguousarray(catalog.keypoints).tobytes()),
    }


def _sha256(*chunks: bytes) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
