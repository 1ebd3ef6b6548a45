"""Retrieval scores: CMC, mAP and mINP (docs/method.md, "Evaluation").

The scores need only the ranks of a query's matches, not the whole ranking. A rank is counted: the
gallery items that are nearer, or as near with a lower index, and not junk. Distances are taken a
block of queries at a time, in threads, so that memory stays bounded.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Shaped

from pgfl_jax.retrieval.blocks import in_threads
from pgfl_jax.retrieval.inputs import as_labels, as_reals

BLOCK_ELEMENTS = 2**19
"""Distances that a thread takes at a time, and values per block of bootstrap resamples."""

SORT_FROM = 16
"""From this number of matches on, sorting a row once costs less than counting in it."""


@dataclasses.dataclass(frozen=True)
class RetrievalMetrics:
    """Scores of one query set against one gallery; fractions are in [0, 1].

    Attributes:
        cmc: (max_rank,) share of valid queries whose first match ranks at r = 1, 2, … or better.
        mean_ap: mean average precision over valid queries.
        mean_inp: mean inverse negative penalty over valid queries.
        average_precision: (Q,) per query; NaN for a skipped query.
        first_match_rank: (Q,) 1-based rank of the first match; NaN for a skipped query.
        num_valid_queries: queries with at least one match; the denominator of every mean.
    """

    cmc: Float[np.ndarray, " max_rank"]
    mean_ap: float
    mean_inp: float
    average_precision: Float[np.ndarray, " queries"]
    first_match_rank: Float[np.ndarray, " queries"]
    num_valid_queries: int


class Pairs(NamedTuple):
    """Pairs of a query (its row in a block) and a gallery item of the same identity."""

    row: Int[np.ndarray, " pairs"]
    item: Int[np.ndarray, " pairs"]


def evaluate_retrieval(
    distances: npt.ArrayLike,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    *,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Rank the gallery for each query, and score the rankings.

    Gallery items with the query's identity and camera are junk, and leave the ranking. Ties rank by
    gallery index. A query without any other match is skipped. AP is the mean of the precision at
    the matches; INP is the number of matches over the rank of the last match. The CMC always has
    max_rank entries: if the gallery is smaller, the last value is repeated.

    Args:
        distances: (Q, G), smaller is more alike. float64 is ranked as float64.
        query_ids: (Q,) identities, numbers or strings.
        gallery_ids: (G,) identities, of the same kind.
        query_cameras: (Q,) cameras, numbers or strings.
        gallery_cameras: (G,) cameras, of the same kind.
        max_rank: length of the CMC.

    Raises:
        ValueError: the shapes disagree, distances are not real numbers, labels of queries and
            gallery are not of one kind, a label is None or NaN, a value is masked, a distance is
            NaN, infinite or an integer beyond 2⁵³, or no query has a match.

    >>> result = evaluate_retrieval([[0.1, 0.2, 0.0]], [7], [1, 7, 7], [0], [1, 1, 0])
    >>> result.first_match_rank  # the nearest item is junk, the second is of another identity
    array([2.])
    >>> result.mean_ap, result.cmc[:3]
    (0.5, array([0., 1., 1.]))

    Reference: docs/method.md, "Evaluation"; L. Zheng et al., "Scalable Person
    Re-identification: A Benchmark", ICCV 2015 (CMC, mAP, junk); M. Ye et al., "Deep Learning for
    Person Re-identification", TPAMI 2021 (mINP).
    """
    table = as_reals("distances", distances)
    labels = Labels(query_ids, gallery_ids, query_cameras, gallery_cameras)
    _check_shapes(table, labels)
    _check_exact(table)
    return evaluate_blocks([table], labels, max_rank=max_rank)


def evaluate_blocks(
    blocks: Iterable[Shaped[np.ndarray, "block gallery"]], labels: "Labels", *, max_rank: int = 50
) -> RetrievalMetrics:
    """Score rankings as :func:`evaluate_retrieval` does, a block of distances at a time.

    Args:
        blocks: together (Q, G), in the order of the queries.
        labels: of queries and gallery.
        max_rank: length of the CMC.

    Raises:
        ValueError: as :func:`evaluate_retrieval` does.
    """
    scores, start = [np.empty((3, 0))], 0
    for block in blocks:
        step = max(1, BLOCK_ELEMENTS // max(1, block.shape[1]))
        score = functools.partial(_score_rows, block, labels, start)
        scores += in_threads(score, len(block), step=step)
        start += len(block)
    return summarise(np.concatenate(scores, axis=1), max_rank=max_rank)


def bootstrap_interval(
    values: npt.ArrayLike, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one score per query; NaN (a skipped query) is dropped.
        seed: the interval is a pure function of the values and the seed.
        resamples: number of samples drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: no values, no resamples, a level outside (0, 1) or a seed below 0.

    >>> bootstrap_interval([0.25, 0.25, 0.25], seed=0)
    (0.25, 0.25)

    Reference: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    sample = np.asarray(values, np.float64).ravel()
    sample = sample[~np.isnan(sample)]
    if not sample.size or resamples < 1 or not 0 < level < 1 or seed < 0:
        raise ValueError(
            "a bootstrap interval needs values, resamples >= 1, 0 < level < 1 and seed >= 0; got "
            f"{sample.size} values, resamples={resamples}, level={level}, seed={seed}"
        )
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK_ELEMENTS // sample.size)
    means = [
        sample[rng.integers(sample.size, size=(min(step, resamples - start), sample.size))].mean(1)
        for start in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Labels:
    """Identities and cameras, the gallery's sorted so that a query's matches are one slice."""

    def __init__(
        self,
        query_ids: npt.ArrayLike,
        gallery_ids: npt.ArrayLike,
        query_cameras: npt.ArrayLike,
        gallery_cameras: npt.ArrayLike,
    ) -> None:
        """Raises ValueError for labels that cannot be compared exactly."""
        self.query_ids = as_labels("query_ids", query_ids)
        self.gallery_ids = as_labels("gallery_ids", gallery_ids)
        self.query_cameras = as_labels("query_cameras", query_cameras)
        self.gallery_cameras = as_labels("gallery_cameras", gallery_cameras)
        _check_kinds("ids", self.query_ids, self.gallery_ids)
        _check_kinds("cameras", self.query_cameras, self.gallery_cameras)
        self._order = np.argsort(self.gallery_ids, axis=None, kind="stable")
        self._sorted_ids = self.gallery_ids.ravel()[self._order]

    def pairs(self, rows: slice) -> tuple[Pairs, Pairs]:
        """The matches of some queries, and their junk, query by query in the gallery's order."""
        ids = self.query_ids[rows]
        start = np.searchsorted(self._sorted_ids, ids, "left")
        count = np.searchsorted(self._sorted_ids, ids, "right") - start
        row = np.repeat(np.arange(len(ids)), count)
        item = self._order[start[row] + position_in_row(row, len(ids))]
        junk = self.query_cameras[rows][row] == self.gallery_cameras[item]
        return Pairs(row[~junk], item[~junk]), Pairs(row[junk], item[junk])


def _score_rows(
    block: Shaped[np.ndarray, "block gallery"], labels: Labels, start: int, rows: slice
) -> Float[np.ndarray, "3 rows"]:
    """The scores of some rows of a block whose first row is query ``start``."""
    distances, queries = block[rows], slice(start + rows.start, start + rows.stop)
    check_finite(distances, queries.start)
    matches, junk = labels.pairs(queries)
    return query_scores(matches.row, _ranks(distances, matches, junk), len(distances))


def query_scores(
    row: Int[np.ndarray, " matches"], rank: Int[np.ndarray, " matches"], queries: int
) -> Float[np.ndarray, "3 queries"]:
    """AP, INP and first match's rank of each query; NaN without a match.

    Args:
        row: each match's query, ascending.
        rank: each match's rank among the query's gallery, from 1.
        queries: how many there are.
    """
    rank = rank[np.lexsort((rank, row))]
    hits = position_in_row(row, queries) + 1
    count = np.bincount(row, minlength=queries)
    found = np.flatnonzero(count)
    last = np.cumsum(count)[found] - 1
    scores = np.full((3, queries), np.nan)
    precision_sums = np.bincount(row, hits / rank, minlength=queries)
    scores[0, found] = precision_sums[found] / count[found]
    scores[1, found] = count[found] / rank[last]
    scores[2, found] = rank[last - count[found] + 1]
    return scores


def _ranks(
    distances: Shaped[np.ndarray, "block gallery"], matches: Pairs, junk: Pairs
) -> Int[np.ndarray, " matches"]:
    """1-based rank of each match in its row, ties by gallery index."""
    # A copy, in a type that holds infinity and rounds nothing: float16 and integers widen.
    ranked = distances.astype(np.result_type(distances.dtype, np.float32))
    ranked[junk.row, junk.item] = np.inf
    rank = np.empty_like(matches.item)
    ends = np.searchsorted(matches.row, np.arange(len(ranked) + 1))
    for row, (start, end) in zip(ranked, itertools.pairwise(ends), strict=True):
        rank[start:end] = 1 + _nearer(row, matches.item[start:end])
    return rank


def _nearer(
    row: Float[np.ndarray, " gallery"], items: Int[np.ndarray, " items"]
) -> Int[np.ndarray, " items"]:
    """How many distances of a row are less than an item's, or equal with a lower index."""
    values = row[items]
    if len(items) < SORT_FROM:
        counted, count = np.arange(len(items)), np.empty_like(items)
    else:
        ordered = np.sort(row)
        count = np.searchsorted(ordered, values)
        counted = np.flatnonzero(np.searchsorted(ordered, values, "right") > count + 1)  # ties
    places, values = items.tolist(), values.tolist()  # faster to compare with
    for at in counted:
        item, value = places[at], values[at]
        count[at] = np.count_nonzero(row[:item] <= value) + np.count_nonzero(row[item:] < value)
    return count


def position_in_row(row: Int[np.ndarray, " pairs"], rows: int) -> Int[np.ndarray, " pairs"]:
    """0, 1, 2, … within each run of a sorted list of row numbers."""
    count = np.bincount(row, minlength=rows)
    return np.arange(len(row)) - (np.cumsum(count) - count)[row]


def summarise(scores: Float[np.ndarray, "3 queries"], *, max_rank: int) -> RetrievalMetrics:
    """Means over the queries that have a match, from :func:`query_scores`.

    Raises:
        ValueError: no query has a match, or max_rank is below 1.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; it must be at least 1")
    average_precision, inverse_penalty, first_match_rank = scores
    valid: Bool[np.ndarray, " queries"] = ~np.isnan(first_match_rank)
    total = int(valid.sum())
    if not total:
        raise ValueError(
            f"none of the {len(valid)} queries has a match in the gallery (the same identity under "
            "another camera); check the identities and cameras of both"
        )
    first = first_match_rank[valid].astype(np.int64)
    hits = np.bincount(first[first <= max_rank] - 1, minlength=max_rank)
    return RetrievalMetrics(
        cmc=np.cumsum(hits) / total,
        mean_ap=float(average_precision[valid].mean()),
        mean_inp=float(inverse_penalty[valid].mean()),
        average_precision=average_precision,
        first_match_rank=first_match_rank,
        num_valid_queries=total,
    )


def _check_shapes(table: Any, labels: Labels) -> None:
    """Raises ValueError unless distances are (Q, G) and the labels (Q,) and (G,)."""
    if table.ndim != 2:
        raise ValueError(f"distances have shape {table.shape}; expected (queries, gallery)")
    sides = {"query_ids": 0, "query_cameras": 0, "gallery_ids": 1, "gallery_cameras": 1}
    for name, axis in sides.items():
        if (shape := getattr(labels, name).shape) != (table.shape[axis],):
            raise ValueError(
                f"{name} have shape {shape}; distances of shape {table.shape} "
                f"need ({table.shape[axis]},)"
            )


def _check_exact(table: Shaped[np.ndarray, "queries gallery"]) -> None:
    """Raises ValueError for integers that float64, in which they are ranked, does not hold."""
    if table.dtype.kind not in "iu" or not table.size:
        return
    if max(int(table.max()), -int(table.min())) > 2**53:
        raise ValueError(
            f"distances are {table.dtype} beyond 2**53, where float64 holds two numbers as one; "
            "scale them down"
        )


def _check_kinds(name: str, queries: np.ndarray, gallery: np.ndarray) -> None:
    """Raises ValueError for labels that cannot be compared exactly.

    Numbers never match strings, all NaN would be one person, and a signed and an unsigned integer
    would meet as rounded floats.
    """
    for side, labels in (("query", queries), ("gallery", gallery)):
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(f"{side}_{name} hold NaN; leave out what has no label")
    if queries.dtype.kind + gallery.dtype.kind in ("iu", "ui"):
        raise ValueError(
            f"query_{name} are {queries.dtype} and gallery_{name} are {gallery.dtype}; convert "
            "them to one type"
        )
    if queries.size and gallery.size and (ours := _kind(queries)) != (theirs := _kind(gallery)):
        raise ValueError(
            f"query_{name} are {ours} and gallery_{name} are {theirs}; give labels of one kind"
        )


def _kind(labels: np.ndarray) -> str:
    """What labels are; pandas holds strings as objects."""
    plain = np.asarray(labels.tolist()) if labels.dtype.kind == "O" else labels
    return {"U": "strings", "S": "bytes", "O": "objects"}.get(plain.dtype.kind, "numbers")


def check_finite(block: Shaped[np.ndarray, "block gallery"], start: int) -> None:
    """Raises ValueError naming the first query and gallery index without a finite distance."""
    finite = np.isfinite(block)
    if not finite.all():
        row, item = np.argwhere(~finite)[0]
        raise ValueError(
            f"the distance of query {start + row} to gallery item {item} is {block[row, item]}; "
            "distances must be finite"
        )
