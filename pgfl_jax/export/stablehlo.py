"""StableHLO: one artifact for CPUs, GPUs and TPUs, which JAX loads without this package."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import save_file

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import (
    Contract,
    batch_of,
    embed_function,
    embed_pictures,
    named_variables,
    no_source_paths,
)

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(embedder: Embedder, contract: Contract, *, parameters_inside: bool) -> bytes:
    """The serialised program, for any size of the batch.

    ``jax.export.deserialize(bytes).call`` takes ``(variables, images)``, or the images alone. The
    program can be read by releases of JAX of the next six months, and by those of the three weeks
    before.

    Args:
        embedder: of the run.
        contract: the input.
        parameters_inside: whether the parameters are constants of the program.
    """
    arguments: tuple[Any, ...] = (batch_of(embedder, contract),)
    embed: Callable[..., jax.Array]
    if parameters_inside:
        embed = embed_pictures(embedder, contract)
    else:
        variables = named_variables(embedder)
        shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in variables.items()}
        embed, arguments = embed_function(embedder, contract), (shapes, *arguments)
    with no_source_paths():
        exported = jax.export.export(jax.jit(embed), platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def write_stablehlo(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write the program with its parameters inside, and with them in a file beside it.

    ``model.stablehlo`` takes the arrays of ``model.safetensors`` by name, then the images, and so
    does ``model_bfloat16.stablehlo``, which computes in bfloat16. ``model_inside.stablehlo`` takes
    the images alone.
    """
    fast = dataclasses.replace(embedder, model=embedder.model.clone(dtype=jnp.bfloat16))
    for name, source, inside in (
        ("model", embedder, False),
        ("model_inside", embedder, True),
        ("model_bfloat16", fast, False),
    ):
        program = to_stablehlo(source, contract, parameters_inside=inside)
        (folder / f"{name}.stablehlo").write_bytes(program)
    save_file(named_variables(embedder), folder / "model.safetensors")
