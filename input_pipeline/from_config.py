"""From a configuration to the data of a run: the training set and the evaluation splits."""

import dataclasses
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.builders import other_source, prepared_builder
from input_pipeline.catalog import Catalog, joined_catalogs, read_catalog
from input_pipeline.copies import (
    check_copied_queries,
    check_people,
    check_repeats,
    copied_queries,
)
from input_pipeline.errors import DataError
from input_pipeline.keypoints import PARTS, shown_limbs
from input_pipeline.pipeline import (
    evaluation_batch_size,
    evaluation_batches,
    train_batches,
)
from input_pipeline.pose_controls import training_poses
from input_pipeline.poses.cache import PoseCache, join_poses, read_poses
from input_pipeline.validation import (
    Findings,
    check_images,
    check_keypoints,
    check_poses,
    check_protocol,
    check_separate,
    check_teachers,
    check_training,
    known,
    queries_without_match,
)
from pgfl_jax.config import Config, Embedding
from pgfl_jax.distributed.collectives import is_primary
from pgfl_jax.report.training_images import TRAINING_IMAGES, read_training_images
from pgfl_jax.report.writers import STEP_SUFFIX
from pgfl_jax.retrieval.protocols import Batch, EvaluationData, EvaluationSplit, Limb, Protocol
from pgfl_jax.train import TrainingData

_DRY_RUN_QUERIES = 4  # queries of each protocol
# What pgfl_jax.retrieval.evaluate appends to the names of results.
_RESULT_SUFFIXES = frozenset(
    {
        "average",
        "best",
        "calibration",
        "foreground",
        "joined",
        "parts",
        "queries",
        "rerank",
        "untrained",
    }
)


def open_builder(config: Config, name: str) -> Any:
    """The builder of a data set, prepared if necessary."""
    return prepared_builder(name, config.data.data_dir, config.data.manual_dir)


def open_catalog(
    builder: Any, split: str, poses: Sequence[PoseCache] = (), *, memory_gib: float = 0.0
) -> Catalog:
    """A split joined with poses; if several caches have an image, the last one counts."""
    catalog = read_catalog(builder, split, memory_gib=memory_gib)
    for cache in poses:
        catalog = join_poses(catalog, cache)
    return catalog


def read_pose_files(config: Config) -> list[PoseCache]:
    """The poses of ``config.data.pose.files``; DataError if a file cannot be read."""
    return [read_poses(path) for path in _pose_files(config)]


def _pose_files(config: Config) -> list[Path]:
    return [Path(path) for path in config.data.pose.files]


def training_data(config: Config) -> TrainingData:
    """The training split, with the poses that ``config.data.pose`` asks for.

    Oddities of the data are printed as warnings; data that cannot work are an error.

    Raises:
        DataError: the data set cannot be trained on.
    """
    builder = open_builder(config, config.data.dataset)
    poses = read_pose_files(config)
    catalog = open_catalog(builder, "train", poses, memory_gib=config.data.memory_gib)
    threshold = config.data.pose.threshold
    label = f"{builder.info.full_name} train"
    findings = check_training(label, catalog)
    findings.add(check_repeats(label, catalog))
    if config.trains_with_poses:
        findings.add(check_poses(label, catalog, config.data.pose.files, threshold))
        findings.add(check_keypoints(label, catalog))
    if config.data.dataset not in evaluated_sets(config):  # else the evaluation warns
        findings.warnings += preparation_warnings(config, builder)
    _report(findings)
    poses_at = training_poses(catalog, config)
    catalog = poses_at(0)

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
            poses_at=poses_at,
        )

    return TrainingData(
        num_identities=catalog.num_identities,
        filenames=catalog.filenames,
        batches=batches,
        description=_describe(catalog, builder, config),
        origin={
            "dataset": builder.info.full_name,
            "pose_files": _describe_pose_files(config, poses),
        },
        image_sha256=catalog.image_sha256,
        identities=catalog.identities,
    )


def training_images(config: Config, count: int) -> dict[str, bytes]:
    """The files of up to ``count`` training images by name, evenly chosen."""
    catalog = open_catalog(open_builder(config, config.data.dataset), "train")
    chosen = np.linspace(0, len(catalog) - 1, min(count, len(catalog))).round().astype(int)
    return {str(catalog.filenames[index]): catalog.images[index] for index in chosen}


def evaluation_data(
    config: Config, training: TrainingData | None = None, *, run: Path | None = None
) -> EvaluationData:
    """The splits and protocols of ``config.eval.datasets``, or else of the training set.

    Results are named by data set and protocol, or by the protocol alone for the training set. Pose
    files are joined only if a teacher is evaluated, because only teachers read poses.

    Args:
        config: the configuration.
        training: the data that the run trains on; None if it only evaluates.
        run: the folder of a trained run that is evaluated; None if there is none.

    Raises:
        DataError: a data set cannot be scored, its queries or gallery hold training images, or its
            results would be named as those of another.
    """
    dry_run = EvaluationData(splits={}, protocols=[])
    parts = tuple(part.name for part in PARTS)
    data = EvaluationData(splits={}, protocols=[], dry_run=dry_run, parts=parts)
    findings = Findings()
    train, train_sha256 = _trained_on(training, run, findings)
    poses = read_pose_files(config) if config.scores_with_poses else []
    named: dict[str, str] = {}
    asked: list[Catalog] = []
    for name in evaluated_sets(config):
        builder = open_builder(config, name)
        full_name = builder.info.full_name
        findings.warnings += preparation_warnings(config, builder)
        queries = protocols(builder)
        results = {
            protocol: _result_name(name, protocol) if config.eval.datasets else protocol
            for protocol in queries
        }
        for protocol, result in results.items():
            _check_result_name(result, f"{name} {protocol}", named)
        catalogs = {
            split: open_catalog(builder, split, poses)
            for split in sorted({*queries.values(), "gallery"})
        }
        for split, catalog in catalogs.items():
            label = f"{full_name} {split}"
            findings.add(check_images(label, catalog))
            findings.add(check_repeats(label, catalog))
            if config.scores_with_poses:
                findings.add(check_keypoints(label, catalog))
            findings.add(check_separate(train, train_sha256, label, catalog))
            if training and name == config.data.dataset:
                people = (builder.info.metadata or {}).get("identities", ())
                findings.add(check_people(training.identities, label, catalog, people))
            data.splits[f"{name}/{split}"] = evaluation_split(catalog, config)
        for protocol, query in queries.items():
            label = f"{full_name} {protocol}"
            pair = catalogs[query], catalogs["gallery"]
            asked.append(pair[0])
            findings.add(check_protocol(label, *pair))
            copies = copied_queries(*pair)
            findings.add(check_copied_queries(label, pair[0].filenames, *copies))
            if config.scores_with_poses:
                findings.add(check_teachers(label, *pair, config.data.pose.threshold))
            data.protocols.append(
                Protocol(
                    name=results[protocol],
                    dataset=full_name,
                    query=f"{name}/{query}",
                    gallery=f"{name}/gallery",
                )
            )
            _add_few(dry_run, label, *pair, config)
    _report(findings)
    if training and config.train.pictures:
        data = dataclasses.replace(data, pictures=_watched(asked, config))
    return data


def _watched(asked: Sequence[Catalog], config: Config) -> Callable[[], Batch]:
    """Reads ``config.train.pictures`` query images, drawn by the seed, as many of each protocol.

    They are read once, by this process alone, with their poses if poses are trained with.

    Args:
        asked: the queries of each protocol.
        config: the configuration.
    """
    rng = np.random.default_rng(config.seed)
    poses = read_pose_files(config) if config.trains_with_poses else []
    chosen = []
    for place, catalog in enumerate(asked):
        wanted = len(range(place, config.train.pictures, len(asked)))
        few = catalog.select(rng.permutation(len(catalog))[:wanted])
        chosen.append(functools.reduce(join_poses, poses, few))
    catalog = joined_catalogs(chosen)
    start = evaluation_batches(
        catalog,
        config.data,
        map_shape=config.map_shape if config.trains_with_poses else None,
        batch_size=len(catalog),
    )
    return functools.cache(lambda: next(start()))


def _trained_on(
    training: TrainingData | None, run: Path | None, findings: Findings
) -> tuple[str, Sequence[str] | np.ndarray]:
    """Name and digests of the training images, which must not be scored; no digests if unknown.

    A run of a version that did not keep them is a warning.
    """
    if training:
        return f"{training.origin['dataset']} train", training.image_sha256
    if run is None:
        return "", ()
    digests = read_training_images(run)
    if digests is None:
        findings.warnings.append(
            f"{run}: not checked whether the run was trained on images that are scored, as it has "
            f"no {TRAINING_IMAGES}"
        )
    return f"the training set of {run}", digests or ()


def _add_few(
    dry_run: EvaluationData, label: str, query: Catalog, gallery: Catalog, config: Config
) -> None:
    """Add a protocol of the first queries with matches, and all gallery images of their people.

    If teachers are scored, of the images with a pose that is drawn.
    """
    usable = [
        c.drawn(config.data.pose.threshold) if config.scores_with_poses else np.ones(len(c), bool)
        for c in (query, gallery)
    ]
    images = [known(c).select(mask) for c, mask in zip((query, gallery), usable, strict=True)]
    matched = np.delete(np.flatnonzero(usable[0]), queries_without_match(*images))
    asked = query.select(matched[:_DRY_RUN_QUERIES])
    answers = gallery.select(usable[1] & np.isin(gallery.identities, asked.identities))
    if len(asked):
        splits = f"{label}: query", f"{label}: gallery"
        # In the batches of the whole splits: no further program, and it needs the memory that
        # evaluation will need.
        for name, few, whole in zip(splits, (asked, answers), (query, gallery), strict=True):
            dry_run.splits[name] = evaluation_split(few, config, images=len(whole))
        dry_run.protocols.append(Protocol(label, label, *splits))


def evaluated_sets(config: Config) -> tuple[str, ...]:
    """Names of the data sets that are scored."""
    return config.eval.datasets or (config.data.dataset,)


def protocols(builder: Any) -> Mapping[str, str]:
    """The query split of each protocol, by the protocol's name.

    These are the builder's ``PROTOCOLS``, or else one for every split that begins with ``query``.

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
    """A file name for a protocol's results.

    >>> _result_name("msmt17/v1", "query"), _result_name("partial_reid", "occluded")
    ('msmt17-v1', 'partial_reid.occluded')
    """
    name = dataset.replace("/", "-")
    return name if protocol == "query" else f"{name}.{protocol}"


def _check_result_name(result: str, owner: str, named: dict[str, str]) -> None:
    """DataError if a protocol's results would be written as those of another.

    Args:
        result: from :func:`_result_name`.
        owner: data set and protocol, for the messages.
        named: the owners of the earlier names; this one is added.
    """
    suffix = result.rpartition(".")[2]
    if suffix in _RESULT_SUFFIXES or re.fullmatch(STEP_SUFFIX, suffix):
        raise DataError(
            f"{owner}: its results would be named {result}.json, where .{suffix} has another "
            "meaning; rename the data set or the split"
        )
    if (other := named.setdefault(result, owner)) != owner:
        raise DataError(
            f"{other} and {owner}: the results of both would be named {result}.json; rename one "
            "of the data sets or splits"
        )


def preparation_warnings(config: Config, builder: Any) -> list[str]:
    """Those from when the data set was prepared, and one if it was from another ``manual_dir``."""
    other = other_source(builder, config.data.manual_dir)
    return [*(builder.info.metadata or {}).get("warnings", []), *([other] if other else [])]


def _report(findings: Findings) -> None:
    """Print the warnings, once for all processes; raise the errors."""
    for warning in findings.warnings if is_primary() else ():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    findings.raise_errors()


def evaluation_split(
    catalog: Catalog, config: Config, *, images: int | None = None
) -> EvaluationSplit:
    """A catalog in the form that evaluation reads.

    Args:
        catalog: N images.
        config: its data and evaluation options.
        images: the batches are those of a split of so many images; None: N.
    """
    batches = evaluation_batches(
        catalog,
        config.data,
        map_shape=config.map_shape if config.scores_with_poses else None,
        batch_size=evaluation_batch_size(
            len(catalog) if images is None else images,
            config.eval.batch_size,
            jax.device_count(),
        ),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return EvaluationSplit(
        filenames=catalog.filenames,
        identities=catalog.identities,
        cameras=catalog.cameras,
        occlusion=catalog.occlusion,
        batches=batches,
        encoded=catalog.images,
        image_sha256=catalog.image_sha256,
        limbs=functools.partial(_limbs, catalog, config) if config.scores_with_poses else None,
    )


def _limbs(catalog: Catalog, config: Config, row: int) -> list[Limb]:
    """The skeleton of an image."""
    joints, (height, width) = catalog.keypoints[row], catalog.image_sizes[row]
    at = (joints[:, :2] + 0.5) / np.maximum([width, height], 1)
    limbs = shown_limbs(joints, config.data.pose.threshold)
    return [Limb(part, (*at[start],), (*at[end],)) for part, start, end in limbs]


def report_data(here: Config, run: Config) -> EvaluationData:
    """The test sets of a run with poses, to look at; without, if they have none.

    Args:
        here: says where the data are, and which sets were scored.
        run: the configuration of the run.

    Raises:
        DataError: a data set cannot be scored.
    """
    places = {name: getattr(here.data, name) for name in ("data_dir", "manual_dir", "memory_gib")}
    data = dataclasses.replace(run.data, **places)

    def with_embeddings(*names: Embedding) -> Config:
        evaluation = dataclasses.replace(
            run.eval, datasets=here.eval.datasets, batch_size=here.eval.batch_size, embeddings=names
        )
        return dataclasses.replace(run, data=data, eval=evaluation)

    try:
        return evaluation_data(with_embeddings("main", "foreground", "parts"))
    except DataError:
        return evaluation_data(with_embeddings("main"))


def _describe(catalog: Catalog, builder: Any, config: Config) -> dict[str, Any]:
    """Fingerprints that show whether two runs read the same data."""
    description = {
        "name": builder.info.full_name.rpartition("/")[0],  # no version: the contents count
        "images": len(catalog),
        "images_sha256": _sha256(*(digest.encode() for digest in catalog.image_sha256)),
        "identities_sha256": _sha256(
            *(str(name).encode() for name in catalog.filenames),
            catalog.labels.astype("<i8").tobytes(),
        ),
        # The sampler only asks which cameras are the same, and takes them in order.
        "cameras_sha256": _sha256(
            np.unique(catalog.cameras, return_inverse=True)[1].astype("<i8").tobytes()
        ),
        "pose_source": config.data.pose.source,
        "pose_coverage": float(catalog.drawn(config.data.pose.threshold).mean()),
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
