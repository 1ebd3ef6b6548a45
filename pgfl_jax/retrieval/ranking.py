"""Rank galleries: embeddings → distances → the nearest items, a block of queries at a time.

A step takes arrays and gives arrays; no step holds a distance for every pair. On accelerators,
:mod:`pgfl_jax.retrieval.sharded` does the same.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from jaxtyping import Float

from pgfl_jax.config import Distance
from pgfl_jax.retrieval.blocks import Block, Ranking, Rows, in_threads, row_blocks
from pgfl_jax.retrieval.inputs import as_rows, check_digits
from pgfl_jax.retrieval.metrics import Labels, RetrievalMetrics, evaluate_blocks
from pgfl_jax.retrieval.pairs import PairCounter
from pgfl_jax.retrieval.protocols import EvaluationError, Images, Protocol
from pgfl_jax.retrieval.query_results import TOP
from pgfl_jax.retrieval.sharded import distance_blocks, evaluate_embeddings, rank_blocks


def rank(
    query: npt.ArrayLike, gallery: npt.ArrayLike, *, top: int = 50, mesh: Mesh | None = None
) -> Ranking:
    """The ``top`` nearest gallery items of each query by cosine distance, 1 − cosine.

    Memory beside the embeddings and the result is bounded by twice ``blocks.BLOCK_BYTES``.

    Args:
        query: (Q, D); rows that are not of unit length are scaled.
        gallery: (G, D). float64 is ranked as float64, everything else as float32.
        top: how many; at most G are returned.
        mesh: rank on these devices, in float32, with the queries split over them; default: on this
            machine's CPU, with NumPy. Both rank alike what they multiply alike.

    Raises:
        ValueError: the shapes disagree, the gallery is empty, a row is zero, so short that its
            squares are, or not finite, or top is below 1.

    >>> ranking = rank([[1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0], [0.0, 1.0]], top=2)
    >>> ranking.indices, ranking.distances
    (array([[1, 0]]), array([[0., 1.]]))
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")
    first, second = as_rows(query, gallery)
    if not second.size:
        raise ValueError(f"gallery has shape {second.shape}; there is nothing to rank")
    rows = unit_rows("query", first), unit_rows("gallery", second)
    top = min(top, len(rows[1]))
    if mesh is not None:
        parts = rank_blocks(*rows, top, mesh)
    else:
        parts = (nearest(block, top) for block in cosine_blocks(*rows))
    empty = Ranking(np.empty((0, top), np.int64), np.empty((0, top), np.result_type(*rows)))
    return _joined([empty, *parts])


def _joined(parts: Iterable[Ranking]) -> Ranking:
    """The rankings of blocks of queries as one."""
    indices, distances = zip(*parts, strict=True)
    return Ranking(np.concatenate(indices), np.concatenate(distances))


def unit_rows(name: str, rows: Rows) -> Rows:
    """Rows scaled to unit length; unchanged if they have it to 1e-5.

    Raises:
        ValueError: a row is zero or not finite, or its squares are so small that they lose digits;
            says which.
    """
    squares = np.einsum("nd,nd->n", rows, rows)
    length = np.sqrt(squares)[:, None]
    broken = np.flatnonzero(~((length > 0) & (length < np.inf)))  # NaN, too
    if broken.size:
        raise ValueError(f"row {broken[0]} of {name} is zero or not finite, so it has no direction")
    check_digits(name, squares)
    return rows if (np.abs(length - 1) < 1e-5).all() else rows / length


def cosine_distances(
    query: Float[np.ndarray, "queries channels"], gallery: Float[np.ndarray, "gallery channels"]
) -> Float[np.ndarray, "queries gallery"]:
    """1 − cosine of every pair, for rows of unit length: (Q, G) in [0, 2].

    >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> cosine_distances(query, gallery)
    array([[1., 2.]])
    """
    products = query @ gallery.T
    return np.subtract(1, products, out=products)


def cosine_blocks(query: Rows, gallery: Rows) -> Iterator[Block]:
    """The rows of :func:`cosine_distances` in blocks (:mod:`pgfl_jax.retrieval.blocks`)."""
    for rows in row_blocks(len(query), len(gallery) * np.result_type(query, gallery).itemsize):
        yield cosine_distances(query[rows], gallery)


def euclidean_blocks(query: Rows, gallery: Rows) -> Iterator[Block]:
    """Euclidean distances in blocks, by |q|² + |g|² − 2 q·g: rounded where rows are near.

    >>> next(euclidean_blocks(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0], [3.0, 0.0]])))
    array([[5., 0.]])
    """
    ours, theirs = (np.einsum("nd,nd->n", rows, rows) for rows in (query, gallery))
    for rows in row_blocks(len(query), len(gallery) * np.result_type(query, gallery).itemsize):
        block = query[rows] @ gallery.T
        block *= -2
        block += ours[rows, None]
        block += theirs
        yield np.sqrt(np.maximum(block, 0, out=block), out=block)


def largest_distance(query: Rows, gallery: Rows, distance: Distance) -> float:
    """A bound of all distances: 2 for the cosine, else the sum of the longest rows' lengths."""
    if distance == "cosine":
        return 2.0
    return float(sum(np.linalg.norm(rows, axis=1).max(initial=0) for rows in (query, gallery)))


def nearest(distances: Block, top: int) -> Ranking:
    """The ``top`` smallest distances of each row, ties by index.

    Of m ≥ top disjoint chunks of a row, the top-th smallest minimum is at least the top-th smallest
    distance: there are ``top`` distances up to it. So few items are left to be sorted.

    Args:
        distances: (B, G).
        top: at most G.

    >>> nearest(np.array([[0.5, 0.1, 0.5, 0.3]]), 3).indices
    array([[1, 3, 0]])
    """
    found = Ranking(
        np.empty((len(distances), top), np.int64),
        np.empty((len(distances), top), distances.dtype),
    )

    def fill(rows: slice) -> None:
        block = distances[rows]
        for at, bound in enumerate(_bounds(block, top)):
            items = np.flatnonzero(block[at] <= bound)
            items = items[np.argsort(block[at, items], kind="stable")[:top]]
            found.indices[rows][at], found.distances[rows][at] = items, block[at, items]

    in_threads(fill, len(distances), step=64)
    return found


def _bounds(distances: Block, top: int) -> Float[np.ndarray, " block"]:
    """For each row, something that at least ``top`` and hardly more distances do not exceed."""
    chunks = min(8 * top, distances.shape[1])
    minima = distances[:, :chunks].copy()
    for start in range(chunks, distances.shape[1] - chunks + 1, chunks):
        np.minimum(minima, distances[:, start : start + chunks], out=minima)
    return np.partition(minima, top - 1, axis=1)[:, top - 1]


class Ranked(NamedTuple):
    """What is kept of the rankings of a protocol.

    Attributes:
        metrics: the scores.
        nearest: (Q, T) gallery items, junk among them.
    """

    metrics: RetrievalMetrics
    nearest: Ranking


def rank_protocol(
    embeddings: Mapping[str, Float[np.ndarray, "images channels"]],
    protocol: Protocol,
    splits: Mapping[str, Images],
    *,
    max_rank: int,
    distance: Distance = "cosine",
    mesh: Mesh | None = None,
    pairs: PairCounter | None = None,
) -> Ranked:
    """Rank a protocol's gallery, and score the rankings.

    Args:
        embeddings: (N, D) by the split's name; of unit length for the cosine distance.
        protocol: names the two splits.
        splits: by name.
        max_rank: length of the CMC.
        distance: by which the gallery is ranked.
        mesh: its accelerators do the work; without any, NumPy does.
        pairs: collects the distances of matches and impostors.

    Raises:
        EvaluationError: no query has a match under another camera.
    """
    rows = embeddings[protocol.query], embeddings[protocol.gallery]
    with naming(protocol):
        labels = protocol_labels(protocol, splits)
        if mesh is None or mesh.devices.flat[0].platform == "cpu":
            blocks = {"cosine": cosine_blocks, "euclidean": euclidean_blocks}[distance](*rows)
            return rank_and_score(blocks, labels, max_rank=max_rank, pairs=pairs)
        metrics = evaluate_embeddings(*rows, labels, mesh, max_rank=max_rank, distance=distance)
        if pairs:
            for block in distance_blocks(*rows, mesh, distance=distance):
                pairs.add(block)
        top = min(TOP, len(rows[1]))
        return Ranked(metrics, _joined(rank_blocks(*rows, top, mesh, distance=distance)))


def rank_and_score(
    blocks: Iterable[Block], labels: Labels, *, max_rank: int, pairs: PairCounter | None = None
) -> Ranked:
    """Score rankings, keep the nearest items and count pairs, in one pass over blocks of distances.

    Raises:
        ValueError: as :func:`pgfl_jax.retrieval.evaluate_retrieval`.
    """
    kept = []

    def keep() -> Iterator[Block]:
        for block in blocks:
            yield block  # the scores refuse what cannot be ranked
            kept.append(nearest(block, min(TOP, block.shape[1])))
            if pairs:
                pairs.add(block)

    metrics = evaluate_blocks(keep(), labels, max_rank=max_rank)
    return Ranked(metrics, _joined(kept))


def protocol_labels(protocol: Protocol, splits: Mapping[str, Images]) -> Labels:
    """Identities and cameras of a protocol's queries and gallery."""
    query, gallery = splits[protocol.query], splits[protocol.gallery]
    return Labels(query.identities, gallery.identities, query.cameras, gallery.cameras)


@contextlib.contextmanager
def naming(protocol: Protocol) -> Iterator[None]:
    """Turn a ValueError into an EvaluationError that names the protocol."""
    try:
        yield
    except ValueError as error:
        raise EvaluationError(f"protocol {protocol.name}: {error}") from error
