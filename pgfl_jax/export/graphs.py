"""The proof that a graph is the main branch and nothing else, by its size."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from pgfl_jax.embedder import Embedder
from pgfl_jax.experiment import NUM_PARTS, Experiment
from pgfl_jax.export.contract import CONTRACTS, batch_of, embed_function, named_variables
from pgfl_jax.export.onnx_file import Graph

_PARTS = ("trunk", "main_pooling", "main_neck")
# In a program's text, the size of the pictures' batch is unknown, which `?` says. So a product
# whose right side has a `?` is one of two activations.
_PRODUCT = re.compile(
    r"stablehlo\.(?:convolution|dot_general)\b.*: "
    r"\(tensor<[^>]*>, tensor<([^>?]*)>\) -> tensor<([^>]*)>"
)
_ARGUMENT = re.compile(r"%arg\d+: tensor<([^>?]*)xf32>")
_CONSTANT = re.compile(r"stablehlo\.constant dense<.*> : tensor<([^>]*)xf32>")


def main_branch(embedder: Embedder) -> Graph:
    """The main branch of a run, as JAX computes it.

    ``others`` are the biases, scales and statistics of its normalisations.
    """
    variables = named_variables(embedder)
    strangers = [name for name in variables if name.split("/")[1] not in _PARTS]
    if strangers:
        raise ValueError(f"not the main branch's: {strangers}")
    contract = CONTRACTS["uint8_nhwc"]
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in variables.items()}
    jaxpr = jax.make_jaxpr(embed_function(embedder, contract))(shapes, batch_of(embedder, contract))
    return _sizes(variables, multiply_adds(jaxpr.jaxpr), ("images",))


def training(embedder: Embedder, num_identities: int) -> Graph:
    """The network as it is trained: three branches with their classifiers, forward."""
    config = embedder.config
    images = config.data.batch_size  # no matter how many there were
    experiment = Experiment.create(config, num_identities=num_identities, num_images=images)
    state = experiment.abstract_state()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    shapes = {
        "images": (1, config.data.height, config.data.width, 3),
        "pose_maps": (1, *config.map_shape, NUM_PARTS),
        "visibility": (1, NUM_PARTS),
    }
    given = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    if not config.model.pose_branches:
        given = {"images": given["images"]}

    def forward(variables: Any, inputs: Any) -> Any:
        apply = experiment.model.clone(drop_path=0.0).apply
        return apply(variables, **inputs, train=True, mutable=["batch_stats"])[0]

    jaxpr = jax.make_jaxpr(forward)(variables, given)
    return _sizes(flatten_dict(variables, sep="/"), multiply_adds(jaxpr.jaxpr), tuple(given))


def _sizes(variables: Any, products: int, inputs: tuple[str, ...]) -> Graph:
    sizes = {name: math.prod(value.shape) for name, value in variables.items()}
    kernels = sum(size for name, size in sizes.items() if name.endswith("kernel"))
    everything = sum(sizes.values())
    return Graph(inputs, kernels, everything - kernels, products)


def multiply_adds(jaxpr: Any) -> int:
    """Multiplications of a jaxpr's convolutions and products with weights, inner ones included.

    They are those of one picture where the size of the batch is a symbol. A product of two
    activations, whose right side has that symbol too, does not count. Of what differs from platform
    to platform, the default counts.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("conv_general_dilated", "dot_general"):
            weights, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
            if name == "dot_general":
                summed = math.prod(weights[axis] for axis in numbers[0][1])
            else:
                summed = math.prod(weights) // weights[numbers.rhs_spec[0]]
            if all(isinstance(length, int) for length in weights):
                results = equation.outvars[0].aval.shape
                total += summed * math.prod(n for n in results if isinstance(n, int))
        platforms = params.get("branches_platforms")
        inside = [params["branches"][platforms.index(None)]] if platforms else [*params.values()]
        total += sum(multiply_adds(inner) for inner in _inner(inside))
    return total


def _inner(params: list[Any]) -> Iterator[Any]:
    """The jaxprs in parameters of an equation."""
    for value in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def read_stablehlo(path: Path) -> Graph:
    """The graph of a serialised program, as a CPU computes it, from the program's text."""
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    return _read_text(program.mlir_module(), ("images",))


def read_saved_model(folder: Path) -> Graph:
    """The graph of a SavedModel, from the StableHLO program inside.

    Raises:
        ValueError: it has another number of programs than one.
    """
    import tensorflow as tf
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo

    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    library = signature.graph.as_graph_def().library
    nodes = (node for function in library.function for node in function.node_def)
    (program,) = (node.attr["module"].s for node in nodes if node.op == "XlaCallModule")
    with ir.Context() as context:
        text = str(stablehlo.deserialize_portable_artifact(context, program))
    return _read_text(text, tuple(signature.structured_input_signature[1]))


def _read_text(text: str, inputs: tuple[str, ...]) -> Graph:
    """The graph of a program in StableHLO; its parameters are constants or arguments."""
    lines = list(_on_first_platform(text))
    kernels = products = 0
    for line in lines:
        if found := _PRODUCT.search(line):
            weights, result = map(_lengths, found.groups())
            kernels += math.prod(weights)
            products += math.prod(weights) * math.prod(result) // weights[-1]
    main = next(line for line in lines if "@main(" in line)
    variables = _ARGUMENT.findall(main)
    constants = [found[1] for line in lines if (found := _CONSTANT.search(line))]
    everything = sum(math.prod(_lengths(value)) for value in (*variables, *constants))
    return Graph(inputs, kernels, everything - kernels, products)


def _on_first_platform(text: str) -> Iterator[str]:
    """The lines of a program without the branches for other platforms than the first, the CPU.

    What differs from platform to platform is a ``stablehlo.case`` with a region for each; their
    order is that of the platforms.
    """
    regions: list[int] = []  # of the operations around a line, the number of the region
    for line in map(str.strip, text.splitlines()):
        if line.startswith("})"):
            regions.pop()
        elif line.startswith("}, {"):
            regions[-1] += 1
        elif not any(regions):
            yield line
        if line.endswith("({"):
            regions.append(0)


def _lengths(text: str) -> list[int]:
    """The axes in a type such as ``?x16x8x48xf32``, without the batch."""
    return [int(length) for length in text.split("x") if length.isdecimal()]
