"""Ranking on accelerators: what NumPy does in :mod:`.ranking` and :mod:`.metrics`, over a mesh.

The gallery has a copy on each device, and the queries of a block are split over all of them. Every
process gets the results, none a distance.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from pgfl_jax.config import Distance
from pgfl_jax.distributed.sharding import AXES, batch_sharding, replicated
from pgfl_jax.retrieval.blocks import Block, Ranking, Rows, row_blocks
from pgfl_jax.retrieval.metrics import (
    Labels,
    Pairs,
    RetrievalMetrics,
    position_in_row,
    query_scores,
    summarise,
)


def rank_blocks(
    query: Rows, gallery: Rows, top: int, mesh: Mesh, *, distance: Distance = "cosine"
) -> Iterator[Ranking]:
    """The ``top`` nearest gallery items of each query, a block of queries at a time."""
    run = _over_queries(_nearest, mesh, distance=distance, top=top)
    everything = _everywhere(gallery, mesh)
    for rows, size in _blocks(query, gallery, mesh):
        found = run(everything, _split(query[rows], size, mesh))
        yield Ranking(*(np.asarray(part)[: rows.stop - rows.start] for part in found))


def distance_blocks(
    query: Rows, gallery: Rows, mesh: Mesh, *, distance: Distance = "cosine"
) -> Iterator[Block]:
    """The distances of all queries, a block at a time, in float32."""
    run = _over_queries(_distances, mesh, distance=distance)
    everything = _everywhere(gallery, mesh)
    for rows, size in _blocks(query, gallery, mesh):
        block = run(everything, _split(query[rows], size, mesh))
        yield np.asarray(block)[: rows.stop - rows.start]


def evaluate_embeddings(
    query: Rows,
    gallery: Rows,
    labels: Labels,
    mesh: Mesh,
    *,
    max_rank: int = 50,
    distance: Distance = "cosine",
) -> RetrievalMetrics:
    """Score the rankings, in float32; the cosine distance takes rows of unit length.

    Raises:
        ValueError: no query has a match.
    """
    run = _over_queries(_match_ranks, mesh, distance=distance)
    everything = _everywhere(gallery, mesh)
    width, junk_width = (_widest(pairs, len(query)) for pairs in labels.pairs(slice(None)))
    scores = [np.empty((3, 0))]
    for rows, size in _blocks(query, gallery, mesh):
        matches, junk = labels.pairs(rows)
        padded = _padded(matches, size, width), _padded(junk, size, junk_width)
        split = (_split(part, size, mesh) for part in (query[rows], *padded))
        ranks = np.asarray(run(everything, *split))
        rank = ranks[matches.row, position_in_row(matches.row, len(ranks))]
        scores.append(query_scores(matches.row, rank, rows.stop - rows.start))
    return summarise(np.concatenate(scores, axis=1), max_rank=max_rank)


def _distances(
    gallery: Float[Array, "gallery channels"],
    query: Float[Array, "block channels"],
    *,
    distance: Distance,
) -> Float[Array, "block gallery"]:
    products = jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    if distance == "cosine":
        return 1 - products
    ours, theirs = (jnp.sum(jnp.square(rows), axis=1) for rows in (query, gallery))
    return jnp.sqrt(jnp.maximum(ours[:, None] + theirs[None, :] - 2 * products, 0))


def _nearest(
    gallery: Float[Array, "gallery channels"],
    query: Float[Array, "block channels"],
    *,
    distance: Distance,
    top: int,
) -> tuple[Int[Array, "block top"], Float[Array, "block top"]]:
    """Indices and distances; among equals, ``top_k`` takes the lower index first."""
    negative, indices = jax.lax.top_k(-_distances(gallery, query, distance=distance), top)
    return indices, -negative


def _match_ranks(
    gallery: Float[Array, "gallery channels"],
    query: Float[Array, "block channels"],
    matches: Int[Array, "block matches"],
    junk: Int[Array, "block junk"],
    *,
    distance: Distance,
) -> Int[Array, "block matches"]:
    """1-based ranks by counting; an index of −1 is padding."""
    row, index = jnp.arange(len(query))[:, None], jnp.arange(len(gallery))[None, :]
    distances = _distances(gallery, query, distance=distance)
    far = jnp.where(junk < 0, len(gallery), junk)  # what is out of bounds is dropped
    distances = distances.at[row, far].set(jnp.inf, mode="drop")

    def count(item: Int[Array, " block"]) -> Int[Array, " block"]:
        value = jnp.take_along_axis(distances, item[:, None], axis=1)
        before = (distances == value) & (index < item[:, None])
        return 1 + jnp.sum((distances < value) | before, axis=1)

    return jax.lax.map(count, matches.T).T


# Cached, since a new jit would compile at every evaluation.
@functools.lru_cache
def _over_queries(function: Callable, mesh: Mesh, **options: int | str) -> Callable:
    """Compile ``function(gallery, *blocks)``: each device does its rows, every process gets all."""

    def run(gallery: Array, *parts: Array) -> Array | tuple[Array, ...]:
        specs = (PartitionSpec(), *(PartitionSpec(AXES) for _ in parts))
        of_rows = functools.partial(function, **options)
        split = jax.shard_map(of_rows, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXES))
        return split(gallery, *parts)

    return jax.jit(run, out_shardings=replicated(mesh))


def _blocks(query: Rows, gallery: Rows, mesh: Mesh) -> Iterator[tuple[slice, int]]:
    """Slices of the queries, and the one size that they are padded to."""
    each = next(row_blocks(len(query), 4 * len(gallery)), slice(0, 1)).stop
    size = mesh.size * min(each, -(-len(query) // mesh.size))
    return ((rows, size) for rows in row_blocks(len(query), 1, size))


def _split(rows: np.ndarray, size: int, mesh: Mesh) -> Array:
    """Rows padded with zeros to a size, and split over the devices of all processes."""
    padded = np.zeros((size, *rows.shape[1:]), _narrow(rows.dtype))
    padded[: len(rows)] = rows
    return jax.make_array_from_callback(padded.shape, batch_sharding(mesh), padded.__getitem__)


def _everywhere(rows: Rows, mesh: Mesh) -> Array:
    narrow = rows.astype(_narrow(rows.dtype), copy=False)
    return jax.make_array_from_callback(narrow.shape, replicated(mesh), narrow.__getitem__)


def _narrow(dtype: np.dtype) -> type[np.float32 | np.int32]:
    return np.float32 if dtype.kind == "f" else np.int32


def _widest(pairs: Pairs, queries: int) -> int:
    return max(1, int(np.bincount(pairs.row, minlength=queries).max(initial=0)))


def _padded(pairs: Pairs, size: int, width: int) -> Int[np.ndarray, "size width"]:
    """The items of each query, and −1 after them."""
    table = np.full((size, width), -1, np.int32)
    table[pairs.row, position_in_row(pairs.row, size)] = pairs.item
    return table
