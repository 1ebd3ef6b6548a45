"""PxK identity batches as a pure function of ``(seed, step)`` (NumPy only)."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from input_pipeline.catalog import DataError

# Streams of random numbers of one epoch: independent, so that one is drawn without the other.
_ORDER, _IMAGES = 0, 1


def identity_batches(
    identities: np.ndarray,
    cameras: np.ndarray,
    *,
    identities_per_batch: int,
    images_per_identity: int,
    seed: int,
    start_step: int = 0,
) -> Iterator[np.ndarray]:
    """Endless batches of P identities with K images each.

    An epoch visits every identity exactly once, in random order, with K of its images: as many
    different cameras as it has, then further images of the same cameras; fewer than K images
    repeat. Batches are cut from the endless sequence of epochs, so no identity is ever dropped,
    and a batch across two epochs holds no identity twice either.

    Args:
        identities: (N,) identity of every image.
        cameras: (N,) camera of every image.
        identities_per_batch: P, at least 1.
        images_per_identity: K, at least 1.
        seed: non-negative; batch ``step`` depends on ``(seed, step)`` alone.
        start_step: the first batch's step, for resuming.

    Returns:
        Iterator of (P·K,) int64 image indices, the K images of an identity side by side.

    Raises:
        DataError: there are too few identities for P; raised here, not at the first batch.
    """
    labels = np.unique(identities, return_inverse=True)[1]
    count, size = int(labels.max(initial=-1)) + 1, identities_per_batch
    _check_counts(count, size)
    groups = np.unique(np.stack([labels, cameras], axis=1), axis=0, return_inverse=True)[1]

    @functools.lru_cache(maxsize=2)
    def epoch_plan(epoch: int) -> np.ndarray:
        order = _identity_order(count, size, seed, epoch)
        rng = np.random.default_rng([seed, epoch, _IMAGES])
        return _choose_images(labels, groups.ravel(), images_per_identity, rng)[order]

    def batch(step: int) -> np.ndarray:
        epoch, start = divmod(step * size, count)
        rows = epoch_plan(epoch)[start : start + size]
        if len(rows) < size:
            rows = np.concatenate([rows, epoch_plan(epoch + 1)[: size - len(rows)]])
        return rows.ravel()

    return map(batch, itertools.count(start_step))


def _check_counts(count: int, size: int) -> None:
    """Raise DataError unless batches of ``size`` different identities can be cut from ``count``."""
    option = f"data.identities_per_batch = {size}"
    if count < 2:
        raise DataError(f"{option}: the training split has {count} identities; it takes at least 2")
    if size > count:
        raise DataError(f"{option}: the training split has only {count} identities; lower it")
    if count % size and count < 2 * size - 1:
        raise DataError(
            f"{option}: with {count} identities a batch across two epochs would repeat one; "
            f"take at most {(count + 1) // 2}, or a divisor of {count}"
        )


def _identity_order(count: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of the identities, fit to follow the epoch before it.

    The first batch may begin in the epoch before. Identities of this epoch's head that stand in
    that epoch's tail are swapped with ones from the middle. The tail is never touched, so it is
    known without the epoch before, and any epoch costs the same however late it comes.
    """
    order = _permutation(count, seed, epoch)
    previous_tail = epoch * count % size  # images of the shared batch in the epoch before
    if previous_tail == 0:
        return order
    head, tail = size - previous_tail, (epoch + 1) * count % size
    taken = np.isin(order, _permutation(count, seed, epoch - 1)[count - previous_tail :])
    colliding = np.flatnonzero(taken[:head])
    free = head + np.flatnonzero(~taken[head : count - tail])[: len(colliding)]
    order[colliding], order[free] = order[free], order[colliding]
    return order


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(count)


def _choose_images(
    labels: np.ndarray, groups: np.ndarray, images: int, rng: np.random.Generator
) -> np.ndarray:
    """Choose K images of every identity, from different cameras first.

    Args:
        labels: (N,) dense identity 0 … C-1.
        groups: (N,) dense index of the (identity, camera) pair, in the order of the identities.
        images: K.
        rng: the epoch's generator.

    Returns:
        (C, K) int64 image indices.
    """
    # Rank the images of one identity in one camera at random: 0, 1, 2 …
    shuffled = np.lexsort((rng.random(len(labels)), groups))
    rank = np.empty(len(labels), np.int64)
    rank[shuffled] = np.arange(len(labels)) - np.searchsorted(groups[shuffled], groups[shuffled])
    # First every camera's image 0, in a random order of the cameras, then every camera's image 1 …
    camera_order = rng.random(int(groups.max()) + 1)[groups]
    by_identity = np.lexsort((camera_order, rank, labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    return by_identity[first[:, None] + np.arange(images) % counts[:, None]]
