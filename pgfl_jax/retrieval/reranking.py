"""Re-ranking by k-reciprocal neighbours, sparse and a block of rows at a time.

Queries and gallery are one set of N images. Let d(i, j) be their squared Euclidean distance over
the largest of row i, and N(i, k) the k + 1 nearest images of i, itself included (ties by index):

    R(i, k) = {j ∈ N(i, k) : i ∈ N(j, k)}               the k-reciprocal neighbours
    R*(i)   = R(i, k1) and all R(c, k1/2) of c ∈ R(i, k1)
              with 3 |R(i, k1) ∩ R(c, k1/2)| > 2 |R(c, k1/2)|
    V(i, j) = exp(−d(i, j)) / Σ_l exp(−d(i, l))         for j, l ∈ R*(i); 0 elsewhere
    U(i)    = the mean of V(l) over the k2 nearest l    the query expansion
    J(i, j) = 1 − S / (2 − S)                           with S = Σ_l min(U(i, l), U(j, l))
    result  = (1 − λ) J + λ d

A row of V has some tens of entries, a row of U some hundred: everything but d is sparse. And d is
needed twice, a block of rows at a time: for the neighbours of all images, and for the result.

Reference: Z. Zhong, L. Zheng, D. Cao, S. Li, "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017; docs/method.md, "Evaluation".
"""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy import sparse
from tqdm import tqdm

from pgfl_jax.distributed.collectives import is_primary, processes_here
from pgfl_jax.errors import UserError
from pgfl_jax.report.writers import duration
from pgfl_jax.retrieval import blocks
from pgfl_jax.retrieval.blocks import Block, Rows, in_threads, row_blocks
from pgfl_jax.retrieval.inputs import as_rows, check_digits
from pgfl_jax.retrieval.protocols import Images, Protocol
from pgfl_jax.retrieval.ranking import (
    Ranked,
    naming,
    nearest,
    protocol_labels,
    rank_and_score,
)

_SMALL_BLOCK = 2**20
_COLUMNS = 2048  # of a product that is written into a larger array
_LONG = 1e12  # operations; of what takes longer, the time is estimated
_SAMPLE = 256  # rows to estimate it from; several threads take part
_IMAGE_SECONDS = 6e-5  # of an image's encoding


class _Images(NamedTuple):
    """Queries and gallery as one set; not one array, which would be a copy of both."""

    query: Rows
    gallery: Rows
    squares: Float[np.ndarray, " images"]  # of the rows' lengths

    def __len__(self) -> int:
        return len(self.squares)


def k_reciprocal_distances(
    query: npt.ArrayLike,
    gallery: npt.ArrayLike,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Float[np.ndarray, "queries gallery"]:
    """Distances of queries and gallery, re-ranked by k-reciprocal neighbours.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D). float64 stays float64, everything else becomes float32.
        k1: neighbours that are looked at.
        k2: neighbours whose encodings are averaged; 1: only the image's own.
        lambda_value: weight of the original distance, in [0, 1].

    Returns:
        (Q, G), in [0, 1]. :func:`k_reciprocal_blocks` yields it in blocks of rows.

    Raises:
        UserError: the machine has less memory than this needs.
        ValueError: the shapes disagree, a number is not finite, a row is so short that its squares
            lack digits, or an option is out of range.

    >>> query, gallery = np.float32([[0, 1]]), np.float32([[0, 1], [1, 0]])
    >>> k_reciprocal_distances(query, gallery, k1=1, k2=1)
    array([[0., 1.]], dtype=float32)
    """
    images = _images(query, gallery)
    shape = len(images.query), len(images.gallery)
    check_memory(*shape, k1=k1, k2=k2, result_bytes=images.query.itemsize * shape[0] * shape[1])
    parts = k_reciprocal_blocks(
        images.query, images.gallery, k1=k1, k2=k2, lambda_value=lambda_value
    )
    first = next(parts)  # for which most memory is needed, before there is a result
    result, start = np.empty(shape, first.dtype), 0
    for block in itertools.chain([first], parts):
        result[start : start + len(block)] = block
        start += len(block)
    return result


def k_reciprocal_blocks(
    query: npt.ArrayLike,
    gallery: npt.ArrayLike,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    quiet: bool = False,
) -> Iterator[Block]:
    """The rows of :func:`k_reciprocal_distances`, a block at a time.

    What takes long says on stderr how long and how much memory, and shows its progress.

    Args:
        query: (Q, D) embeddings.
        gallery: (G, D).
        k1: neighbours that are looked at.
        k2: neighbours whose encodings are averaged.
        lambda_value: weight of the original distance.
        quiet: print nothing.

    Raises:
        UserError: the machine has less memory than this needs.
        ValueError: the shapes disagree, a number is not finite, or an option is out of range.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(
            f"k1={k1}, k2={k2}, lambda_value={lambda_value}; re-ranking needs k1 >= 1, k2 >= 1 and "
            "a lambda_value in [0, 1]"
        )
    images = _images(query, gallery)
    need = check_memory(len(images.query), len(images.gallery), k1=k1, k2=k2)
    if not quiet and (seconds := _seconds(images, max(k1 + 1, k2))):
        line = f"re-ranking {len(images):,} images: about {duration(seconds)}"
        print(f"{line} and {need / 2**30:.1f} GiB of memory", file=sys.stderr, flush=True)
    total = len(images) + len(images.query)
    with tqdm(total=total, desc="re-ranking", unit=" rows", delay=2, disable=quiet) as bar:
        neighbours = _neighbours(images, max(k1 + 1, k2), bar)
        encodings = _encodings(images, neighbours, k1, k2)
        of_query = encodings[: len(images.query)]
        # Row l has the gallery images whose encodings have an entry l.
        having = encodings[len(images.query) :].T.tocsr()
        del encodings
        row_bytes = images.query.itemsize * len(images.gallery)
        for rows in row_blocks(len(images.query), row_bytes, _block_bytes(len(images), 64)):
            block = -2 * images.query[rows] @ images.gallery.T
            block += images.squares[len(images.query) :]
            block += images.squares[rows, None]
            np.maximum(block, 0, out=block)
            block /= neighbours.largest[rows, None]
            for row, entries in zip(block, _sparse_rows(of_query, rows), strict=True):
                shared = _shared(*entries, having)
                row[:] = (1 - lambda_value) * (1 - shared / (2 - shared)) + lambda_value * row
            yield block
            bar.update(len(block))


def rerank_protocol(
    embeddings: Mapping[str, Rows],
    protocol: Protocol,
    splits: Mapping[str, Images],
    *,
    max_rank: int,
) -> Ranked:
    """Score a protocol's rankings after re-ranking, beside :func:`.ranking.rank_protocol`.

    Args:
        embeddings: (N, D) of unit length, by the split's name.
        protocol: names the two splits.
        splits: by name.
        max_rank: length of the CMC.

    Raises:
        EvaluationError: no query has a match under another camera.
        UserError: the machine has less memory than re-ranking needs.
    """
    identities = splits[protocol.gallery].identities
    if is_primary() and len(np.unique(identities)) == len(identities):
        print(
            f"warning: {protocol.name}: the gallery has one image of each person, and re-ranking "
            "presumes several",
            file=sys.stderr,
            flush=True,
        )
    rows = embeddings[protocol.query], embeddings[protocol.gallery]
    check_memory(*map(len, rows), processes=processes_here())
    with naming(protocol):
        labels = protocol_labels(protocol, splits)
        distances = k_reciprocal_blocks(*rows, quiet=not is_primary())
        return rank_and_score(distances, labels, max_rank=max_rank)


def check_memory(
    num_query: int,
    num_gallery: int,
    *,
    k1: int = 20,
    k2: int = 6,
    result_bytes: int = 0,
    processes: int = 1,
) -> int:
    """Bytes that re-ranking needs beside the embeddings.

    By what a trained network's embeddings took; people who are far apart take about half.

    Args:
        num_query: rows.
        num_gallery: rows.
        k1: neighbours that are looked at.
        k2: neighbours whose encodings are averaged.
        result_bytes: of a result that is kept whole.
        processes: that do the same on this machine at the same time.

    Raises:
        UserError: the machine has less.
    """
    count = num_query + num_gallery
    neighbours = count * (k1 + 1)
    # Blocks of distances are gone before the encodings come.
    encodings = round(neighbours * (52 + 1.5 * k1 + 12 * k2))
    need = result_bytes + 8 * neighbours + max(2 * _block_bytes(count), encodings)
    available = _available_bytes()
    if available is not None and processes * need > available:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"re-ranking {count:,} images needs {need / 2**30:.1f} GiB of memory{each} beside the "
            f"embeddings, and {available / 2**30:.1f} GiB are available"
        )
    return need


def _images(query: npt.ArrayLike, gallery: npt.ArrayLike) -> _Images:
    sides, squares = as_rows(query, gallery), []
    for name, rows in zip(("query", "gallery"), sides, strict=True):
        if not rows.size:
            raise ValueError(f"{name} has shape {rows.shape}; expected (rows, channels)")
        squares.append(np.einsum("nd,nd->n", rows, rows))
        if (broken := np.flatnonzero(~np.isfinite(squares[-1]))).size:
            raise ValueError(f"row {broken[0]} of {name} is not finite")
        check_digits(name, squares[-1])
    if _far_from_zero(sides, np.concatenate(squares)):
        sides = sides[0] - sides[0][0], sides[1] - sides[0][0]
        squares = [np.einsum("nd,nd->n", rows, rows) for rows in sides]
    return _Images(*sides, np.concatenate(squares))


def _far_from_zero(sides: Sequence[Rows], squares: Float[np.ndarray, " images"]) -> bool:
    """Whether rows are so near to one another, for their lengths, that |q|² + |g|² − 2 q·g rounds.

    Their distances from one of them keep their digits, and are the same.
    """
    first, second = (rows.sum(axis=0, dtype=np.float64) for rows in sides)
    centre, mean = (first + second) / len(squares), squares.mean(dtype=np.float64)
    return bool(mean - centre @ centre < 0.01 * mean)


def _block_bytes(count: int, part: int = 32) -> int:
    """A part of the whole matrix, with enough rows for a fast matrix product."""
    return min(blocks.BLOCK_BYTES, max(_SMALL_BLOCK, 4 * count**2 // part))


def _partial_distances(rows: Rows, images: _Images, out: Block, product: np.ndarray) -> Block:
    """(B, N) squared Euclidean distances of rows to all images, less the rows' own squares.

    Args:
        rows: (B, D).
        images: all of them.
        out: (B, N) or more rows, for the result; memory that is used again stays little.
        product: (B · _COLUMNS,) or more, for what is in between.
    """
    doubled, start = -2 * rows, 0
    for side in (images.query, images.gallery):
        for part in row_blocks(len(side), 1, _COLUMNS):
            here = slice(start + part.start, start + part.stop)
            shape = len(rows), part.stop - part.start
            found = product[: shape[0] * shape[1]].reshape(shape)
            np.matmul(doubled, side[part].T, out=found)
            np.add(found, images.squares[here], out=out[: len(rows), here])
        start += len(side)
    return out[: len(rows)]


class _Neighbours(NamedTuple):
    """The nearest images of each image.

    Attributes:
        indices: (N, k), the nearest first.
        distances: (N, k) squared Euclidean.
        largest: (N,) squared Euclidean distance to any image; 1 where that is 0.
    """

    indices: Int[np.ndarray, "images k"]
    distances: Float[np.ndarray, "images k"]
    largest: Float[np.ndarray, " images"]


def _neighbours(images: _Images, k: int, bar: tqdm) -> _Neighbours:
    count, dtype = len(images), images.query.dtype
    k, row_bytes = min(k, count), count * dtype.itemsize
    found = _Neighbours(
        np.empty((count, k), np.int32), np.empty((count, k), dtype), np.empty(count, dtype)
    )
    start = 0
    step = next(row_blocks(count, row_bytes, _block_bytes(count))).stop
    distances, product = np.empty((step, count), dtype), np.empty(step * _COLUMNS, dtype)
    for side in (images.query, images.gallery):
        for rows in row_blocks(len(side), 1, step):
            here = slice(start, start + rows.stop - rows.start)
            block = _partial_distances(side[rows], images, distances, product)
            found.indices[here], found.distances[here] = nearest(block, k)
            found.largest[here] = block.max(axis=1)
            start = here.stop
            bar.update(len(block))
    for part in (found.distances.T, found.largest):  # both lack the rows' own squares still
        np.maximum(part + images.squares, 0, out=part)
    found.largest[found.largest == 0] = 1
    return found


def _encodings(images: _Images, near: _Neighbours, k1: int, k2: int) -> sparse.csr_matrix:
    """(N, N) U; see the module."""
    within = _table(near.indices[:, : k1 + 1])
    reciprocal = within.multiply(within.T).tocsr()
    half = _table(near.indices[:, : round(k1 / 2) + 1])
    half = half.multiply(half.T).tocsr()
    # R(c, k1/2) ∩ R(i, k1) is counted by a product, since l ∈ R(c) if and only if c ∈ R(l).
    common = (reciprocal @ half).multiply(reciprocal).tocsr()
    common.data = (3 * common.data > 2 * np.diff(half.indptr)[common.indices]).astype(np.int32)
    members = (reciprocal + common @ half).astype(bool).astype(near.distances.dtype)
    # Most distances are known: those of the neighbours. The exponentials of none are 0.
    relative = near.distances[:, : k1 + 1] / near.largest[:, None]
    known = members.multiply(_table(near.indices[:, : k1 + 1], np.exp(-relative))).tocsr()
    row, column = (members - members.multiply(within)).nonzero()
    others = np.exp(-_pair_distances(images, row, column) / near.largest[row])
    weights = (known + sparse.csr_matrix((others, (row, column)), known.shape)).tocsr()
    sums = np.asarray(weights.sum(axis=1)).ravel()
    weights.data /= np.repeat(sums, np.diff(weights.indptr))
    if k2 == 1:
        return weights
    expansion = near.indices[:, :k2]
    share = np.full(expansion.shape, 1 / expansion.shape[1], weights.dtype)
    return (_table(expansion, share) @ weights).tocsr()


def _table(
    indices: Int[np.ndarray, "images k"], values: np.ndarray | None = None
) -> sparse.csr_matrix:
    """(N, N) with values, or ones, at k indices of each row."""
    count, k = indices.shape
    entries = np.ones(indices.size, np.int32) if values is None else values.ravel()
    ends = np.arange(0, indices.size + 1, k)
    table = sparse.csr_matrix((entries, indices.ravel(), ends), (count, count), copy=True)
    table.sort_indices()  # in place, hence the copy
    return table


def _pair_distances(
    images: _Images, row: Int[np.ndarray, " pairs"], column: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """Squared Euclidean distances of pairs of images."""

    def rows_of(indices: Int[np.ndarray, " part"]) -> Rows:
        queries = len(images.query)
        found = np.empty((len(indices), images.query.shape[1]), images.query.dtype)
        found[indices < queries] = images.query[indices[indices < queries]]
        found[indices >= queries] = images.gallery[indices[indices >= queries] - queries]
        return found

    def products(part: slice) -> Float[np.ndarray, " part"]:
        return np.einsum("pd,pd->p", rows_of(row[part]), rows_of(column[part]))

    empty = np.empty(0, images.query.dtype)
    product = np.concatenate([empty, *in_threads(products, len(row), step=512)])
    return np.maximum(images.squares[row] + images.squares[column] - 2 * product, 0)


def _sparse_rows(
    matrix: sparse.csr_matrix, rows: slice
) -> Iterator[tuple[Int[np.ndarray, " entries"], Float[np.ndarray, " entries"]]]:
    """Columns and values of some rows."""
    for row in range(rows.start, rows.stop):
        entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
        yield matrix.indices[entries], matrix.data[entries]


def _shared(
    columns: Int[np.ndarray, " entries"],
    values: Float[np.ndarray, " entries"],
    having: sparse.csr_matrix,
) -> Float[np.ndarray, " gallery"]:
    """S of one query's encoding and those of the gallery; see the module."""
    first = having.indptr[columns]
    count = having.indptr[columns + 1] - first
    place = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
    least = np.minimum(having.data[place], np.repeat(values, count))
    sums = np.bincount(having.indices[place], least, minlength=having.shape[1])
    return sums.astype(values.dtype, copy=False)


def _seconds(images: _Images, k: int) -> float:
    """How long re-ranking takes, by the time of its first rows; 0: too short to say.

    Each row is compared with all images, and each query with the gallery once more. The rest takes
    as long for each image, whatever their number.
    """
    count, queries, gallery = len(images), len(images.query), len(images.gallery)
    if 2 * images.query.shape[1] * (count**2 + queries * gallery) < _LONG:
        return 0.0
    rows = images.query[:_SAMPLE]
    distances = np.empty((len(rows), count), rows.dtype)
    product = np.empty(len(rows) * _COLUMNS, rows.dtype)

    def sample() -> float:
        started = time.perf_counter()
        nearest(_partial_distances(rows, images, distances, product), min(k, count))
        distances.max(axis=1)
        return time.perf_counter() - started

    each = min(sample(), sample()) / len(rows)
    return each * (count + queries * gallery / count) + _IMAGE_SECONDS * count


def _available_bytes() -> int | None:
    """Memory that the system or the container still has; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except OSError:
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(stat["file"]))  # caches can be dropped
    except (OSError, ValueError):  # no container, or no limit
        pass
    return min(found, default=None)
