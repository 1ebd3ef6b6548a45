"""The graphs of :mod:`pgfl_jax.export.jaxpr_to_onnx` as functions of TensorFlow, for LiteRT.

LiteRT's converter also takes the program of jax2tf. But there it leaves BatchNorm beside the
convolutions, computes every broadcast over a batch of unknown size, and makes int8 models that do
not run. The ONNX graph has BatchNorm in its weights already.

Tensors of rank 4 are stored with their channels last, as LiteRT computes them. A transpose is
remembered, not computed, until an operation needs another order in memory.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pgfl_jax.export.jaxpr_to_onnx import ExportError

CHANNELS_LAST = (0, 2, 3, 1)
NO_PADS = (0, 0, 0, 0)

_ELEMENTWISE = {
    "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Pow": "pow",
    "Max": "maximum", "Min": "minimum", "Relu": "nn.relu", "Sqrt": "sqrt", "Exp": "exp",
    "Log": "math.log", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Neg": "negative", "Abs": "abs", "Reciprocal": "math.reciprocal",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor; axis i of the stored one is axis order[i] of the graph's."""

    stored: Any
    order: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Where an axis of the graph's tensor is stored."""
        return self.order.index(axis)


_Value = _Tensor | np.ndarray  # an array is a constant
Attributes = Mapping[str, Any]


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
        operations = _Operations()
        values: dict[str, _Value] = {
            constant.name: numpy_helper.to_array(constant) for constant in graph.initializer
        }
        values[graph.input[0].name] = _Tensor(images, tuple(range(len(images.shape))))
        for node in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [values[name] for name in node.input]
            values[node.output[0]] = operations.apply(node.op_type, attributes, inputs)
        return operations.ordered(values[graph.output[0].name])

    return function


class _Operations:
    """One method for each operation of ONNX: its attributes, then its inputs."""

    def __init__(self) -> None:
        import tensorflow

        self._tf: Any = tensorflow

    def apply(self, operation: str, attributes: Attributes, inputs: Sequence[Any]) -> _Tensor:
        """The output of a node."""
        if operation in _ELEMENTWISE:
            return self._elementwise(_ELEMENTWISE[operation], inputs)
        method = getattr(self, f"_{operation}", None)
        if method is None:
            raise ExportError(f"TensorFlow: the operation {operation} has no translation")
        return method(attributes, *inputs)

    def ordered(self, tensor: Any, order: Sequence[int] | None = None) -> Any:
        """A tensor stored in an order, by default the graph's."""
        wanted = tuple(range(len(tensor.order)) if order is None else order)
        if wanted == tensor.order:
            return tensor.stored
        return self._tf.transpose(tensor.stored, [tensor.axis(axis) for axis in wanted])

    def _elementwise(self, name: str, inputs: Sequence[_Value]) -> _Tensor:
        """All inputs are brought to the order of the first that is no constant."""
        order = next(value.order for value in inputs if isinstance(value, _Tensor))

        def stored(value: _Value) -> Any:
            if isinstance(value, _Tensor):
                return self.ordered(value, order)
            return value.reshape(()) if value.size == 1 else np.transpose(value, order)

        return _Tensor(attrgetter(name)(self._tf)(*map(stored, inputs)), order)

    def _Add(self, attributes: Attributes, left: _Value, right: _Value) -> _Tensor:
        # LiteRT's int8 models add tensors in int8, but subtract in float32. A constant is added
        # where they must be exact, as to a divisor.
        if isinstance(right, np.ndarray):
            return self._elementwise("subtract", [left, -right])
        if isinstance(left, np.ndarray):
            return self._elementwise("subtract", [right, -left])
        return self._elementwise("add", [left, right])

    def _padded(self, tensor: _Tensor, attributes: Attributes, mode: str) -> Any:
        """With channels last, and rows and columns added as the attribute ``pads`` says."""
        images = self.ordered(tensor, CHANNELS_LAST)
        top, left, bottom, right = attributes.get("pads", NO_PADS)
        if not any((top, left, bottom, right)):
            return images
        return self._tf.pad(images, [(0, 0), (top, bottom), (left, right), (0, 0)], mode)

    def _Erf(self, attributes: Attributes, tensor: _Tensor) -> _Tensor:
        """To 1.5e-7, since LiteRT has no such operation.

        Reference: M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", 7.1.26.
        """
        size = self._tf.abs(tensor.stored)
        t = 1 / (1 + 0.3275911 * size)
        series: Any = 0.0
        for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series = t * (factor + series)
        rest = series * self._tf.exp(-size * size)
        return _Tensor(self._tf.sign(tensor.stored) * (1 - rest), tensor.order)

    def _Identity(self, attributes: Attributes, tensor: _Tensor) -> _Tensor:
        return tensor

    def _Cast(self, attributes: Attributes, tensor: _Tensor) -> _Tensor:
        dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
        return _Tensor(self._tf.cast(tensor.stored, dtype), tensor.order)

    def _Transpose(self, attributes: Attributes, tensor: _Tensor) -> _Tensor:
        moves = list(attributes["perm"])
        return _Tensor(tensor.stored, tuple(moves.index(axis) for axis in tensor.order))

    def _Reshape(self, attributes: Attributes, tensor: _Tensor, lengths: np.ndarray) -> _Tensor:
        # 0 keeps the batch, which is the only length that is not known.
        shape = [int(length) or -1 for length in lengths]
        return _Tensor(self._tf.reshape(self.ordered(tensor), shape), tuple(range(len(shape))))

    def _Unsqueeze(self, attributes: Attributes, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
        lengths = iter(self.ordered(tensor).shape)
        rank = len(tensor.order) + len(axes)
        shape = [1 if axis in axes else next(lengths) or -1 for axis in range(rank)]
        return _Tensor(self._tf.reshape(self.ordered(tensor), shape), tuple(range(rank)))

    def _Tile(self, attributes: Attributes, tensor: _Tensor, times: np.ndarray) -> _Tensor:
        return _Tensor(self._tf.tile(tensor.stored, times[list(tensor.order)]), tensor.order)

    def _Conv(
        self,
        attributes: Attributes,
        images: _Tensor,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
    ) -> _Tensor:
        outputs = self._tf.nn.conv2d(
            self._padded(images, attributes, "CONSTANT"),
            np.transpose(kernel, (2, 3, 1, 0)),  # fewer input channels than the images: grouped
            strides=attributes["strides"],
            padding="VALID",
            dilations=attributes.get("dilations"),
        )
        if bias is not None:
            outputs = self._tf.nn.bias_add(outputs, bias)
        return _Tensor(outputs, CHANNELS_LAST)

    def _MaxPool(self, attributes: Attributes, images: _Tensor) -> _Tensor:
        # A reflected pixel is in the window already, so it does not change the maximum. With -inf
        # an int8 tensor would have an infinite range.
        window, pads = attributes["kernel_shape"], attributes["pads"]
        if any(2 * pad > length for pad, length in zip(pads, [*window, *window], strict=True)):
            raise ExportError("TensorFlow: a max-pool padded by more than half its window")
        pooled = self._tf.nn.max_pool2d(
            self._padded(images, attributes, "SYMMETRIC"), window, attributes["strides"], "VALID"
        )
        return _Tensor(pooled, CHANNELS_LAST)

    def _Gemm(
        self, attributes: Attributes, rows: _Tensor, matrix: np.ndarray, bias: np.ndarray
    ) -> _Tensor:
        product = self._tf.linalg.matmul(
            self.ordered(rows), matrix, transpose_b=bool(attributes["transB"])
        )
        return _Tensor(product + bias, (0, 1))

    def _MatMul(self, attributes: Attributes, left: _Tensor, right: _Value) -> _Tensor:
        factor = self.ordered(right) if isinstance(right, _Tensor) else right
        product = self._tf.linalg.matmul(self.ordered(left), factor)
        return _Tensor(product, tuple(range(len(left.order))))

    def _Pad(
        self, attributes: Attributes, tensor: _Tensor, pads: np.ndarray, filling: np.ndarray
    ) -> _Tensor:
        before, after = pads.reshape(2, -1)[:, list(tensor.order)].tolist()
        around = list(zip(before, after, strict=True))
        padded = self._tf.pad(tensor.stored, around, constant_values=filling.item())
        return _Tensor(padded, tensor.order)

    def _reduce(self, name: str, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
        stored = [tensor.axis(axis) for axis in axes.tolist()]
        left = [axis for axis in tensor.order if axis not in axes]
        reduced = getattr(self._tf, name)(tensor.stored, axis=stored)
        return _Tensor(reduced, tuple(sorted(left).index(axis) for axis in left))

    def _ReduceSum(self, attributes: Attributes, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
        return self._reduce("reduce_sum", tensor, axes)

    def _ReduceMax(self, attributes: Attributes, tensor: _Tensor, axes: np.ndarray) -> _Tensor:
        return self._reduce("reduce_max", tensor, axes)

    def _Slice(
        self,
        attributes: Attributes,
        tensor: _Tensor,
        starts: np.ndarray,
        ends: np.ndarray,
        axes: np.ndarray,
        steps: np.ndarray,
    ) -> _Tensor:
        cuts = [slice(None)] * len(tensor.order)
        for start, end, axis, step in np.stack([starts, ends, axes, steps], 1).tolist():
            cuts[tensor.axis(axis)] = slice(start, end, step)
        return _Tensor(tensor.stored[tuple(cuts)], tensor.order)

    def _Concat(self, attributes: Attributes, *tensors: _Tensor) -> _Tensor:
        order = tensors[0].order
        joined = self._tf.concat(
            [self.ordered(tensor, order) for tensor in tensors], tensors[0].axis(attributes["axis"])
        )
        return _Tensor(joined, order)
