"""The graphs of :mod:`pgfl_jax.export.jaxpr_to_onnx` as functions of TensorFlow, for LiteRT.

LiteRT's converter also takes the program of jax2tf. But it leaves BatchNorm beside the convolutions
there, computes every broadcast over a batch of unknown size, and its int8 models do not run. The
ONNX graph has BatchNorm in the weights already.

Tensors of rank 4 are stored with their channels last, which is what LiteRT computes. A transpose is
remembered, not computed, until an operation needs another order in memory.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper

from pgfl_jax.export.jaxpr_to_onnx import ExportError

CHANNELS_LAST = (0, 2, 3, 1)
NO_PADS = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor; axis i of the stored one is axis order[i] of the graph's."""

    stored: Any
    order: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Where an axis of the graph's tensor is stored; negative ones count from the end."""
        return self.order.index(axis % len(self.order))

    def ordered(self, order: Sequence[int] | None = None) -> Any:
        """The tensor stored in an order, by default the graph's."""
        wanted = tuple(range(len(self.order)) if order is None else order)
        if wanted == self.order:
            return self.stored
        return tf.transpose(self.stored, [self.axis(axis) for axis in wanted])


_Value = _Tensor | np.ndarray  # an array is a constant
Attributes = Mapping[str, Any]

_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "Add": tf.add, "Sub": tf.subtract, "Mul": tf.multiply, "Div": tf.divide, "Pow": tf.pow,
    "Max": tf.maximum, "Min": tf.minimum, "Relu": tf.nn.relu, "Sqrt": tf.sqrt, "Exp": tf.exp,
    "Log": tf.math.log, "Tanh": tf.tanh, "Sigmoid": tf.sigmoid, "Erf": tf.math.erf,
    "Neg": tf.negative, "Abs": tf.abs, "Reciprocal": tf.math.reciprocal,
}  # fmt: skip


def as_tensorflow(model: onnx.ModelProto) -> Callable[[Any], Any]:
    """The function of TensorFlow that computes a graph of one input and one output.

    Args:
        model: made by :func:`pgfl_jax.export.jaxpr_to_onnx.convert`.

    Returns:
        From the tensor of the input to the output's. It raises :class:`ExportError` for an
        operation that has no translation.
    """
    graph = model.graph

    def function(images: Any) -> Any:
        values: dict[str, _Value] = {
            constant.name: numpy_helper.to_array(constant) for constant in graph.initializer
        }
        values[graph.input[0].name] = _Tensor(images, tuple(range(len(images.shape))))
        for node in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [values[name] for name in node.input]
            values[node.output[0]] = _translate(node.op_type, attributes, inputs)
        result = values[graph.output[0].name]
        assert isinstance(result, _Tensor)
        return result.ordered()

    return function


def _translate(operation: str, attributes: Attributes, inputs: Sequence[Any]) -> _Tensor:
    if operation in _ELEMENTWISE:
        return _elementwise(_ELEMENTWISE[operation], inputs)
    if operation not in _OTHERS:
        raise ExportError(f"TensorFlow: the operation {operation} has no translation")
    return _OTHERS[operation](attributes, *inputs)


def _elementwise(function: Callable[..., Any], inputs: Sequence[_Value]) -> _Tensor:
    """All inputs are brought to the order of the first that is no constant."""
    order = next(value.order for value in inputs if isinstance(value, _Tensor))

    def stored(value: _Value) -> Any:
        if isinstance(value, _Tensor):
            return value.ordered(order)
        return value.reshape(()) if value.size == 1 else np.transpose(value, order)

    return _Tensor(function(*map(stored, inputs)), order)


def _identity(attributes: Attributes, tensor: _Tensor) -> _Tensor:
    return tensor


def _cast(attributes: Attributes, tensor: _Tensor) -> _Tensor:
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    return _Tensor(tf.cast(tensor.stored, dtype), tensor.order)


def _transpose(attributes: Attributes, tensor: _Tensor) -> _Tensor:
    moves = list(attributes["perm"])
    return _Tensor(tensor.stored, tuple(moves.index(axis) for axis in tensor.order))


def _reshape(attributes: Attributes, tensor: _Tensor, lengths: np.ndarray) -> _Tensor:
    # 0 keeps the batch, which is the only length that is not known.
    shape = [int(length) or -1 for length in lengths]
    return _Tensor(tf.reshape(tensor.ordered(), shape), tuple(range(len(shape))))


def _unsqueeze(attributes: Attributes, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
    lengths = iter(tensor.ordered().shape)
    rank = len(tensor.order) + len(axes)
    shape = [1 if axis in axes else next(lengths) or -1 for axis in range(rank)]
    return _Tensor(tf.reshape(tensor.ordered(), shape), tuple(range(rank)))


def _padded(tensor: _Tensor, attributes: Attributes, mode: str) -> Any:
    """With channels last, and rows and columns added as the attribute ``pads`` says."""
    images, pads = tensor.ordered(CHANNELS_LAST), attributes.get("pads", NO_PADS)
    if not any(pads):
        return images
    return tf.pad(images, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)], mode)


def _conv(
    attributes: Attributes, images: _Tensor, kernel: np.ndarray, bias: np.ndarray | None = None
) -> _Tensor:
    outputs = tf.nn.conv2d(
        _padded(images, attributes, "CONSTANT"),
        np.transpose(kernel, (2, 3, 1, 0)),  # fewer input channels than the images: grouped
        strides=attributes["strides"],
        padding="VALID",
        dilations=attributes.get("dilations"),
    )
    if bias is not None:
        outputs = tf.nn.bias_add(outputs, bias)
    return _Tensor(outputs, CHANNELS_LAST)


def _max_pool(attributes: Attributes, images: _Tensor) -> _Tensor:
    # Reflected pixels are in the window already, so they do not change its maximum; -inf would be
    # the range of an int8 tensor.
    window, pads = attributes["kernel_shape"], attributes["pads"]
    if any(2 * pad > length for pad, length in zip(pads, [*window, *window], strict=True)):
        raise ExportError("TensorFlow: a max-pool padded by more than half its window")
    pooled = tf.nn.max_pool2d(
        _padded(images, attributes, "SYMMETRIC"), window, attributes["strides"], "VALID"
    )
    return _Tensor(pooled, CHANNELS_LAST)


def _gemm(attributes: Attributes, rows: _Tensor, matrix: np.ndarray, bias: np.ndarray) -> _Tensor:
    product = tf.linalg.matmul(rows.ordered(), matrix, transpose_b=bool(attributes["transB"]))
    return _Tensor(product + bias, (0, 1))


def _reduced(function: Callable[..., Any]) -> Callable[..., _Tensor]:
    def reduce(attributes: Attributes, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
        reduced = function(tensor.stored, axis=[tensor.axis(axis) for axis in axes])
        left = [axis for axis in tensor.order if axis not in axes]
        return _Tensor(reduced, tuple(sorted(left).index(axis) for axis in left))

    return reduce


def _slice(
    attributes: Attributes,
    tensor: _Tensor,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray,
    steps: np.ndarray,
) -> _Tensor:
    cuts = [slice(None)] * len(tensor.order)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[tensor.axis(axis)] = slice(int(start), int(end), int(step))
    return _Tensor(tensor.stored[tuple(cuts)], tensor.order)


def _concat(attributes: Attributes, *tensors: _Tensor) -> _Tensor:
    order = tensors[0].order
    joined = tf.concat(
        [tensor.ordered(order) for tensor in tensors], tensors[0].axis(attributes["axis"])
    )
    return _Tensor(joined, order)


_OTHERS: Mapping[str, Callable[..., _Tensor]] = {
    "Identity": _identity, "Cast": _cast, "Transpose": _transpose, "Reshape": _reshape,
    "Unsqueeze": _unsqueeze, "Conv": _conv, "MaxPool": _max_pool, "Gemm": _gemm,
    "ReduceSum": _reduced(tf.reduce_sum), "ReduceMax": _reduced(tf.reduce_max),
    "Slice": _slice, "Concat": _concat,
}  # fmt: skip
