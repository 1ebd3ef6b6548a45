"""LiteRT's files, ``.tflite``, in float32, with float16 weights, and in int8."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import Contract, batch_of, embed_pictures
from pgfl_jax.export.onnx_file import Graph

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

IN_FLOAT32 = (
    "MUL", "SUB", "DIV", "POW", "SQRT", "RSQRT", "EXP", "LOG", "MAXIMUM", "MINIMUM", "SUM", "MEAN",
    "REDUCE_MAX", "LOGISTIC", "L2_NORMALIZATION", "SQUARED_DIFFERENCE",
)  # fmt: skip
"""Arithmetic that stays in float32: of the pixels, and from the pooling to the unit length. Only
the convolutions that predict a pooling's maps are in int8, as those of the trunk are. The
coordinates of a long unit vector are far below the steps of an int8 tensor."""


def write_litert(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write ``model.tflite``, and ``model_float16.tflite`` with weights of half the size.

    Most CPUs compute both in float32. The batch may have any size: the interpreter starts with one
    picture, and ``resize_tensor_input`` changes it.

    Args:
        embedder: of the run.
        contract: the input.
        folder: where to write; it exists.

    Raises:
        ExportError: the network has an operation that has no translation.
    """
    import tensorflow as tf

    converter = _converter(embedder, contract)
    (folder / "model.tflite").write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    (folder / "model_float16.tflite").write_bytes(converter.convert())


def write_litert_int8(
    embedder: Embedder, contract: Contract, folder: Path, rows: np.ndarray
) -> None:
    """Write ``model_int8.tflite``, quantised after training; input and output are as before.

    Weights have a scale per channel. Activations have one per tensor, from their least and largest
    values on the calibration rows.

    Args:
        embedder: of the run.
        contract: the input.
        folder: where to write; it exists.
        rows: (N, …) *training* pictures as the contract says.

    Raises:
        ExportError: the network has an operation that has no translation.
    """
    import tensorflow as tf

    def batches() -> Iterator[list[np.ndarray]]:
        for row in rows:
            yield [row[None]]

    converter = _converter(embedder, contract)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = batches
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(IN_FLOAT32))
    with warnings.catch_warnings():
        # It starts TensorFlow's interpreter, which is the deprecated one.
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter", UserWarning)
        # Statistics of an uint8 input, which is not quantised.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=batches, debug_options=options
        )
        model = debugger.get_nondebug_quantized_model()
    (folder / "model_int8.tflite").write_bytes(model)


def _converter(embedder: Embedder, contract: Contract) -> Any:
    import tensorflow as tf

    from pgfl_jax.export.jaxpr_to_onnx import convert
    from pgfl_jax.export.onnx_to_tensorflow import as_tensorflow

    embed = embed_pictures(embedder, contract)
    images = batch_of(embedder, contract)
    graph = as_tensorflow(convert(embed, images))
    row = tf.TensorSpec([None, *images.shape[1:]], images.dtype, name="images")

    @tf.function(autograph=False, input_signature=[row])
    def serve(images):
        return {"embeddings": graph(images)}

    module = tf.Module()
    module.serve = serve
    return tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)


def read_litert(path: Path) -> Graph:
    """The graph of a file, whose weights may be in float32, float16 or int8."""
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,), (signature,) = content.subgraphs, content.signatureDefs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    kinds = [names[code.builtinCode] for code in content.operatorCodes]
    nodes = [(kinds[node.opcodeIndex], node.inputs, node.outputs[0]) for node in graph.operators]
    sizes = [int(np.prod(tensor.shape)) for tensor in graph.tensors]
    floats = schema.TensorType.FLOAT32, schema.TensorType.FLOAT16
    numbers = {
        number: sizes[number]
        for number, tensor in enumerate(graph.tensors)
        if tensor.type in floats and content.buffers[tensor.buffer].data is not None
    }
    stored = {output: inputs[0] for kind, inputs, output in nodes if kind == "DEQUANTIZE"}
    kernels = multiply_adds = 0
    for kind, inputs, output in nodes:
        if kind in _PRODUCTS:
            kernels += sizes[inputs[1]]
            multiply_adds += sizes[inputs[1]] * int(np.prod(graph.tensors[output].shape[1:-1]))
            numbers.pop(stored.get(inputs[1], inputs[1]), None)
    given = tuple(tensor.name.decode() for tensor in signature.inputs)
    return Graph(given, kernels, sum(numbers.values()), multiply_adds)
