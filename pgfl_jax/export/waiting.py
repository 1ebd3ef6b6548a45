"""What the converter of a jaxpr knows of each value: a constant, a tensor, or what still waits.

A scale or shift of channels, a slice that skips rows, pixels in patches, a convolution, axes that
are repeated: none has a node of its own while it may still become part of another.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgfl_jax.errors import UserError

Shape = tuple[Any, ...]  # of ints; the first may be a symbol


class ExportError(UserError):
    """A function or checkpoint that cannot be exported; names the operation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array; axes of length 1 may stand for longer ones of ``shape``."""

    array: np.ndarray
    shape: Shape

    @property
    def whole(self) -> np.ndarray:
        """The array with all its axes of full length."""
        return np.broadcast_to(self.array, self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the graph.

    Attributes:
        name: in the graph.
        shape: as the function sees it.
        order: axis i of the stored tensor is axis order[i] of the function's.
    """

    name: str
    shape: Shape
    order: tuple[int, ...]

    def stored(self, axis: int) -> int:
        """Where an axis of the function is stored."""
        return self.order.index(axis)


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated:
    """A tensor whose axes of length 1 stand for longer ones of ``shape``.

    Elementwise operations take the tensor as it is, since ONNX broadcasts. What moves or sums
    elements needs all of them.
    """

    tensor: Tensor
    shape: Shape

    @property
    def times(self) -> list[Any]:
        """How often each stored axis of the tensor is repeated."""
        return [
            1 if self.tensor.shape[axis] == self.shape[axis] else self.shape[axis]
            for axis in self.tensor.order
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Skipping:
    """A tensor of which every ``steps``-th row and column is wanted."""

    tensor: Tensor
    steps: tuple[int, int]
    shape: Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """A tensor whose channels, its last axis, are to be scaled and then shifted."""

    tensor: Tensor
    scale: np.ndarray
    shift: np.ndarray

    @property
    def shape(self) -> Shape:
        """As the function sees it."""
        return self.tensor.shape

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.scale)

    def scaled(self, scale: np.ndarray) -> "Affine":
        """The same, with its channels multiplied."""
        return dataclasses.replace(self, scale=self.scale * scale, shift=self.shift * scale)

    def shifted(self, shift: np.ndarray) -> "Affine":
        """The same, with a value added to each of its channels."""
        return dataclasses.replace(self, shift=self.shift + shift)


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """Pictures in squares of ``size`` pixels.

    The shape is (N, h, size, w, size, C) after a first reshape, (N, h, w, size, size, C) after a
    transpose, and (N, h, w, size · size · C) after a second reshape.
    """

    pictures: Tensor | Affine
    size: int
    shape: Shape
    moved: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A convolution (weights O, I, h, w) or product (weights O, I) that has no node yet."""

    tensor: Tensor
    weights: np.ndarray
    bias: np.ndarray
    attributes: Mapping[str, Any]
    shape: Shape
    order: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many it has."""
        return len(self.bias)

    def scaled(self, scale: np.ndarray) -> "Linear":
        """The same, with its channels multiplied."""
        columns = scale.reshape(-1, *[1] * (self.weights.ndim - 1))
        weights, bias = self.weights * columns, self.bias * scale
        return dataclasses.replace(self, weights=weights, bias=bias)

    def shifted(self, shift: np.ndarray) -> "Linear":
        """The same, with a value added to each of its channels."""
        return dataclasses.replace(self, bias=self.bias + shift)


Value = Constant | Tensor | Repeated | Skipping | Affine | Patches | Linear


def repeated(tensor: Tensor, shape: Shape) -> Tensor | Repeated:
    """The tensor as one of a shape, of which it may have axes of length 1 only."""
    return tensor if tensor.shape == shape else Repeated(tensor, shape)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape of an elementwise operation's result, of inputs of one rank."""
    return tuple(next((n for n in lengths if n != 1), 1) for lengths in zip(*shapes, strict=True))


def with_new_axes(order: Sequence[int], axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """A storage order with new axes, each of which is stored right after the axis before it.

    Args:
        order: of the old axes.
        axes: the number that each old axis gets.
        rank: of the result.

    >>> with_new_axes((0, 3, 1, 2), (0, 1, 2, 3), 5)  # channels are still together
    (0, 3, 4, 1, 2)
    """
    result = [axes[axis] for axis in order]
    for axis in range(rank):
        if axis not in result:
            result.insert(result.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(result)


def fold(name: str, value: Value, constant: Constant, *, swapped: bool) -> Affine | Linear | None:
    """A scale or shift of the channels, where it can wait; None if it is something else."""
    if isinstance(value, Tensor) and len(value.shape) == 4:
        channels = value.shape[-1]
        value = Affine(value, np.ones(channels), np.zeros(channels))
    if not isinstance(value, Affine | Linear):
        return None
    array = constant.array.astype(np.float64)
    if array.size not in (1, value.channels) or array.shape[:-1] != (1,) * (array.ndim - 1):
        return None
    values = np.broadcast_to(array.reshape(-1), (value.channels,))
    if name == "mul":
        return value.scaled(values)
    if name == "add":
        return value.shifted(values)
    if name == "div" and not swapped:
        return value.scaled(1 / values)
    if name == "sub" and swapped:
        return value.scaled(-np.ones_like(values)).shifted(values)
    return value.shifted(-values) if name == "sub" else None


def taken_in(
    affine: Affine, weights: np.ndarray, bias: np.ndarray
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The tensor, and the weights (O, I, h, w) and bias that scale and shift its channels, too."""
    shift = np.einsum("oihw,i->o", weights, affine.shift)
    return affine.tensor, weights * affine.scale[:, None, None], bias + shift


def transposed(tensor: Tensor, moves: Sequence[int]) -> Tensor:
    """The tensor with its axes in another order, which costs nothing."""
    shape = tuple(tensor.shape[axis] for axis in moves)
    return Tensor(tensor.name, shape, tuple(list(moves).index(axis) for axis in tensor.order))
