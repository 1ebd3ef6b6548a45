"""Opens what a configuration names; what fails becomes a finding, and the rest goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from input_pipeline.catalog import Catalog
from input_pipeline.checks import Findings
from input_pipeline.dataset import open_builder, open_catalog, protocols, stored_warnings
from input_pipeline.doctor.decoding import undecodable
from input_pipeline.doctor.survey import Dataset, Split, is_test
from input_pipeline.poses.cache import PoseCache, read_poses
from pgfl_jax.config import Config
from pgfl_jax.errors import UserError

_Result = TypeVar("_Result")


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

    Args:
        config: whether and how the data set is used.
        name: as the configuration has it.
        poses: the pose files.
        findings: what fails is added here; of splits that are not used as a warning.
    """
    trained = name == config.data.dataset
    scored = name in (config.eval.datasets or (config.data.dataset,))
    builder = _attempt(findings.errors, open_builder, config, name)
    if builder is None:
        return Dataset(name, {}, {}, scored)
    queries = _attempt(findings.errors if scored else [], protocols, builder) or {}
    needed = [*(["train"] if trained else []), *queries.values(), *(["gallery"] if queries else [])]
    splits = {}
    for split in sorted({*needed, *builder.info.splits}, key=_position):
        used = trained if split == "train" else scored and is_test(split, queries)
        failed = findings.errors if used else findings.warnings
        opened = _attempt(failed, _open_split, config, builder, split, poses, failed, used)
        if opened is not None:
            splits[split] = opened
    metadata = builder.info.metadata or {}
    return Dataset(
        name=builder.info.full_name,
        splits=splits,
        protocols={
            protocol: query
            for protocol, query in queries.items()
            if query in splits and "gallery" in splits
        },
        scored=scored,
        source=metadata.get("source", ""),
        warnings=stored_warnings(builder),
        unmatched=metadata.get("unmatched", []),
    )


def _position(split: str) -> tuple[int, str]:
    """Training first, then the queries, the gallery, and splits that nothing reads."""
    order = (split == "train", split.startswith("query"), split == "gallery", True)
    return order.index(True), split


def _open_split(
    config: Config,
    builder: Any,
    name: str,
    poses: Sequence[tuple[str, PoseCache]],
    failed: list[str],
    used: bool,
) -> Split:
    """Read a split, decode all its images and join the poses."""
    catalog = open_catalog(config, builder, name)
    label = f"{builder.info.full_name} {name}"
    digests = catalog.image_sha256
    cut_off = np.flatnonzero(~catalog.image_sizes.all(axis=1))
    matches = []
    for _, cache in poses:
        matches.append(int((cache.lookup(digests) >= 0).sum()))
        catalog = _attempt(failed, _join, catalog, cache, matches[-1]) or catalog
    return Split(
        dataset=builder.info.full_name,
        name=name,
        catalog=catalog,
        digests=digests,
        unreadable=np.union1d(undecodable(catalog, label), cut_off),
        matches=tuple(matches),
        used=used,
    )


def _join(catalog: Catalog, cache: PoseCache, matches: int) -> Catalog:
    """With the poses, if there are any for these images."""
    return catalog.with_poses(cache) if matches else catalog


def _attempt(failed: list[str], call: Callable[..., _Result], *args: Any) -> _Result | None:
    """What ``call`` returns; None if it fails as a user can mend, with the reason in ``failed``."""
    try:
        return call(*args)
    except (UserError, OSError) as error:
        failed.append(" ".join(str(error).split()))
    except tf.errors.OpError as error:  # a remote or damaged file
        failed.append(" ".join(error.message.split()))
    return None
