"""ONNX graphs of less precision, made from a float32 one: int8 and float16.

The trunk is quantised, with the 3x3 convolution of a pooling that predicts its maps. The
normalisation of the pixels, and what comes after the last of these convolutions (maps, pooling,
BNNeck, unit length), stay in float32: they take no time, and the coordinates of a long
unit vector are far below the steps of an int8 tensor.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

TRUNK = ("Conv", "Gemm", "MatMul", "Relu", "Add", "MaxPool", "Concat")


def trunk_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes from the first convolution or product to the last one's activation.

    A last convolution without such an activation gives a pooling its maps and is left out, as JAX
    computes it in float32 even where the trunk is in bfloat16.
    """
    weights = {weight.name for weight in model.graph.initializer}
    # Attention multiplies activations; in int8 its weights would lose most of their digits.
    nodes = [
        node for node in model.graph.node if node.op_type != "MatMul" or node.input[1] in weights
    ]
    places = [
        place for place, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul")
    ]
    last = places[-1]
    if nodes[last + 1].op_type not in TRUNK:
        last -= 1
    while nodes[last + 1].op_type in TRUNK and last + 1 not in places:
        last += 1
    return [node for node in nodes[places[0] : last + 1] if node.op_type in TRUNK]


def quantise_onnx(source: Path, target: Path, rows: np.ndarray) -> None:
    """Write an int8 copy of an ONNX file, quantised after training by ONNX Runtime.

    Weights have a scale per channel, activations one per tensor, from their least and largest
    values on the calibration rows; both are nodes of the graph (QDQ). Input and output do not
    change.

    Args:
        source: the float32 file.
        target: the file to write.
        rows: (N, …) *training* pictures as the input of the graph takes them.
    """
    from onnxruntime import quantization

    model = _named(onnx.load(source))
    (images,) = model.graph.input
    # ONNX Runtime's preparation: shapes are in the file, and there is nothing left to fold.
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantization.quantize_static(
        model,
        target,
        _Rows(images.name, rows),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        nodes_to_quantize=[node.name for node in trunk_nodes(model)],
    )
    _save(onnx.load(target), target)


def halve_onnx(source: Path, target: Path) -> None:
    """Write a copy of an ONNX file whose trunk computes in float16, with weights of half the size.

    Input and output do not change.

    Args:
        source: the float32 file.
        target: the file to write.
    """
    model = _named(onnx.load(source))
    trunk = {node.name for node in trunk_nodes(model)}
    halves: dict[str, str] = {}  # the float16 form of a tensor, by its name
    weights = []
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            halves[weight.name] = f"{weight.name}_half"
            weights.append(numpy_helper.from_array(array.astype(np.float16), halves[weight.name]))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in trunk:
            nodes += _halved(node, halves)
        else:
            nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    _drop_unused(model.graph)
    _save(model, target)


def _save(model: onnx.ModelProto, target: Path) -> None:
    """Write a model with the shapes of all its tensors."""
    model.graph.ClearField("value_info")
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), target)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a name for every node, by which ONNX Runtime's tools choose them."""
    for node in model.graph.node:
        node.name = node.output[0]
    return model


class _Rows:
    """Calibration rows one by one, as ONNX Runtime asks for them."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self._batches = iter({name: row[None]} for row in rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _halved(node: onnx.NodeProto, halves: dict[str, str]) -> list[onnx.NodeProto]:
    """A node in float16, and what casts its inputs and its output; ``halves`` gets the output.

    The cast of an output that only other halved nodes read is dropped afterwards.
    """
    made = []
    for name in node.input:
        if name not in halves:
            halves[name] = f"{name}_half"
            made.append(_cast(name, halves[name], np.float16))
    (output,) = node.output
    half = onnx.NodeProto()
    half.CopyFrom(node)
    halves[output] = half.output[0] = f"{output}_half"
    half.input[:] = [halves[name] for name in node.input]
    return [*made, half, _cast(halves[output], output, np.float32)]


def _cast(name: str, result: str, dtype: type) -> onnx.NodeProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_node("Cast", [name], [result], name=f"{result}_cast", to=kind)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Nodes and weights that no output needs; nodes are in the order of their computation."""
    needed = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    for field, kept in (("node", nodes[::-1]), ("initializer", weights)):
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
