"""Which images the page shows: spread over identities and cameras, without any chance."""

import numpy as np
from jaxtyping import Bool, Int

from input_pipeline.catalog import Catalog
from input_pipeline.doctor.statistics import Protocol, Split


def choose_samples(split: Split, count: int = 12) -> list[int]:
    """Rows of readable images, spread over the identities and over their cameras.

    Args:
        split: the split.
        count: maximum number of rows.

    Returns:
        Rows of images with poses in the order of their identities; then, if these are fewer than
        ``count``, of images without. A function of the split only.
    """
    posed, readable = split.catalog.has_pose, _readable(split)
    chosen = _spread(split.catalog, readable & posed, count)
    return chosen + _spread(split.catalog, readable & ~posed, count - len(chosen))


def choose_matches(
    protocol: Protocol, queries: int = 4, matches: int = 5
) -> list[tuple[int, list[int]]]:
    """Some queries with some of their matches, all of them readable.

    Args:
        protocol: the protocol.
        queries: maximum number of queries.
        matches: maximum number of gallery images for each.

    Returns:
        Rows of the queries, spread over the identities, each with rows of gallery images of its
        identity under other cameras, as many cameras as possible. A function of the protocol only.
    """
    query, gallery = protocol.query.catalog, protocol.gallery.catalog
    matched = _readable(protocol.query)
    matched[protocol.matchless] = False
    readable = _readable(protocol.gallery)
    chosen = []
    for row in _spread(query, matched, queries):
        same = readable & (gallery.identities == query.identities[row])
        found = np.flatnonzero(same & (gallery.cameras != query.cameras[row]))
        found = found[_cameras_in_turn(gallery.cameras[found])]
        chosen.append((row, found[:matches].tolist()))
    return [(row, found) for row, found in chosen if found]


def _readable(split: Split) -> Bool[np.ndarray, " images"]:
    readable = np.ones(len(split.catalog), bool)
    readable[split.unreadable] = False
    return readable


def _spread(catalog: Catalog, allowed: Bool[np.ndarray, " images"], count: int) -> list[int]:
    """At most ``count`` of the allowed rows, spread over identities and over their cameras."""
    identities = np.unique(catalog.identities[allowed])
    total = len(identities)
    if not total:
        return []
    chosen = []
    for turn in range(count):
        position = turn * total // count if total >= count else turn % total
        members = np.flatnonzero(allowed & (catalog.identities == identities[position]))
        members = members[_cameras_in_turn(catalog.cameras[members])]
        chosen.append((position, int(members[(turn % total + turn // total) % len(members)])))
    return [row for _, row in sorted(set(chosen))]


def _cameras_in_turn(cameras: Int[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """The order with the first image of every camera, then the second of each, and so on.

    >>> _cameras_in_turn(np.array([1, 1, 1, 2, 2]))
    array([0, 3, 1, 4, 2])
    """
    order = np.argsort(cameras, kind="stable")
    rank = np.empty(len(cameras), np.int64)
    rank[order] = np.arange(len(cameras)) - np.searchsorted(cameras[order], cameras[order])
    return np.lexsort((cameras, rank))
