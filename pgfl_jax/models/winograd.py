"""3x3 convolutions by Winograd's minimal filtering: 16 multiplications where 36 were.

Four neighbouring outputs Y (2x2) of a 3x3 kernel k depend on 4x4 inputs d. For one channel,

    Y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A,

with constant matrices of 0, ±1 and ±½. Over C input and D output channels, each of the 16 places of
the product becomes a matrix product, (tiles, C)·(C, D). The transforms are sums. The gradient of
the kernel is the transposed computation, again with 16 products,

    ∂k = Gᵀ [Σ (Bᵀ d B)ᵀ (A ∂Y Aᵀ)] G,

and the gradient of the input is the convolution of ∂Y with the kernel turned by 180°. In float32
the rounding errors are 0.6 to 1.3 times those of the plain convolution.

Reference: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch height width out_channels"]
Kernel = Float[Array, "3 3 channels out_channels"]
Grid = list[list[Array]]

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # Bᵀ
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # Aᵀ

_CACHE = 12 * 2**20
"""Bytes of transformed inputs that are worked on at a time, so that they stay in the cache."""


def convolution(x: Features, kernel: Kernel) -> Output:
    """The cross-correlation with stride 1, padded by one pixel.

    Args:
        x: (B, h, w, C), h and w even.
        kernel: (3, 3, C, D).

    Returns:
        (B, h, w, D).
    """
    return _filtered(x, _sandwich(_KERNEL, list(kernel)))


def gradients(x: Features, kernel: Kernel, gradient: Output) -> tuple[Features, Kernel]:
    """Of the convolution's input and kernel, from that of its output."""
    return _input_gradient(kernel, gradient), _kernel_gradient(x, gradient)


def _input_gradient(kernel: Kernel, gradient: Output) -> Features:
    matrices = _sandwich(_KERNEL, list(kernel))
    # G of a column that is turned round has its first and last row exchanged. To transform a turned
    # and transposed kernel gives the same, but reads it against its order, at a twentieth of the
    # speed.
    turned = 3, 1, 2, 0
    return _filtered(gradient, [[matrices[i][j].T for j in turned] for i in turned])


def _filtered(x: Array, matrices: Grid) -> Array:
    """The convolution with a transformed kernel, 4x4 matrices (C, D)."""
    batch, height, width, _ = x.shape
    outputs = matrices[0][0].shape[1]
    rows = _rows_at_a_time(x)
    padded = _padded(x)

    def strip(start: Any) -> Array:
        shape = batch, rows // 2, width // 2, outputs
        pairs = _pairs(_tiles(padded, start, rows), matrices)
        products = [[(tile @ matrix).reshape(shape) for tile, matrix in row] for row in pairs]
        pixels = [jnp.stack(row, axis=3) for row in _sandwich(_OUTPUT, products)]
        return jnp.stack(pixels, axis=2).reshape(batch, rows, width, outputs)

    if rows == height:
        return strip(0)

    def put(number: Any, made: Array) -> Array:
        start = number * rows
        return jax.lax.dynamic_update_slice_in_dim(made, strip(start), start, axis=1)

    empty = jnp.empty((batch, height, width, outputs), x.dtype)
    return jax.lax.fori_loop(0, height // rows, put, empty)


def _kernel_gradient(x: Features, gradient: Output) -> Kernel:
    height, rows = x.shape[1], _rows_at_a_time(x)
    padded = _padded(x)

    def strip(start: Any) -> Grid:
        part = jax.lax.dynamic_slice_in_dim(gradient, start, rows, axis=1)
        pixels = [[part[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
        spread = _matrices(_sandwich(_OUTPUT.T, pixels))
        pairs = _pairs(_tiles(padded, start, rows), spread)
        return [[tile.T @ each for tile, each in row] for row in pairs]

    def add(number: Any, total: Grid) -> Grid:
        return jax.tree.map(jnp.add, total, strip(number * rows))

    total = strip(0)
    if rows < height:
        total = jax.lax.fori_loop(1, height // rows, add, total)
    return jnp.stack([jnp.stack(row) for row in _sandwich(_KERNEL.T, total)])


def _rows_at_a_time(x: Features) -> int:
    """Rows of a strip, which divide the height."""
    batch, height, width, channels = x.shape
    bytes_of_two = batch * width // 2 * 16 * channels * x.dtype.itemsize
    pairs = height // 2
    possible = [count for count in range(1, pairs + 1) if pairs % count == 0]
    return 2 * max([1, *(count for count in possible if count * bytes_of_two <= _CACHE)])


def _padded(x: Features) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _tiles(padded: Array, start: Any, rows: int) -> Grid:
    """Bᵀ d B of each tile of some rows, a matrix (tiles, channels) for each place."""
    strip = jax.lax.dynamic_slice_in_dim(padded, start, rows + 2, axis=1)
    width = padded.shape[2] - 2
    grid = [[strip[:, i : i + rows : 2, j : j + width : 2] for j in range(4)] for i in range(4)]
    return _matrices(_sandwich(_INPUT, grid))


def _matrices(grid: Grid) -> Grid:
    return [[array.reshape(-1, array.shape[-1]) for array in row] for row in grid]


def _pairs(left: Grid, right: Grid) -> Iterator[Iterator[tuple[Array, Array]]]:
    return (zip(*rows, strict=True) for rows in zip(left, right, strict=True))


def _sandwich(matrix: np.ndarray, grid: Sequence[Any]) -> Grid:
    """M X Mᵀ of a grid X of arrays, by additions alone."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    combined = []
    for row in matrix:
        terms = [float(each) * array for each, array in zip(row, arrays, strict=True) if each]
        combined.append(sum(terms[1:], terms[0]))
    return combined
