"""Distances in blocks of rows, so that memory stays bounded, and rows in threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

BLOCK_BYTES = 2**28
"""Size of the largest block of distances, unless a single row is larger."""

Rows = Float[np.ndarray, "_ channels"]
Block = Float[np.ndarray, "_ gallery"]


class Ranking(NamedTuple):
    """The nearest gallery items of each query.

    Attributes:
        indices: (Q, top) of the gallery, the nearest first; ties rank by gallery index.
        distances: (Q, top) of these, ascending.
    """

    indices: Int[np.ndarray, "queries top"]
    distances: Float[np.ndarray, "queries top"]


Result = TypeVar("Result")


def row_blocks(count: int, row_bytes: int, block_bytes: int | None = None) -> Iterator[slice]:
    """Slices of ``count`` rows that fit a block; by default one of :data:`BLOCK_BYTES`.

    >>> [*row_blocks(5, row_bytes=10, block_bytes=25)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, (block_bytes or BLOCK_BYTES) // max(1, row_bytes))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def in_threads(function: Callable[[slice], Result], count: int, *, step: int) -> list[Result]:
    """What a function returns for each ``step`` of ``count`` rows; the first error is raised."""
    slices = row_blocks(count, 1, step)
    if count <= step:
        return [function(rows) for rows in slices]
    with ThreadPoolExecutor() as pool:
        return [*pool.map(function, slices)]
