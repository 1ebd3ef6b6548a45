"""Reads a compiled program's text: what one device computes, moves and sends in one run.

XLA's own cost analysis counts the body of a loop once and ignores collectives. Here every iteration
of a loop counts. Sizes are those of the arrays' elements, without the padding of their layouts.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# These only name or reshape arrays, or call computations that are counted on their own.
MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
                 "conditional", "after-all", "partition-id", "replica-id", "iota"}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\d+m\d+\w*)?\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%\S+))")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression, searched in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, as seen by one device.

    Attributes:
        kind: one of :data:`COLLECTIVES`.
        bytes: size of the result on one device.
        group: number of devices that take part together.
        times: how often it runs.
    """

    kind: str
    bytes: int
    group: int
    times: int = 1

    @property
    def sent_bytes(self) -> float:
        """What a device must send each time, in a ring; no algorithm needs less.

        >>> Collective("all-reduce", bytes=800, group=4).sent_bytes
        1200.0
        """
        others = self.group - 1
        share = {
            "all-reduce": 2 * others / self.group,
            "all-gather": others / self.group,
            "reduce-scatter": others,
            "all-to-all": others / self.group,
        }
        return self.bytes * share.get(self.kind, 1.0)


class Program:
    """A compiled module.

    Attributes:
        computations: the instructions of each, by name.
        unknown_loops: number of loops whose length the text does not give; they count once.
    """

    def __init__(self, text: str) -> None:
        """Parse ``compiled.as_text()``."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.unknown_loops = 0
        found = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self._partitions = int(found[1]) if found else 1
        entry = body = None
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                body = self.computations[header[2]] = {}
                entry = header[2] if header[1] else entry
            elif body is not None and (start := _INSTRUCTION.match(line)):
                body[start[2]] = _parse(line, start)
        if entry is None:
            raise ValueError("no ENTRY computation: this is not the text of a compiled program")
        # How often each computation runs, and how often outside of fusions.
        self._runs: Counter[str] = Counter()
        self._scheduled: Counter[str] = Counter()
        self._visit(entry, 1, fused=False)

    def _visit(self, name: str, times: int, *, fused: bool) -> None:
        self._runs[name] += times
        if not fused:
            self._scheduled[name] += times
        for instruction in self.computations[name].values():
            turns = self._turns(instruction) if instruction.opcode == "while" else 1
            for called in _called(instruction):
                inside = fused or instruction.opcode == "fusion"
                self._visit(called, times * turns, fused=inside)

    def _turns(self, loop: Instruction) -> int:
        """A loop's known count, or the N of its condition ``i < N``, as JAX's loops start at 0."""
        known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)") or ""]
        root = next(each for each in condition.values() if each.is_root)
        if root.opcode == "compare" and root.attribute(r"direction=(\w+)") == "LT":
            bound = condition[root.operands[1]]
            if bound.opcode == "constant":
                return int(bound.arguments)
        self.unknown_loops += 1
        return 1

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """Every collective, with how often it runs.

        The TPU compiler repeats an asynchronous collective in every fusion that overlaps with it.
        Those that share a channel count as one.
        """
        found: dict[tuple[str, str], Collective] = {}
        for name, times in self._runs.items():
            for instruction in self.computations[name].values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = instruction.attribute(r"channel_id=(\d+)") or f"{name}/{instruction.name}"
                size = array_bytes(_result(instruction))
                group = _group_size(instruction.attributes, self._partitions)
                found.setdefault((kind, channel), Collective(kind, size, group, times))
        return list(found.values())

    @functools.cached_property
    def matrix_flops(self) -> int:
        """Operations of convolutions and matrix products; a multiply-add counts as two."""
        total = 0
        for name, times in self._runs.items():
            body = self.computations[name]
            for instruction in body.values():
                if count := _counter(instruction):
                    shapes = [dimensions(body[operand].shape) for operand in instruction.operands]
                    total += times * count(instruction, shapes)
        return total

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Bytes read from and written to the device's main memory.

        Counts the whole operands and results of every scheduled operation. Intermediate results of
        a fusion never leave the chip, nor do arrays in another memory space (``S(1)``, a TPU's
        vector memory). The workspace that a library asks for does not count.
        """
        total = 0
        for name, times in self._scheduled.items():
            body = self.computations[name]
            total += times * sum(_moved(instruction, body) for instruction in body.values())
        return total


def _parse(line: str, start: re.Match) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", line[start.end() :])
    end = _closing(rest, 0) if rest[0] == "(" else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing - 1]
    return Instruction(
        name=start[2],
        shape=rest[:end],
        opcode=rest[end:opening].strip(),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=rest[closing:],
        is_root=bool(start[1]),
    )


def _closing(text: str, opening: int) -> int:
    """The index after the parenthesis that closes the one at ``opening``."""
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"unbalanced parentheses: {text}")


def _called(instruction: Instruction) -> Iterator[str]:
    """The computations that an instruction runs, except a reduction's scalar function."""
    for role, name in _CALLED.findall(instruction.attributes):
        if role != "to_apply" or instruction.opcode == "call":
            yield name
    for several, one in _BRANCHES.findall(instruction.attributes):
        yield from re.findall(r"%?([\w.\-]+)", several or one)


def array_bytes(shape: str, *, space: int | None = None) -> int:
    """Bytes of the elements of an array or tuple; with ``space``, only those in that memory space.

    >>> shape = "(f32[16,4]{1,0:S(1)}, pred[5])"
    >>> array_bytes(shape), array_bytes(shape, space=0)
    (261, 5)
    """
    total = 0
    for kind, bits, dims, layout in _ARRAY.findall(shape):
        located = re.search(r"S\((\d+)\)", layout)
        if space is None or (int(located[1]) if located else 0) == space:
            # pred takes a whole byte; token and opaque take none.
            width = 8 if kind == "pred" else int(bits or 0)
            total += -(-width * math.prod(_integers(dims)) // 8)
    return total


def dimensions(shape: str) -> list[int]:
    """The dimensions of the only array in ``shape``."""
    ((_, _, dims, _),) = _ARRAY.findall(shape)
    return _integers(dims)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _elements(shape: str) -> list[str]:
    """The parts of a tuple's shape; for an array, its shape."""
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _result(instruction: Instruction) -> str:
    """The shape of the result, without the operands that an asynchronous start also holds."""
    parts = _elements(instruction.shape)
    if not instruction.opcode.endswith("-start"):
        return instruction.shape
    if instruction.opcode == "all-reduce-start" and not parts[0].startswith("("):
        return instruction.shape
    return parts[1]


def _without_workspace(instruction: Instruction) -> str:
    """The shape of the result; a library's workspace is the last element of its tuple."""
    parts = _elements(instruction.shape)
    return ", ".join(parts[:-1]) if _library(instruction) and len(parts) > 1 else instruction.shape


def _group_size(attributes: str, partitions: int) -> int:
    """The number of devices in a replica group, in any of the printed forms."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        chosen = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in chosen)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(_integers(found[1]))
    if found := re.search(r"replica_groups=(?!\{\}).{,80}", attributes):
        raise ValueError(f"replica groups in an unknown form: {found[0]}")
    return partitions


def _library(instruction: Instruction) -> str:
    """What NVIDIA's library computes: ``cublas…`` or ``cudnn…``; "" for anything else."""
    return instruction.attribute(r'custom_call_target="__(cu(?:blas|dnn)[^"]*)"') or ""


def _counter(instruction: Instruction) -> Callable[[Instruction, list[list[int]]], int] | None:
    """What counts the operations of a convolution or a product; None for anything else."""
    if instruction.opcode == "dot" or _library(instruction).startswith("cublas"):
        return _dot_flops
    if instruction.opcode == "convolution" or _library(instruction).startswith("cudnn$conv"):
        return _convolution_flops
    return None


def _dot_flops(dot: Instruction, shapes: list[list[int]]) -> int:
    contracted = dot.attribute(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)') or ""
    depth = math.prod(shapes[0][axis] for axis in _integers(contracted))
    return 2 * math.prod(dimensions(_without_workspace(dot))) * depth


def _convolution_flops(convolution: Instruction, shapes: list[list[int]]) -> int:
    """Without the products with padding and with the zeros of a dilation."""
    labels = convolution.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)") or ""
    left, right, out = re.split(r"_|->", labels)
    image, kernel = shapes[:2]
    result = dimensions(_without_workspace(convolution))
    # cuDNN's gradients describe the convolution itself, of which they give another part.
    if _library(convolution) == "cudnn$convBackwardInput":
        image, result = result, image
    elif _library(convolution) == "cudnn$convBackwardFilter":
        kernel, result = result, kernel
    window = convolution.attribute(r"window=\{([^}]*)\}") or ""
    options = dict(re.findall(r"(\w+)=(\S+)", window))
    flops = 2 * result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]
    for axis, size in enumerate(options.get("size", "").split("x") if "size" in options else []):
        flops *= _products(
            taps=int(size),
            inputs=image[left.index(str(axis))],
            outputs=result[out.index(str(axis))],
            stride=_window(options, "stride", axis),
            padding=_window(options, "pad", axis, "0_0"),
            input_dilation=_window(options, "lhs_dilate", axis),
            tap_dilation=_window(options, "rhs_dilate", axis),
        )
    return flops


def _window(options: dict[str, str], name: str, axis: int, default: str = "1") -> int:
    value = options[name].split("x")[axis] if name in options else default
    return int(value.split("_")[0])


def _products(
    *,
    taps: int,
    inputs: int,
    outputs: int,
    stride: int,
    padding: int,
    input_dilation: int,
    tap_dilation: int,
) -> int:
    """Along one axis, the pairs of an output and a kernel tap that use a real input element."""
    last = (inputs - 1) * input_dilation
    count = 0
    for tap in range(taps):
        offset = tap * tap_dilation - padding
        positions = range(offset, offset + outputs * stride, stride)
        count += sum(0 <= at <= last and at % input_dilation == 0 for at in positions)
    return count


def _moved(instruction: Instruction, body: dict[str, Instruction]) -> int:
    """The bytes that an instruction reads from and writes to memory space 0."""
    opcode = instruction.opcode
    if opcode in MOVES_NOTHING or opcode.endswith(("-done", "-update")):
        return 0
    if instruction.attribute(r'custom_call_target="(AllocateBuffer)"'):
        return 0
    if opcode.endswith("-start"):  # its result also holds the operand
        parts = _elements(instruction.shape)
        target = parts[0] if opcode == "copy-start" else _result(instruction)
        source = body[instruction.operands[0]].shape
        size = array_bytes(target)
        # A slice reads only as much as it writes.
        return (array_bytes(target, space=0) > 0) * size + (array_bytes(source, space=0) > 0) * size
    shapes = [body[operand].shape for operand in instruction.operands]
    result = _without_workspace(instruction)
    return sum(array_bytes(shape, space=0) for shape in [*shapes, result])
