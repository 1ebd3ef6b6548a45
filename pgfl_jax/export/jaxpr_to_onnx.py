"""A function of JAX as an ONNX graph: a small converter over its jaxpr.

Three things make the graph as fast and as small as one written by hand:

- Tensors of rank 4 are stored with their channels second, whatever the function says. A transpose
  of the function is remembered, not computed; a node is made for it only where the order of the
  memory matters.
- A convolution or matrix product waits for what follows: scales and shifts of its channels, as by
  BatchNorm, go into its weights and bias. W' = s·W, b' = s·b + t.
- What depends on constants alone is computed once, here.

A matrix product over channels becomes a 1x1 convolution again, and takes in a slice that skips rows
and columns as its stride. A product over square patches becomes a convolution of their size and
stride. Both, and convolutions without padding, take scales and shifts of their input's channels
into their weights: W' = W·s, b' = b + W·t.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from pgfl_jax.export.waiting import (
    Affine,
    Constant,
    ExportError,
    Linear,
    Patches,
    Repeated,
    Shape,
    Skipping,
    Tensor,
    Value,
    broadcast,
    fold,
    repeated,
    taken_in,
    transposed,
    with_new_axes,
)

OPSET = 18
CHANNELS_SECOND = (0, 3, 1, 2)

_BINARY = {
    "add": ("Add", np.add),
    "sub": ("Sub", np.subtract),
    "mul": ("Mul", np.multiply),
    "div": ("Div", np.divide),
    "max": ("Max", np.maximum),
    "min": ("Min", np.minimum),
    "pow": ("Pow", np.power),
}
_UNARY = {
    "sqrt": "Sqrt", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid",
    "erf": "Erf", "neg": "Neg", "abs": "Abs",
}  # fmt: skip
_NOTHING = (
    "name",
    "optimization_barrier",
    "stop_gradient",
    "copy",
    "copy_p",
    "sharding_constraint",
)
_INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr",
}  # fmt: skip


def convert(
    function: Callable[[jax.Array], jax.Array],
    images: jax.ShapeDtypeStruct,
    *,
    input_name: str = "images",
    output_name: str = "embeddings",
) -> onnx.ModelProto:
    """The ONNX model of a function of one batch.

    Args:
        function: from (N, …) to (N, D), row by row; its parameters are constants in it.
        images: its argument; the size of the batch is a symbol of ``jax.export``.
        input_name: of the graph's input.
        output_name: of the graph's output.

    Raises:
        ExportError: the function has an operation that has no translation here.
    """
    closed = jax.make_jaxpr(function)(images)
    graph = _Graph()
    start = Tensor(input_name, tuple(images.shape), tuple(range(images.ndim)))
    if images.dtype == np.uint8 and images.ndim == 4:  # while a pixel is a byte
        start = graph.contiguous(start, CHANNELS_SECOND)
    (result,) = graph.run(closed.jaxpr, closed.consts, [start])
    last = graph.contiguous(graph.tensor(result))
    graph.nodes.append(helper.make_node("Identity", [last.name], [output_name]))
    inputs = [_info(input_name, images.dtype, images.shape)]
    outputs = [_info(output_name, np.dtype("float32"), last.shape)]
    made = helper.make_graph(graph.nodes, "embed", inputs, outputs, list(graph.constants.values()))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    return model


def _info(name: str, dtype: np.dtype, shape: Shape) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_tensor_value_info(name, kind, ["batch", *shape[1:]])


class _Graph:
    """The nodes and constants made so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[bytes, onnx.TensorProto] = {}
        self._names = (f"t{number}" for number in itertools.count())
        self._made: dict[int, tuple[Value, Tensor]] = {}  # nodes of what waited

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Translate a jaxpr; returns its results."""
        known: dict[Any, Value] = {}
        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            array = np.asarray(const)
            known[variable] = Constant(array, array.shape)
        equations = _needed(jaxpr)
        uses = collections.Counter(
            atom for equation in equations for atom in equation.invars if _is_variable(atom)
        )

        def keep(variables: Sequence[Any], values: Sequence[Value]) -> None:
            for variable, value in zip(variables, values, strict=True):
                # What waits becomes part of one reader. For several it is computed once.
                shared = isinstance(value, Linear) and uses[variable] > 1
                known[variable] = self.tensor(value) if shared else value

        keep(jaxpr.invars, arguments)

        def read(atom: Any) -> Value:
            if not _is_variable(atom):
                aval: Any = atom.aval
                array = np.asarray(atom.val, aval.dtype)
                return Constant(array, array.shape)
            return known[atom]

        for equation in equations:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            keep(equation.outvars, results)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in _INLINED:
            inner = params[_INLINED[name]]
            jaxpr = getattr(inner, "jaxpr", inner)
            return self.run(jaxpr, getattr(inner, "consts", ()), inputs)
        if name in _NOTHING:
            return inputs
        if name == "platform_index":  # the branch for platforms that none is named for
            return [Constant(np.asarray(params["platforms"].index(None)), ())]
        if name == "cond" and isinstance(inputs[0], Constant):
            branch = params["branches"][int(inputs[0].array)]
            return self.run(branch.jaxpr, branch.consts, inputs[1:])
        shape = tuple(equation.outvars[0].aval.shape)
        if all(isinstance(value, Constant) for value in inputs):
            return [self._compute(equation, inputs, shape)]
        if name in _BINARY:
            return [self._binary(name, inputs[0], inputs[1], shape)]
        if name in _UNARY:
            return [self._elementwise(_UNARY[name], inputs, shape)]
        translate = getattr(self, f"_{name}", None)
        if translate is None:
            raise ExportError(f"ONNX: the operation {name} has no translation (jaxpr_to_onnx.py)")
        return [translate(params, shape, *inputs)]

    def _compute(self, equation: Any, inputs: list[Any], shape: Shape) -> Constant:
        """What depends on constants alone."""
        name, params = equation.primitive.name, equation.params
        if name == "broadcast_in_dim":
            array, axes = inputs[0].array, params["broadcast_dimensions"]
            lengths = [1] * len(shape)
            for axis, length in zip(axes, array.shape, strict=True):
                lengths[axis] = length
            return Constant(array.reshape(lengths), shape)
        if name in _BINARY:
            array = _BINARY[name][1](*(value.array for value in inputs))
            return Constant(np.asarray(array, equation.outvars[0].aval.dtype), shape)
        whole = [value.whole for value in inputs]
        return Constant(np.asarray(equation.primitive.bind(*whole, **params)), shape)

    # What waits, and how it gets its node.

    def tensor(self, value: Value) -> Tensor:
        """The tensor of a value, with a node for it if it has none yet."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Constant):
            raise ExportError("ONNX: a result that does not depend on the images")
        if id(value) not in self._made:
            self._made[id(value)] = value, self._make(value)
        return self._made[id(value)][1]

    def _make(self, value: Repeated | Skipping | Affine | Patches | Linear) -> Tensor:
        if isinstance(value, Linear):
            return self._make_linear(value)
        if isinstance(value, Repeated):
            return self._make_repeated(value)
        if isinstance(value, Affine):
            return self._make_affine(value)
        return self._make_patches(value) if isinstance(value, Patches) else self._make_slice(value)

    def _make_repeated(self, value: Repeated) -> Tensor:
        if not all(isinstance(number, int) for number in value.times):
            raise ExportError("ONNX: a result that is repeated for each picture")
        name = self._node("Tile", [value.tensor.name, self._integers(value.times)])
        return Tensor(name, value.shape, value.tensor.order)

    def _make_affine(self, affine: Affine) -> Tensor:
        tensor, shape = affine.tensor, affine.shape
        for operation, values, nothing in (("Mul", affine.scale, 1), ("Add", affine.shift, 0)):
            if (values != nothing).any():
                each = values.astype(np.float32).reshape((1,) * (len(shape) - 1) + (-1,))
                given: list[Value] = [tensor, Constant(each, shape)]
                tensor = self.tensor(self._elementwise(operation, given, shape))
        return tensor

    def _make_patches(self, patches: Patches) -> Tensor:
        batch, height, width, channels = patches.pictures.shape
        size, shape = patches.size, patches.shape
        split = batch, height // size, size, width // size, size, channels
        tensor = self._regroup(self.tensor(patches.pictures), split)
        if patches.moved:
            tensor = transposed(tensor, (0, 1, 3, 2, 4, 5))
        return tensor if len(shape) == 6 else self._regroup(tensor, shape)

    def _make_linear(self, linear: Linear) -> Tensor:
        if len(linear.shape) == 3:
            return self._make_product(linear)
        weights = self._constant(linear.weights.astype(np.float32))
        inputs = [linear.tensor.name, weights]
        if linear.bias.any() or linear.weights.ndim == 2:
            inputs.append(self._constant(linear.bias.astype(np.float32)))
        operation = "Conv" if linear.weights.ndim == 4 else "Gemm"
        name = self._node(operation, inputs, **linear.attributes)
        return Tensor(name, linear.shape, linear.order)

    def _make_product(self, linear: Linear) -> Tensor:
        """The same for each token: Gemm takes matrices alone."""
        weights = self._constant(linear.weights.T.astype(np.float32))
        name = self._node("MatMul", [linear.tensor.name, weights])
        if linear.bias.any():
            bias = linear.bias.astype(np.float32).reshape(1, 1, -1)
            name = self._node("Add", [name, self._constant(bias)])
        return Tensor(name, linear.shape, linear.order)

    def _make_slice(self, skipping: Skipping) -> Tensor:
        lengths, steps = skipping.tensor.shape, (1, *skipping.steps, 1)
        return self._cut(skipping.tensor, [1, 2], (0, 0, 0, 0), lengths, steps, skipping.shape)

    def contiguous(self, tensor: Tensor, order: Sequence[int] | None = None) -> Tensor:
        """The tensor stored in an order, by default the function's."""
        order = tuple(range(len(tensor.shape)) if order is None else order)
        if tensor.order == order:
            return tensor
        lengths = tensor.shape
        if [a for a in tensor.order if lengths[a] != 1] == [a for a in order if lengths[a] != 1]:
            return self._reshaped(tensor, lengths, order)  # as means of channels
        moves = [tensor.stored(axis) for axis in order]
        return Tensor(self._node("Transpose", [tensor.name], perm=moves), tensor.shape, order)

    # Operations of the graph.

    def _node(self, operation: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = next(self._names)
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def _constant(self, array: np.ndarray) -> str:
        array = np.ascontiguousarray(array)
        key = array.dtype.str.encode() + str(array.shape).encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return self.constants[key].name

    def _integers(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.int64))

    def _binary(self, name: str, left: Value, right: Value, shape: Shape) -> Value:
        for value, other, swapped in ((left, right, False), (right, left, True)):
            if isinstance(other, Constant) and other.array.dtype.kind == "f":
                folded = fold(name, value, other, swapped=swapped)
                if folded is not None:
                    return folded
        if name == "max" and isinstance(right, Constant) and not right.array.any():
            return self._elementwise("Relu", [left], shape)
        if name == "max" and isinstance(left, Constant) and np.isneginf(left.array).all():
            return right  # a maximum of nothing, as softmax guards against
        return self._elementwise(_BINARY[name][0], [left, right], shape)

    def _elementwise(
        self, operation: str, values: Sequence[Value], shape: Shape, **attributes: Any
    ) -> Tensor | Repeated:
        """A node whose inputs are stored alike and broadcast against each other."""
        inputs = [value.array if isinstance(value, Constant) else self._once(value)
                  for value in values]  # fmt: skip
        lengths = broadcast([value.shape for value in inputs if value.shape])
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        order, names = tensors[0].order, []
        if len(lengths) == 4 and lengths[3] != 1 and all(x.shape[3] == 1 for x in tensors):
            order = CHANNELS_SECOND  # a scale of each channel times one of each cell
        for value in inputs:
            if isinstance(value, Tensor):
                names.append(self.contiguous(value, order).name)
            else:
                names.append(self._constant(np.transpose(value, order) if value.ndim else value))
        name = self._node(operation, names, **attributes)
        return repeated(Tensor(name, lengths, order), shape)

    def _once(self, value: Value) -> Tensor:
        """The tensor of a value, in which repeated axes may have length 1."""
        return value.tensor if isinstance(value, Repeated) else self.tensor(value)

    def _cut(
        self,
        tensor: Tensor,
        axes: Sequence[int],
        starts: Sequence[Any],
        ends: Sequence[Any],
        steps: Sequence[Any],
        shape: Shape,
    ) -> Tensor:
        """Slice along some axes; starts, ends and steps are those of all axes."""
        chosen = [[values[axis] for axis in axes] for values in (starts, ends)]
        stored = [tensor.stored(axis) for axis in axes]
        inputs = *chosen, stored, [steps[axis] for axis in axes]
        names = [tensor.name, *map(self._integers, inputs)]
        return Tensor(self._node("Slice", names), shape, tensor.order)

    # One method for each operation of JAX: parameters, shape of the result, inputs.

    def _conv_general_dilated(
        self, params: Mapping[str, Any], shape: Shape, images: Value, kernel: Value
    ) -> Value:
        numbers = params["dimension_numbers"]
        if not isinstance(kernel, Constant) or set(params["lhs_dilation"]) != {1}:
            raise ExportError("ONNX: only convolutions with constant kernels are translated")
        weights = np.transpose(kernel.whole, numbers.rhs_spec).astype(np.float64)
        bias = np.zeros(len(weights))
        # Padding adds zeros to what is shifted.
        plain = params["feature_group_count"] == 1 and not np.any(params["padding"])
        if isinstance(images, Affine) and plain and numbers.lhs_spec[1] == 3:
            images, weights, bias = taken_in(images, weights, bias)
        tensor = self.contiguous(self.tensor(images), numbers.lhs_spec)
        attributes = {
            "kernel_shape": weights.shape[2:],
            "strides": params["window_strides"],
            "pads": _pads(params["padding"]),
            "dilations": params["rhs_dilation"],
            "group": params["feature_group_count"],
        }
        return Linear(tensor, weights, bias, attributes, shape, tuple(numbers.out_spec))

    def _dot_general(
        self, params: Mapping[str, Any], shape: Shape, left: Value, right: Value
    ) -> Value:
        ((left_axes, right_axes), batch_axes) = params["dimension_numbers"]
        rank = len(left.shape)
        if not isinstance(right, Constant) and not isinstance(left, Constant):
            return self._product(params, shape, left, right)
        if not isinstance(right, Constant) or len(right.shape) != 2 or any(batch_axes):
            raise ExportError("ONNX: only products with a constant matrix are translated")
        if tuple(left_axes) != (rank - 1,) or rank not in (2, 3, 4):
            raise ExportError("ONNX: only products over the last axis are translated")
        weights = np.moveaxis(right.whole, right_axes[0], 1).astype(np.float64)
        bias = np.zeros(len(weights))
        if rank == 2:
            tensor = self.contiguous(self.tensor(left))
            return Linear(tensor, weights, bias, {"transB": 1}, shape, (0, 1))
        if rank == 3:
            tensor = self.contiguous(self.tensor(left))
            return Linear(tensor, weights, bias, {}, shape, (0, 1, 2))
        whole, size, steps, kernel = left, 1, (1, 1), weights[:, :, None, None]
        if isinstance(left, Skipping):
            whole, steps = left.tensor, left.steps
        elif isinstance(left, Patches):
            whole, size, steps = left.pictures, left.size, (left.size, left.size)
            kernel = weights.reshape(len(weights), size, size, -1).transpose(0, 3, 1, 2)
        if isinstance(whole, Affine):
            whole, kernel, bias = taken_in(whole, kernel, bias)
        tensor = self.contiguous(self.tensor(whole), CHANNELS_SECOND)
        attributes = {"kernel_shape": (size, size), "strides": steps}
        return Linear(tensor, kernel, bias, attributes, shape, CHANNELS_SECOND)

    def _product(
        self, params: Mapping[str, Any], shape: Shape, left: Value, right: Value
    ) -> Tensor:
        """A product of two activations, over one axis of each, for each of the common axes."""
        (summed, common), names = params["dimension_numbers"], []
        for value, axes, batch in zip((left, right), summed, common, strict=True):
            rest = [i for i in range(len(value.shape)) if i not in (*axes, *batch)]
            if len(rest) != 1 or len(axes) != 1:
                raise ExportError("ONNX: of activations, only matrices are multiplied")
            moves = [*batch, *rest, *axes] if value is left else [*batch, *axes, *rest]
            names.append(self.contiguous(transposed(self.tensor(value), moves)).name)
        return Tensor(self._node("MatMul", names), shape, tuple(range(len(shape))))

    def _slice(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        starts, ends = params["start_indices"], params["limit_indices"]
        steps = params["strides"] or (1,) * len(shape)
        tensor = self.tensor(operand)
        whole = not any(starts) and tuple(ends) == tuple(tensor.shape)
        if whole and len(shape) == 4 and steps[0] == steps[3] == 1:
            return Skipping(tensor, (steps[1], steps[2]), shape)
        cut = [
            a
            for a, b in enumerate(zip(starts, ends, steps, strict=True))
            if b != (0, tensor.shape[a], 1)
        ]
        return self._cut(tensor, cut, starts, ends, steps, shape)

    def _reshape(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        if isinstance(operand, Tensor | Affine) and len(operand.shape) == 4 and len(shape) == 6:
            _, height, width, channels = operand.shape
            size = shape[2]
            if shape[1:] == (height // size, size, width // size, size, channels):
                return Patches(operand, size, shape)
        if isinstance(operand, Patches) and operand.moved and shape[1:-1] == operand.shape[1:3]:
            return dataclasses.replace(operand, shape=shape)
        return self._regroup(self.tensor(operand), shape)

    def _regroup(self, tensor: Tensor, shape: Shape) -> Tensor:
        groups = _groups(tensor.shape, shape)
        if all(len(old) == 1 for old, _ in groups):  # axes are only split
            places = dict((old[0], new) for old, new in groups)
            order = tuple(axis for old in tensor.order for axis in places[old])
        elif all(len(new) == 1 for _, new in groups):  # axes are only joined
            joined = {new[0]: old for old, new in groups}
            plain = len(shape) != 4 or tensor.order[-1] in joined[3]  # as tokens are stored
            order = tuple(range(len(shape))) if plain else CHANNELS_SECOND
            tensor = self.contiguous(tensor, [axis for new in order for axis in joined[new]])
        else:
            tensor, order = self.contiguous(tensor), tuple(range(len(shape)))
        return self._reshaped(tensor, shape, order)

    def _reshaped(self, tensor: Tensor, shape: Shape, order: tuple[int, ...]) -> Tensor:
        """The same elements in the order of the memory, as a tensor of a shape and an order."""
        before = [tensor.shape[axis] for axis in tensor.order]
        lengths = _lengths(before, [shape[axis] for axis in order])
        name = self._node("Reshape", [tensor.name, self._integers(lengths)])
        return Tensor(name, shape, order)

    def _broadcast_in_dim(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        tensor, axes = self._once(operand), params["broadcast_dimensions"]
        order = with_new_axes(tensor.order, axes, len(shape))
        if len(shape) == 4 and len(axes) < 3:
            order = CHANNELS_SECOND
        name = self.contiguous(tensor, [axes.index(axis) for axis in order if axis in axes]).name
        if new := [place for place, axis in enumerate(order) if axis not in axes]:
            name = self._node("Unsqueeze", [name, self._integers(new)])
        lengths = dict(zip(axes, tensor.shape, strict=True))
        once = tuple(lengths.get(axis, 1) for axis in range(len(shape)))
        return repeated(Tensor(name, once, order), shape)

    def _transpose(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        moves = tuple(params["permutation"])
        if isinstance(operand, Patches) and not operand.moved and moves == (0, 1, 3, 2, 4, 5):
            return dataclasses.replace(operand, shape=shape, moved=True)
        return repeated(transposed(self._once(operand), moves), shape)

    def _reduce(self, operation: str, axes: Sequence[int], shape: Shape, operand: Value) -> Tensor:
        tensor = self.tensor(operand)
        stored = sorted(tensor.stored(axis) for axis in axes)
        name = self._node(operation, [tensor.name, self._integers(stored)], keepdims=0)
        left = [axis for axis in tensor.order if axis not in axes]
        return Tensor(name, shape, tuple(sorted(left).index(axis) for axis in left))

    def _reduce_sum(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Tensor:
        return self._reduce("ReduceSum", params["axes"], shape, operand)

    def _reduce_max(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Tensor:
        return self._reduce("ReduceMax", params["axes"], shape, operand)

    def _reduce_window_max(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Tensor:
        window, strides, padding = (
            params[name] for name in ("window_dimensions", "window_strides", "padding")
        )
        pooled = [axis for axis, length in enumerate(window) if length > 1]
        if pooled != [1, 2]:
            raise ExportError("ONNX: only pooling over height and width is translated")
        tensor = self.contiguous(self.tensor(operand), CHANNELS_SECOND)
        name = self._node(
            "MaxPool",
            [tensor.name],
            kernel_shape=window[1:3],
            strides=strides[1:3],
            pads=_pads(padding[1:3]),
        )
        return Tensor(name, shape, CHANNELS_SECOND)

    def _convert_element_type(
        self, params: Mapping[str, Any], shape: Shape, operand: Value
    ) -> Value:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
        return self._elementwise("Cast", [operand], shape, to=kind)

    def _pad(
        self, params: Mapping[str, Any], shape: Shape, operand: Value, filling: Value
    ) -> Tensor:
        tensor, padding = self.tensor(operand), params["padding_config"]
        if not isinstance(filling, Constant) or any(inner or low < 0 or high < 0
                                                    for low, high, inner in padding):  # fmt: skip
            raise ExportError("ONNX: only padding around a tensor by a constant is translated")
        pads = _pads([(int(padding[axis][0]), int(padding[axis][1])) for axis in tensor.order])
        names = tensor.name, self._integers(pads), self._constant(filling.whole)
        return Tensor(self._node("Pad", names), shape, tensor.order)

    def _erfc(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        one = Constant(np.ones((), np.float32), ())
        return self._binary("sub", one, self._elementwise("Erf", [operand], shape), shape)

    def _rsqrt(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        return self._elementwise("Reciprocal", [self._elementwise("Sqrt", [operand], shape)], shape)

    def _square(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        return self._elementwise("Mul", [operand, operand], shape)

    def _integer_pow(self, params: Mapping[str, Any], shape: Shape, operand: Value) -> Value:
        if params["y"] == 2:
            return self._square(params, shape, operand)
        exponent = np.float32(params["y"])
        return self._elementwise("Pow", [operand, Constant(np.asarray(exponent), ())], shape)

    def _concatenate(self, params: Mapping[str, Any], shape: Shape, *operands: Value) -> Tensor:
        first, *others = (self.tensor(operand) for operand in operands)
        tensors = [first, *(self.contiguous(tensor, first.order) for tensor in others)]
        axis = first.stored(int(params["dimension"]))
        name = self._node("Concat", [tensor.name for tensor in tensors], axis=axis)
        return Tensor(name, shape, first.order)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """JAX's (before, after) per axis as ONNX's: all that come before, then all that come after."""
    before, after = zip(*padding, strict=True)
    return [*before, *after]


def _lengths(before: Sequence[Any], after: Sequence[Any]) -> list[int]:
    """For Reshape: 0 keeps the batch where it is, and -1 is computed from all others."""
    return [
        length if isinstance(length, int) else 0 if old == length else -1
        for old, length in itertools.zip_longest(before[: len(after)], after)
    ]


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which a jaxpr's results depend."""
    wanted = set(filter(_is_variable, jaxpr.outvars))
    equations = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted |= set(filter(_is_variable, equation.invars))
            equations.append(equation)
    return equations[::-1]


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of old axes and of the new axes that hold the same elements, as short as possible.

    >>> _groups((5, 8, 3), (5, 2, 4, 3))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = ([i], [j]) if i < len(old) and j < len(new) else ([], [])
        if not a:  # axes of length 1 at the end
            groups[-1][0].extend(range(i, len(old)))
            groups[-1][1].extend(range(j, len(new)))
            break
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while not (left is right or left == right):
            if left < right:
                left, a, i = left * old[i], [*a, i], i + 1
            else:
                right, b, j = right * new[j], [*b, j], j + 1
        groups.append((a, b))
    return groups
