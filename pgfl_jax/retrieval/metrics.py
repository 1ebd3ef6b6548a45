"""Retrieval scores: CMC, mAP and mINP (docs/method.md, "Evaluation").

The scores need only the ranks of a query's matches, not the whole ranking. Each row of distances is
therefore sorted by value, which NumPy does with vector instructions, and the matches are found in
it by bisection. Only rows where a match ties with another gallery item are ranked item by item.
Threads work on blocks of queries, so that memory stays bounded.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Shaped

from pgfl_jax.retrieval.inputs import as_distances, as_labels

BLOCK_ELEMENTS = 2**21
"""Distances per block of queries, and values per block of bootstrap resamples."""


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


class _Pairs(NamedTuple):
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
            NaN or infinite, or no query has a match.

    >>> result = evaluate_retrieval([[0.1, 0.2, 0.0]], [7], [1, 7, 7], [0], [1, 1, 0])
    >>> result.first_match_rank  # the nearest item is junk, the second is of another identity
    array([2.])
    >>> result.mean_ap, result.cmc[:3]
    (0.5, array([0., 1., 1.]))

    Reference: docs/method.md, "Evaluation"; L. Zheng et al., "Scalable Person
    Re-identification: A Benchmark", ICCV 2015 (CMC, mAP, junk); M. Ye et al., "Deep Learning for
    Person Re-identification", TPAMI 2021 (mINP).
    """
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; it must be at least 1")
    table = as_distances(distances)
    gallery = _Gallery(gallery_ids, gallery_cameras)
    ids, cameras = as_labels("query_ids", query_ids), as_labels("query_cameras", query_cameras)
    _check_shapes(table, ids, cameras, gallery)
    _check_kinds("ids", ids, gallery.ids)
    _check_kinds("cameras", cameras, gallery.cameras)
    step = max(1, BLOCK_ELEMENTS // max(1, table.shape[1]))

    def score(start: int) -> Float[np.ndarray, "3 block"]:
        rows = slice(start, start + step)
        _check_finite(table[rows], start)
        return _score_block(table[rows], ids[rows], cameras[rows], gallery)

    with ThreadPoolExecutor() as pool:
        blocks = list(pool.map(score, range(0, len(table), step)))
    scores = np.concatenate([np.empty((3, 0)), *blocks], axis=1)
    return _summarise(*scores, max_rank=max_rank)


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


class _Gallery:
    """Gallery labels, sorted by identity so that a query's matches are one slice."""

    def __init__(self, ids: npt.ArrayLike, cameras: npt.ArrayLike) -> None:
        self.ids = as_labels("gallery_ids", ids)
        self.cameras = as_labels("gallery_cameras", cameras)
        self.order = np.argsort(self.ids, axis=None, kind="stable")

    def same_identity(self, query_ids: Shaped[np.ndarray, " block"]) -> _Pairs:
        """All gallery items of each query's identity, query by query."""
        sorted_ids = self.ids[self.order]
        start = np.searchsorted(sorted_ids, query_ids, "left")
        count = np.searchsorted(sorted_ids, query_ids, "right") - start
        row = np.repeat(np.arange(len(query_ids)), count)
        return _Pairs(row, self.order[start[row] + _position_in_row(row, len(query_ids))])


def _score_block(
    distances: Shaped[np.ndarray, "block gallery"],
    query_ids: Shaped[np.ndarray, " block"],
    query_cameras: Shaped[np.ndarray, " block"],
    gallery: _Gallery,
) -> Float[np.ndarray, "3 block"]:
    """AP, INP and first match's rank of each query of a block; NaN without a match."""
    pairs = gallery.same_identity(query_ids)
    junk = query_cameras[pairs.row] == gallery.cameras[pairs.item]
    # A copy, in a type that holds infinity and rounds nothing: float16 and integers widen.
    ranked = distances.astype(np.result_type(distances.dtype, np.float32))
    ranked[pairs.row[junk], pairs.item[junk]] = np.inf
    matches = _Pairs(pairs.row[~junk], pairs.item[~junk])
    rank = _ranks(ranked, matches)
    rank = rank[np.lexsort((rank, matches.row))]
    hits = _position_in_row(matches.row, len(distances)) + 1

    count = np.bincount(matches.row, minlength=len(distances))
    found = np.flatnonzero(count)
    last = np.cumsum(count)[found] - 1
    scores = np.full((3, len(distances)), np.nan)
    precision_sums = np.bincount(matches.row, hits / rank, minlength=len(distances))
    scores[0, found] = precision_sums[found] / count[found]
    scores[1, found] = count[found] / rank[last]
    scores[2, found] = rank[last - count[found] + 1]
    return scores


def _ranks(
    distances: Float[np.ndarray, "block gallery"], matches: _Pairs
) -> Int[np.ndarray, " pairs"]:
    """1-based rank of each match in its row, ties by gallery index."""
    ordered = np.sort(distances, axis=1)
    values = distances[matches.row, matches.item]
    rank = _count(ordered, matches.row, values, equal=False) + 1
    tied = _count(ordered, matches.row, values, equal=True) > rank
    rows, at = np.unique(matches.row[tied], return_inverse=True)
    order = np.argsort(distances[rows], axis=1, kind="stable")
    inverse = np.empty_like(order)
    np.put_along_axis(inverse, order, np.arange(order.shape[1])[None, :], axis=1)
    rank[tied] = inverse[at, matches.item[tied]] + 1
    return rank


def _count(
    ordered: Float[np.ndarray, "block gallery"],
    row: Int[np.ndarray, " pairs"],
    values: Float[np.ndarray, " pairs"],
    *,
    equal: bool,
) -> Int[np.ndarray, " pairs"]:
    """How many items of an ascending row are less than a value (or equal): bisection for all."""
    low, high = np.zeros_like(row), np.full_like(row, ordered.shape[1])
    for _ in range(ordered.shape[1].bit_length()):
        middle = (low + high) // 2
        found = ordered[row, np.minimum(middle, ordered.shape[1] - 1)]
        before = (low < high) & ((found <= values) if equal else (found < values))
        low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
    return low


def _position_in_row(row: Int[np.ndarray, " pairs"], rows: int) -> Int[np.ndarray, " pairs"]:
    """0, 1, 2, … within each run of a sorted list of row numbers."""
    count = np.bincount(row, minlength=rows)
    return np.arange(len(row)) - (np.cumsum(count) - count)[row]


def _summarise(
    average_precision: Float[np.ndarray, " queries"],
    inverse_penalty: Float[np.ndarray, " queries"],
    first_match_rank: Float[np.ndarray, " queries"],
    *,
    max_rank: int,
) -> RetrievalMetrics:
    """Means over the queries that have a match."""
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


def _check_shapes(table: Any, ids: Any, cameras: Any, gallery: _Gallery) -> None:
    """Raises ValueError unless distances are (Q, G) and the labels (Q,) and (G,)."""
    if table.ndim != 2:
        raise ValueError(f"distances have shape {table.shape}; expected (queries, gallery)")
    sides = {
        "query_ids": (ids, 0),
        "query_cameras": (cameras, 0),
        "gallery_ids": (gallery.ids, 1),
        "gallery_cameras": (gallery.cameras, 1),
    }
    for name, (labels, axis) in sides.items():
        if labels.shape != (table.shape[axis],):
            raise ValueError(
                f"{name} have shape {labels.shape}; distances of shape {table.shape} "
                f"need ({table.shape[axis]},)"
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


def _check_finite(block: Shaped[np.ndarray, "block gallery"], start: int) -> None:
    """Raises ValueError naming the first query and gallery index without a finite distance."""
    finite = np.isfinite(block)
    if not finite.all():
        row, item = np.argwhere(~finite)[0]
        raise ValueError(
            f"the distance of query {start + row} to gallery item {item} is {block[row, item]}; "
            "distances must be finite"
        )
