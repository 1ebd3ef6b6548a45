"""Distances of matches and impostors, collected while blocks of distances pass.

A match is a pair of a query and a gallery item of its identity under another camera, an impostor a
pair of two identities, under any cameras. Junk pairs count as neither. There are few matches, and
their distances are kept. Impostors are kept up to :data:`EXACT_PAIRS` pairs, and counted in bins
beyond, so that memory stays bounded. The bins are even in the square root of the distance: of B
bins up to a limit L, bin k begins at L (k / B)². So they are narrow at small distances, where
thresholds for low error rates are, and where all distances of a poor embedding may be.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from pgfl_jax.retrieval.blocks import Block
from pgfl_jax.retrieval.metrics import Labels, Pairs, check_finite

EXACT_PAIRS = 2**22
"""Pairs of queries and gallery items up to which every impostor's distance is kept."""

BINS = 2**11
"""Bins of the histograms of groups of identities and of pairs of cameras."""

FINE = 2**5
"""Bins of the pooled histogram within one of :data:`BINS`."""

MAX_GROUPS = 2**12
"""Groups that the identities of the queries are resampled in."""

MAX_CAMERAS = 32
"""Cameras of queries, and of the gallery, that pairs are counted for."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairDistances:
    """The distances of matches and impostors of a ranking.

    Attributes:
        limit: the largest distance that is possible, where the bins end.
        matches: (M,) distance of each match.
        match_rows: (M,) query of each match.
        match_cameras: (2, M) places among ``query_cameras`` and ``gallery_cameras``; C and C' for
            cameras that are not among them.
        impostors: (N,) distances; None if there are too many to keep.
        pooled: (BINS · FINE,) impostors by distance; empty if ``impostors`` are kept.
        by_group: (K, BINS) impostors by group of the query's identity, and distance.
        by_cameras: (C, C', BINS) impostors by camera of the query and of the item, and distance.
        groups: (Q,) group of each query.
        query_cameras: (C,) names.
        gallery_cameras: (C',) names.
        num_junk: pairs of one identity and one camera.
    """

    limit: float
    matches: Float[np.ndarray, " matches"]
    match_rows: Int[np.ndarray, " matches"]
    match_cameras: Int[np.ndarray, "2 matches"]
    impostors: Float[np.ndarray, " impostors"] | None
    pooled: Int[np.ndarray, " fine"]
    by_group: Int[np.ndarray, "groups bins"]
    by_cameras: Int[np.ndarray, "cameras others bins"]
    groups: Int[np.ndarray, " queries"]
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    num_junk: int

    @property
    def edges(self) -> Float[np.ndarray, " bins"]:
        """(BINS,) upper edge of each bin."""
        return bin_edges(BINS, self.limit)[1:]


class PairCounter:
    """Collects :class:`PairDistances` from blocks of distances, in the order of the queries."""

    def __init__(self, labels: Labels, *, limit: float = 2.0, exact: int = EXACT_PAIRS) -> None:
        """Prepare.

        Args:
            labels: of Q queries and G gallery items.
            limit: the largest distance that is possible; 2 for 1 − cosine.
            exact: pairs up to which every impostor's distance is kept.
        """
        shape = len(labels.query_ids), len(labels.gallery_ids)
        self._labels, self._limit, self._start = labels, limit, 0
        self._keeps = shape[0] * shape[1] <= exact
        _, identity = np.unique(labels.query_ids, return_inverse=True)
        self._groups = identity % MAX_GROUPS
        matches, junk = labels.pairs(slice(None))
        self._num_junk = len(junk.row)
        # Cameras that are not among those with the most matches are counted in the last row.
        of_query = labels.query_cameras[matches.row]
        of_item = labels.gallery_cameras[matches.item]
        self._query_cameras, self._query_camera = _numbered(labels.query_cameras, of_query)
        self._gallery_cameras, self._gallery_camera = _numbered(labels.gallery_cameras, of_item)
        self._pooled = np.zeros(0 if self._keeps else BINS * FINE, np.int64)
        self._by_group = np.zeros((self._groups.max(initial=-1) + 1, BINS), np.int64)
        cameras = len(self._query_cameras) + 1, len(self._gallery_cameras) + 1
        self._by_cameras = np.zeros((*cameras, BINS), np.int64)
        self._offset = (self._gallery_camera * BINS).astype(np.int32)
        self._matches: list[np.ndarray] = []
        self._impostors: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        """Count the pairs of the next queries.

        Raises:
            ValueError: a distance is NaN or infinite; says which.
        """
        check_finite(block, self._start)
        rows = slice(self._start, self._start + len(block))
        matches, junk = self._labels.pairs(rows)
        for number, row in enumerate(block, self._start):
            self._count(number, row)
        for pairs in (matches, junk):
            self._take_out(block, pairs)
        self._matches.append(block[matches.row, matches.item])
        if self._keeps:
            impostor = np.ones(block.shape, bool)
            for pairs in (matches, junk):
                impostor[pairs.row, pairs.item] = False
            self._impostors.append(block[impostor])
        self._start = rows.stop

    def result(self) -> PairDistances:
        """What was collected, once all blocks have been added."""
        pairs, _ = self._labels.pairs(slice(None))
        empty = [np.zeros(0, np.float32)]
        return PairDistances(
            limit=self._limit,
            matches=np.concatenate(self._matches or empty),
            match_rows=pairs.row,
            match_cameras=np.stack(
                [self._query_camera[pairs.row], self._gallery_camera[pairs.item]]
            ),
            impostors=np.concatenate(self._impostors or empty) if self._keeps else None,
            pooled=self._pooled,
            by_group=self._by_group,
            by_cameras=self._by_cameras[:-1, :-1],
            groups=self._groups,
            query_cameras=self._query_cameras,
            gallery_cameras=self._gallery_cameras,
            num_junk=self._num_junk,
        )

    def _count(self, query: int, row: Float[np.ndarray, " gallery"]) -> None:
        """Count all pairs of a query, as if they were impostors."""
        fine = bin_numbers(row, self._limit)
        if not self._keeps:
            self._pooled += np.bincount(fine, minlength=len(self._pooled))
        cameras = self._by_cameras.shape[1]
        counts = np.bincount(fine // FINE + self._offset, minlength=cameras * BINS)
        by_camera = counts.reshape(cameras, BINS)
        self._by_cameras[self._query_camera[query]] += by_camera
        self._by_group[self._groups[query]] += by_camera.sum(0)

    def _take_out(self, block: Block, pairs: Pairs) -> None:
        """Count pairs of a block no longer."""
        fine = bin_numbers(block[pairs.row, pairs.item], self._limit)
        query, place = self._start + pairs.row, fine // FINE
        if not self._keeps:
            np.subtract.at(self._pooled, fine, 1)
        np.subtract.at(self._by_group, (self._groups[query], place), 1)
        cameras = self._query_camera[query], self._gallery_camera[pairs.item]
        np.subtract.at(self._by_cameras, (*cameras, place), 1)


def bin_edges(bins: int, limit: float) -> Float[np.ndarray, " edges"]:
    """Where bins begin, and where the last one ends.

    >>> bin_edges(4, limit=2.0)
    array([0.   , 0.125, 0.5  , 1.125, 2.   ])
    """
    return limit * np.square(np.arange(bins + 1) / bins)


def bin_numbers(distances: Float[np.ndarray, " pairs"], limit: float) -> Int[np.ndarray, " pairs"]:
    """The bin of each distance among BINS · FINE ones; rounding beyond the ends is cut off.

    >>> bin_numbers(np.float32([-1e-7, 0.0, 0.5, 2.0]), limit=2.0).tolist()
    [0, 0, 32768, 65535]
    """
    place = np.sqrt(np.maximum(distances / limit, 0)) * (BINS * FINE)
    return np.minimum(place, BINS * FINE - 1).astype(np.int32)


def _numbered(cameras: np.ndarray, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cameras with the most matches, ascending, and each image's place among them.

    Args:
        cameras: of the images.
        matched: the image's camera of each match.

    Returns:
        (C,) at most MAX_CAMERAS names, and the place of each image's camera; C for all others.
    """
    names, count = np.unique(matched, return_counts=True)
    chosen = np.sort(names[np.argsort(-count, kind="stable")[:MAX_CAMERAS]])
    place = np.searchsorted(chosen, cameras)
    known = np.isin(cameras, chosen)
    return chosen, np.where(known, place, len(chosen))
