"""Open the data that a configuration names; failures become findings and stop nothing."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from jaxtyping import Int64, Shaped, UInt8

from input_pipeline import augment
from input_pipeline.catalog import Catalog
from input_pipeline.cores import available_cores
from input_pipeline.doctor.statistics import Dataset, Protocol, Split, is_test
from input_pipeline.from_config import (
    evaluated_sets,
    open_builder,
    open_catalog,
    preparation_warnings,
    protocols,
)
from input_pipeline.poses.cache import PoseCache, join_poses, read_poses
from input_pipeline.progress import progress
from input_pipeline.validation import Findings
from pgfl_jax.config import Config
from pgfl_jax.errors import UserError

_Result = TypeVar("_Result")
_BROKEN = -1  # in the place of an image's highest value
_DARK = 15
_CHUNK = 32  # images that a thread reads at once; it decodes one at a time


def open_pose_files(config: Config, findings: Findings) -> list[tuple[str, PoseCache]]:
    """The pose files that can be read, with their names."""
    paths = config.data.pose.files
    caches = [_attempt(findings.errors, read_poses, Path(path)) for path in paths]
    pairs = zip(paths, caches, strict=True)
    return [(path, cache) for path, cache in pairs if cache is not None]


def open_dataset(
    config: Config, name: str, poses: Sequence[tuple[str, PoseCache]], findings: Findings
) -> Dataset:
    """Every split of a data set that can be opened.

    A set that has no training split and is scored needs none, even if the configuration names it to
    train on.

    Args:
        config: whether and how the data set is used.
        name: as in the configuration.
        poses: the pose files.
        findings: failures are added here; as warnings for splits that are not used.
    """
    scored = name in evaluated_sets(config)
    builder = _attempt(findings.errors, open_builder, config, name)
    if builder is None:
        return Dataset(name, {}, [], scored)
    trained = name == config.data.dataset
    if trained and scored and "train" not in builder.info.splits:
        trained = False
        findings.notes.append(
            f"{builder.info.full_name}: has no split train, so it was examined for scoring alone; "
            "to train, name another set in config.data.dataset"
        )
    queries = _attempt(findings.errors if scored else [], protocols, builder) or {}
    needed = [*(["train"] if trained else []), *queries.values(), *(["gallery"] if queries else [])]
    splits = {}
    for split in sorted({*needed, *builder.info.splits}, key=_position):
        used = trained if split == "train" else scored and is_test(split, queries.values())
        failed = findings.errors if used else findings.warnings
        opened = _attempt(failed, _open_split, config, builder, split, poses, findings, used)
        if opened is not None:
            splits[split] = opened
    metadata, full_name = builder.info.metadata or {}, builder.info.full_name
    return Dataset(
        name=full_name,
        splits=splits,
        protocols=[
            Protocol(f"{full_name} {protocol}", protocol, splits[query], splits["gallery"])
            for protocol, query in queries.items()
            if query in splits and "gallery" in splits
        ],
        scored=scored,
        source=metadata.get("source", ""),
        warnings=preparation_warnings(config, builder),
        unmatched=metadata.get("unmatched", []),
    )


def _position(split: str) -> tuple[int, str]:
    """Sort key: training first, then the queries, the gallery, and unused splits."""
    order = (split == "train", split.startswith("query"), split == "gallery", True)
    return order.index(True), split


def _open_split(
    config: Config,
    builder: Any,
    name: str,
    poses: Sequence[tuple[str, PoseCache]],
    findings: Findings,
    used: bool,
) -> Split:
    """Read a split, decode all its images and join the poses."""
    joined = used and (name == "train" or config.scores_with_poses)
    failed = findings.errors if joined else findings.warnings
    catalog = open_catalog(builder, name)
    label = f"{builder.info.full_name} {name}"
    cut_off = np.flatnonzero(~catalog.image_sizes.all(axis=1))
    broken, dark = decode_all(catalog, label)
    unreadable = np.union1d(broken, cut_off)
    digests, metadata = catalog.image_sha256, builder.info.metadata or {}
    for _, cache in poses:
        catalog = _attempt(failed, join_poses, catalog, cache) or catalog
    return Split(
        dataset=builder.info.full_name,
        name=name,
        catalog=catalog,
        unreadable=unreadable,
        matches=tuple(int((cache.lookup(digests) >= 0).sum()) for _, cache in poses),
        used=used,
        identities=metadata.get("identities", ()),
        cameras=metadata.get("cameras", ()),
        dark=np.setdiff1d(dark, unreadable),
    )


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _decode_all(encoded: Shaped[tf.Tensor, " images"]) -> UInt8[tf.Tensor, " images"]:
    """The highest value of each image, decoded one after the other, as in training."""
    return tf.map_fn(
        lambda image: tf.reduce_max(augment.decode(image)),
        encoded,
        fn_output_signature=tf.uint8,
        parallel_iterations=1,
    )


def decode_all(
    catalog: Catalog, task: str
) -> tuple[Int64[np.ndarray, " undecodable"], Int64[np.ndarray, " dark"]]:
    """Rows of the images that cannot be decoded, and of those that are nearly black, in order.

    Nearly black means no value above 15 of 255: 12 bits stored as 16 reach no more.

    Args:
        catalog: the split.
        task: name of the progress bar.
    """

    def highest(rows: np.ndarray) -> list[int]:
        images = catalog.images[rows]
        if (values := _decoded(images)) is not None:
            return values.tolist()
        alone = [_decoded([image]) for image in images]
        return [_BROKEN if values is None else int(values[0]) for values in alone]

    chunks = np.split(np.arange(len(catalog)), range(_CHUNK, len(catalog), _CHUNK))
    found: list[int] = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress((), task, total=len(catalog), unit=" images") as bar,
    ):
        for some in pool.map(highest, chunks):
            found += some
            bar.update(len(some))
    values = np.array(found, np.int64)
    return np.flatnonzero(values == _BROKEN), np.flatnonzero((values >= 0) & (values <= _DARK))


def _decoded(images: np.ndarray | list[bytes]) -> UInt8[np.ndarray, " images"] | None:
    """The highest value of each image; None if one of them cannot be decoded."""
    try:
        return _decode_all(tf.constant(images, tf.string)).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def _attempt(failed: list[str], call: Callable[..., _Result], *args: Any) -> _Result | None:
    """The result of ``call``; None after a user's error, whose message goes to ``failed``."""
    try:
        return call(*args)
    except (UserError, OSError) as error:
        failed.append(" ".join(str(error).split()))
    except tf.errors.OpError as error:  # a remote or damaged file
        failed.append(" ".join(error.message.split()))
    return None
