"""What an ONNX file holds, read without the package onnx, so that it can be checked anywhere."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FLOATS = (1, 10, 16)  # float32, float16, bfloat16 in TensorProto
_PRODUCTS = ("Conv", "Gemm", "MatMul")

Field = tuple[int, int | memoryview]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The size of a graph, counted alike in every format.

    What counts are convolutions and matrix products with weights, that is, with the same numbers
    for every picture. Elementwise products and sums do not count, nor does a product of two
    activations, which formats write in different ways.

    Attributes:
        inputs: names of what must be given to it, its parameters left out.
        kernels: numbers in the weights of its convolutions and products.
        others: all other float parameters and constants: biases, scales, statistics.
        multiply_adds: of its convolutions and products with weights, for one picture.
        operations: how many of each kind; empty where nobody asks.
    """

    inputs: tuple[str, ...]
    kernels: int
    others: int
    multiply_adds: int
    operations: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Any) -> "Graph":
        """The graph that ``dataclasses.asdict`` was written of.

        Raises:
            TypeError: it is something else.
        """
        fields = dict(content)
        return cls(**fields | {"inputs": tuple(fields.get("inputs", ()))})


def read_graph(path: Path) -> Graph:
    """The graph of a file whose tensors have shapes (``onnx.shape_inference``).

    Raises:
        ValueError: it is cut short, or not an ONNX file.
    """
    model = list(_fields(memoryview(path.read_bytes())))
    graph = _group(_message(_one(model, 7)))
    tensors = dict(map(_tensor, graph[5]))
    shapes = dict(map(_value_info, [*graph[11], *graph[12], *graph[13]]))
    nodes = [_node(node) for node in graph[1]]
    sources = {
        output: inputs[0]
        for kind, inputs, outputs in nodes
        for output in outputs
        if kind == "DequantizeLinear"
    }
    products = [
        (kind, inputs, outputs, stored)
        for kind, inputs, outputs in nodes
        if kind in _PRODUCTS and (stored := sources.get(inputs[1], inputs[1])) in tensors
    ]
    kernels = multiply_adds = 0
    for kind, _, outputs, stored in products:
        weights, result = tensors[stored][1], shapes[outputs[0]]
        kernels += math.prod(weights)
        times = result[2:] if kind == "Conv" else result[1:-1]
        multiply_adds += math.prod(weights) * math.prod(times)
    numbers = sum(math.prod(shape) for kind, shape in tensors.values() if kind in _FLOATS)
    weights_inside = sum(
        math.prod(tensors[inputs[1]][1])
        for _, inputs, _, stored in products
        if inputs[1] == stored and tensors[stored][0] in _FLOATS
    )
    given = tuple(name for name, _ in map(_value_info, graph[11]) if name not in tensors)
    operations = collections.Counter(kind for kind, _, _ in nodes)
    return Graph(given, kernels, numbers - weights_inside, multiply_adds, dict(operations))


def _node(message: memoryview) -> tuple[str, list[str], list[str]]:
    """Kind, inputs and outputs."""
    fields = _group(message)
    return _text(fields[4][0]), [*map(_text, fields[1])], [*map(_text, fields[2])]


def _tensor(message: memoryview) -> tuple[str, tuple[int, tuple[int, ...]]]:
    """Name, and type and shape."""
    name, kind, shape = "", 0, []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 1:
            shape += _packed(_message(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
    return name, (kind, tuple(shape))


def _value_info(message: memoryview) -> tuple[str, tuple[int, ...]]:
    """Name and shape; 0 for an axis without a fixed length."""
    fields = _group(message)
    tensor = list(_fields(_message(_one(list(_fields(fields[2][0])), 1))))
    shape = _group(_message(_one(tensor, 2))) if any(n == 2 for n, _ in tensor) else {1: []}
    lengths = [dict(_fields(axis)).get(1, 0) for axis in shape[1]]
    return _text(fields[1][0]), tuple(n if isinstance(n, int) else 0 for n in lengths)


def _group(message: memoryview) -> Mapping[int, list[memoryview]]:
    """The messages and texts of a message, by field."""
    fields: dict[int, list[memoryview]] = collections.defaultdict(list)
    for number, value in _fields(message):
        if not isinstance(value, int):
            fields[number].append(value)
    return fields


def _one(fields: list[Field], wanted: int) -> int | memoryview:
    for number, value in fields:
        if number == wanted:
            return value
    raise ValueError("not an ONNX file, or cut short")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("not an ONNX file")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _packed(message: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(message):
        number, place = _varint(message, place)
        numbers.append(number)
    return numbers


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of each field of a message of Protocol Buffers."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("not an ONNX file")
        if place + length > len(message):
            raise ValueError("cut short")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place after it."""
    number = shift = 0
    while place < len(message):
        byte, place = message[place], place + 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place
    raise ValueError("cut short")
