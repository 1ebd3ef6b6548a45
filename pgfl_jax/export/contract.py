"""What goes into an exported graph, in the same words for every format."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from pgfl_jax.embedder import Embedder
from pgfl_jax.models import unit_length
from pgfl_jax.preprocessing import normalise


@dataclasses.dataclass(frozen=True)
class Contract:
    """The input of an exported graph: a batch of RGB pictures of the network's size.

    Attributes:
        dtype: ``uint8`` or ``float32``.
        channels_first: (N, 3, H, W) instead of (N, H, W, 3).
        normalised: whether the caller normalises; otherwise values are in [0, 255] and the graph
            does.
    """

    dtype: str
    channels_first: bool
    normalised: bool

    def row_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of one picture."""
        return (3, height, width) if self.channels_first else (height, width, 3)


CONTRACTS: Mapping[str, Contract] = {
    "uint8_nhwc": Contract("uint8", channels_first=False, normalised=False),
    # For DeepStream and OpenCV's dnn.
    "float255_nchw": Contract("float32", channels_first=True, normalised=False),
    "normalised_nchw": Contract("float32", channels_first=True, normalised=True),
}

NamedVariables = Mapping[str, Array | np.ndarray]
EmbedFunction = Callable[[NamedVariables, Array], Array]


def embed_function(embedder: Embedder, contract: Contract) -> EmbedFunction:
    """The function that every format holds: variables by name and a batch to embeddings.

    Args:
        embedder: of the run.
        contract: the input.

    Returns:
        ``f(variables, images)``: from the arrays of :func:`named_variables` and (N, …) pictures as
        the contract says to (N, D) float32 of unit length.
    """
    data = embedder.config.data

    def embed(variables: NamedVariables, images: Array) -> Array:
        pictures = jnp.transpose(images, (0, 2, 3, 1)) if contract.channels_first else images
        if not contract.normalised:
            pictures = normalise(pictures, data.mean, data.std)
        nested = unflatten_dict(dict(variables), sep="/")
        outputs: Any = embedder.model.apply(nested, pictures, train=False)
        return unit_length(outputs.main.neck)

    return embed


def embed_pictures(embedder: Embedder, contract: Contract) -> Callable[[Array], Array]:
    """The same function of a batch alone; the variables are constants in it."""
    variables = {name: jnp.asarray(value) for name, value in named_variables(embedder).items()}
    return functools.partial(embed_function(embedder, contract), variables)


def named_variables(embedder: Embedder) -> dict[str, np.ndarray]:
    """The arrays of trunk, pooling and BNNeck by name, such as ``params/trunk/conv1/kernel``."""
    flat = flatten_dict(embedder.variables, sep="/")
    return {name: np.asarray(value) for name, value in sorted(flat.items())}


@contextlib.contextmanager
def no_source_paths() -> Iterator[None]:
    """Programs that are lowered inside do not hold the paths of this machine's source files."""
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def batch_of(embedder: Embedder, contract: Contract) -> jax.ShapeDtypeStruct:
    """The abstract input, with a symbol for the size of the batch."""
    data = embedder.config.data
    (batch,) = jax.export.symbolic_shape("batch")
    shape = batch, *contract.row_shape(data.height, data.width)
    return jax.ShapeDtypeStruct(shape, contract.dtype)
