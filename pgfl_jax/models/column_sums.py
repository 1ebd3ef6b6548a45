"""Sums over the rows of tall matrices, at the speed of the memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec
from jaxtyping import Array

from pgfl_jax.distributed.sharding import AXES
from pgfl_jax.precision import upcast

_TILE = 8192
"""Elements that one program of the GPU adds at a time."""
_PROGRAMS = 132 * 8
"""Enough for the multiprocessors of an H100."""

Terms = Callable[..., tuple[Array, ...]]


def column_sums(
    terms: Terms, matrices: Sequence[Array], vectors: Sequence[Array], *, keep: bool = False
) -> tuple[Array, ...]:
    """Σ over rows of each of ``terms(*matrices, *vectors)``.

    On NVIDIA GPUs, one kernel of ours makes all sums of 16-bit matrices, and the kept term with
    them; XLA sometimes reads the matrices again for each. Elsewhere this is :func:`jax.numpy.sum`.

    Args:
        terms: elementwise, from the matrices, in at least float32, and the vectors, as rows, to
            arrays of the matrices' shape.
        matrices: (N, C) each.
        vectors: (C,) each.
        keep: return the first term as well, in the matrices' type.

    Returns:
        The sums, (C,) each; with ``keep``, the first term (N, C) before them.
    """
    number = len(matrices)

    def plain(*arrays: Array) -> tuple[Array, ...]:
        found = evaluate(terms, arrays[:number], arrays[number:])
        kept = (found[0].astype(arrays[0].dtype),) if keep else ()
        return *kept, *(jnp.sum(term, axis=0) for term in found)

    if matrices[0].shape[1] % 64 or matrices[0].dtype != jnp.bfloat16:
        return plain(*matrices, *vectors)
    count = len(jax.eval_shape(plain, *matrices, *vectors)) - keep
    on_gpu = partial(_partial_sums, terms, number, count, keep)
    mesh = jax.sharding.get_abstract_mesh()
    if set(AXES) <= set(mesh.axis_names):
        split, whole = PartitionSpec(AXES), PartitionSpec()
        specs = (split,) * number + (whole,) * len(vectors)
        on_gpu = jax.shard_map(on_gpu, in_specs=specs, out_specs=split, check_vma=False)

    def by_kernel(*arrays: Array) -> tuple[Array, ...]:
        *kept, sums = on_gpu(*arrays)
        return *kept, *jnp.sum(sums, axis=0)

    return jax.lax.platform_dependent(*matrices, *vectors, cuda=by_kernel, default=plain)


def evaluate(
    terms: Terms, matrices: Sequence[Array], vectors: Sequence[Array]
) -> tuple[Array, ...]:
    """The terms themselves; arguments as for :func:`column_sums`."""
    return terms(*map(upcast, matrices), *(upcast(vector)[None] for vector in vectors))


def _partial_sums(
    terms: Terms, number: int, count: int, keep: bool, *arrays: Array, interpret: bool = False
) -> tuple[Array, ...]:
    """Sums over parts of the rows, (parts, count, C), after the first term if it is kept."""
    rows, columns = arrays[0].shape
    width = 128 if columns % 128 == 0 else 64
    height = _TILE // width
    while rows % height:
        height //= 2
    tiles = rows // height
    parts = max(1, min(tiles, _PROGRAMS * width // columns))

    def kernel(*refs: Any) -> None:
        part = pl.program_id(0)
        here = pl.ds(pl.program_id(1) * width, width)
        inputs, outputs = refs[: len(arrays)], refs[len(arrays) :]
        vectors = [ref[here] for ref in inputs[number:]]

        def add(tile: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            lines = pl.ds(tile * height, height)
            found = evaluate(terms, [ref[lines, here] for ref in inputs[:number]], vectors)
            if keep:
                outputs[0][lines, here] = found[0].astype(outputs[0].dtype)
            return tuple(total + term for total, term in zip(sums, found, strict=True))

        zeros = tuple(jnp.zeros((height, width), jnp.float32) for _ in range(count))
        first, last = part * tiles // parts, (part + 1) * tiles // parts
        sums = jax.lax.fori_loop(first, last, add, zeros)
        for index, total in enumerate(sums):
            outputs[-1][part, index, here] = jnp.sum(total, axis=0)

    sums = jax.ShapeDtypeStruct((parts, count, columns), jnp.float32)
    found = pl.pallas_call(
        kernel,
        grid=(parts, columns // width),
        out_shape=[jax.ShapeDtypeStruct((rows, columns), arrays[0].dtype)] * keep + [sums],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=interpret,
        name="column_sums",
    )(*arrays)
    return tuple(found)
