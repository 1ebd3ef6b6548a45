"""The least time of a compiled program: its bytes and its products at the machine's own speeds."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.hlo import Program


def ceilings(dtype: str) -> dict[str, float]:
    """What the first device reaches: the best of twenty runs, half a second to two in all.

    Args:
        dtype: of the product, ``float32`` or ``bfloat16``.

    Returns:
        ``copy_gb_per_second``: bytes read and written where a large array is changed in place.
        ``product_gflop_per_second``: of a large square product.
    """
    large = jax.default_backend() != "cpu"
    numbers, side = (2**30, 8192) if large else (2**26, 2048)
    array = jnp.zeros(numbers, jnp.float32)
    square = jnp.ones((side, side), jnp.dtype(dtype))
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def change() -> None:
        nonlocal array
        array = jax.block_until_ready(negate(array))

    product = jax.jit(jnp.matmul)
    return {
        "copy_gb_per_second": 2 * array.nbytes / _least(change) / 1e9,
        "product_gflop_per_second": 2
        * side**3
        / _least(lambda: jax.block_until_ready(product(square, square)))
        / 1e9,
    }


def _least(run: Callable[[], Any]) -> float:
    """Seconds."""
    run()
    found = []
    for _ in range(20):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def floor(text: str, reached: Mapping[str, float]) -> dict[str, float]:
    """The least time of a program.

    Products that a compiler hands to a library, as XLA does on GPUs, are not in its text and do not
    count. Nor does it count that a CPU finds in its cache what it has just written: there, only
    ``product_ms`` is a bound.

    Args:
        text: of the compiled program.
        reached: by :func:`ceilings`.

    Returns:
        ``gigabytes`` moved and their ``copy_ms``; ``gflop`` of products and their ``product_ms``.
    """
    program = Program(text)
    gigabytes, gflop = program.memory_bytes / 1e9, program.matrix_flops / 1e9
    return {
        "gigabytes": gigabytes,
        "copy_ms": 1000 * gigabytes / reached["copy_gb_per_second"],
        "gflop": gflop,
        "product_ms": 1000 * gflop / reached["product_gflop_per_second"],
    }
