"""Poses that are wrong on purpose, to see what the pose of the image itself is worth.

``config.data.pose.source`` names one of them (docs/method.md, "Controls").
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from input_pipeline import geometry, pose_maps
from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_PARTS
from pgfl_jax.config import Config

_STREAM = 3  # of random numbers; sampler and geometry draw from 0, 1 and 2


def training_poses(catalog: Catalog, config: Config) -> Callable[[int], Catalog]:
    """The training images, with the poses that ``config.data.pose.source`` asks for.

    Args:
        catalog: the images with their own poses.
        config: the source, the seed and the sizes.

    Returns:
        The catalog of a step. It is the same at all steps, except for ``redrawn``.
    """
    source, seed = config.data.pose.source, config.seed
    if source == "redrawn":
        steps = max(1, len(catalog) // config.data.batch_size)

        @functools.lru_cache(1)
        def of_epoch(epoch: int) -> Catalog:
            return shuffled(catalog, np.random.default_rng([seed, epoch, _STREAM]))

        return lambda step: of_epoch(step // steps)
    rng = np.random.default_rng(seed)
    fixed = {
        "annotated": lambda: catalog,
        "shuffled": lambda: shuffled(catalog, rng),
        "same_person": lambda: shuffled(catalog, rng, groups=catalog.identities),
        "average": lambda: with_one_pose(catalog, average_maps(catalog, config)),
        "everywhere": lambda: with_one_pose(catalog, np.full((1, 1, NUM_PARTS), 255, np.uint8)),
        "none": catalog.without_poses,
    }[source]()
    return lambda step: fixed


def shuffled(
    catalog: Catalog,
    rng: np.random.Generator,
    *,
    groups: Shaped[np.ndarray, " images"] | None = None,
) -> Catalog:
    """Every image gets the pose of another one, stretched to its own size.

    Args:
        catalog: the images.
        rng: draws the permutation.
        groups: poses stay within a group; None: one group. An image alone in its group keeps its
            pose, every other image gets another's.
    """
    source = _another(rng, np.zeros(len(catalog)) if groups is None else groups)
    keypoints = catalog.keypoints[source].copy()
    scale = (catalog.image_sizes / catalog.image_sizes[source])[:, None, ::-1]  # (N, 1, 2): x, y
    keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
    keypoints[~catalog.keypoints[source, :, 2].any(axis=1)] = 0.0
    part_maps = None if catalog.part_maps is None else catalog.part_maps[source]
    return catalog.replace_poses(keypoints, part_maps)


def _another(
    rng: np.random.Generator, groups: Shaped[np.ndarray, " images"]
) -> Int[np.ndarray, " images"]:
    """For each image the one before it in a random cycle through its group."""
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    ends = np.cumsum(np.unique(groups, return_counts=True)[1])
    before = np.arange(-1, len(groups) - 1)
    before[np.append(0, ends[:-1])] = ends - 1
    source = np.empty_like(order)
    source[order] = order[before]
    return source


def average_maps(catalog: Catalog, config: Config) -> UInt8[np.ndarray, "rows columns 8"]:
    """The mean part maps of the images with a pose, each part scaled to a highest value of 255.

    They are drawn from keypoints, without augmentation, at the resolution of the feature map.

    Raises:
        DataError: no image has keypoints that are drawn.
    """
    data = config.data
    shape, pose = (data.height, data.width), data.pose
    total = np.zeros((*config.map_shape, NUM_PARTS))
    for rows in np.array_split(np.arange(len(catalog)), -(-len(catalog) // 256)):
        keypoints = geometry.move_keypoints(
            catalog.keypoints[rows],
            catalog.image_sizes[rows],
            geometry.unchanged(len(rows)),
            0,
            data,
        )
        maps, _ = pose_maps.part_maps(
            keypoints,
            image_shape=shape,
            map_shape=config.map_shape,
            sigma=pose.sigma,
            threshold=pose.threshold,
        )
        total += maps.numpy().sum(axis=0)
    highest = total.max(axis=(0, 1))
    if not highest.any():
        raise DataError(
            "config.data.pose.source = 'average': no image has keypoints to average that reach "
            "config.data.pose.threshold"
        )
    return np.round(255 * total / np.where(highest > 0, highest, 1)).astype(np.uint8)


def with_one_pose(catalog: Catalog, maps: UInt8[np.ndarray, "rows columns 8"]) -> Catalog:
    """Every image gets the same part maps."""
    given = np.broadcast_to(maps, (len(catalog), *maps.shape))
    return catalog.replace_poses(np.zeros_like(catalog.keypoints), given)
