"""PxK identity batches as a pure function of ``(seed, step)`` (NumPy only)."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from input_pipeline.errors import DataError

# Independent streams of random numbers within an epoch: either can be drawn without the other.
_ORDER, _IMAGES = 0, 1


def identity_batches(
    identities: Int[np.ndarray, " images"],
    cameras: Int[np.ndarray, " images"],
    *,
    identities_per_batch: int,
    images_per_identity: int,
    seed: int,
    start_step: int = 0,
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Endless batches of P identities with K images each.

    An epoch visits every identity exactly once, in random order, with K of its images. They come
    from as many different cameras as possible; an identity with fewer than K images repeats them.
    Batches are cut from the endless sequence of epochs, so no identity is ever dropped. A batch
    that spans two epochs contains no identity twice, either.

    Args:
        identities: (N,) identity of every image.
        cameras: (N,) camera of every image.
        identities_per_batch: P, at least 1.
        images_per_identity: K, at least 1.
        seed: non-negative; batch ``step`` depends on ``(seed, step)`` only.
        start_step: the step of the first batch, for resuming.

    Returns:
        Iterator of (P·K,) int64 image indices, the K images of an identity side by side.

    Raises:
        DataError: there are too few identities for P; raised here, not at the first batch.

    >>> identities, cameras = np.array([5, 5, 5, 8, 8, 9]), np.array([0, 0, 1, 0, 2, 1])
    >>> options = {"identities_per_batch": 3, "images_per_identity": 2, "seed": 0}
    >>> batches = identity_batches(identities, cameras, **options)
    >>> first, second = next(batches), next(batches)
    >>> sorted(identities[first].tolist())  # each of the three, two images at a time
    [5, 5, 8, 8, 9, 9]
    >>> sorted(cameras[first[identities[first] == 5]].tolist())  # from both of its cameras
    [0, 1]
    >>> resumed = identity_batches(identities, cameras, **options, start_step=1)
    >>> np.array_equal(next(resumed), second)
    True
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
        raise DataError(
            f"{option}: the training split has only {count} identities; take {_fitting(count)}"
        )
    if count % size and count < 2 * size - 1:
        raise DataError(
            f"{option}: with {count} identities a batch across two epochs would repeat one; "
            f"take {_fitting(count)}"
        )


def _fitting(count: int) -> str:
    """How many of ``count`` identities a batch can have, for a message.

    >>> _fitting(6), _fitting(2)
    ('at most 3, or 6', '2')
    """
    most = (count + 1) // 2  # more only fit if one batch is a whole epoch
    return f"at most {most}, or {count}" if most > 1 else str(count)


def _identity_order(count: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of the identities, made to follow the previous epoch.

    The first batch may have begun in the previous epoch. Identities at the head of this epoch that
    are also in the tail of the previous one are swapped with identities from the middle. The tail
    is never touched, so it is known without the previous epoch, and late epochs cost no more than
    early ones.
    """
    order = _permutation(count, seed, epoch)
    previous_tail = epoch * count % size  # identities of the shared batch in the previous epoch
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
    labels: Int[np.ndarray, " images"],
    groups: Int[np.ndarray, " images"],
    images: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "identities {images}"]:
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
