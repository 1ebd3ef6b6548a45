"""What a table says of a kind of trunk."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from pgfl_jax.errors import UserError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
StateDict = dict[str, np.ndarray]


class PretrainedError(UserError):
    """The weights cannot be used; the message names the file and the problem."""


MapShape = tuple[int, int] | None
Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How pictures in [0, 1] were normalised when the weights were trained: (x - mean) / std.

    Attributes:
        source: where that is known from, for messages.
        mean: of red, green and blue.
        std: likewise.
    """

    source: str
    mean: Colour
    std: Colour

    def mismatch(self, mean: Colour, std: Colour) -> str:
        """What to say if pictures are normalised by other values, to 0.01; else empty.

        >>> Normalisation("as CLIP's are", (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)).mismatch(
        ...     (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
        ... )
        ''
        """
        if np.allclose((self.mean, self.std), (mean, std), rtol=0, atol=0.01):
            return ""
        return (
            f"trained on pictures normalised by mean {_rounded(self.mean)} and std "
            f"{_rounded(self.std)}, {self.source}; this run has config.data.mean = "
            f"{_rounded(mean)} and config.data.std = {_rounded(std)}"
        )


def _rounded(values: Colour) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def as_it_is(
    arrays: StateDict, wanted: Shapes, map_shape: MapShape, source: str
) -> tuple[StateDict, str]:
    """A table's ``arrange`` for files that have our shapes."""
    del wanted, map_shape, source
    return arrays, ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A kind of trunk in files of PyTorch.

    Attributes:
        kind: its name in messages.
        first: the name of an array in the first block, without the trunk's prefix.
        stem: the name of an array that every whole trunk has.
        layer: matches our names of the arrays that make up a trunk. A file with one that ours lacks
            computes other features.
        describe: the architecture, from our names and shapes, as far as they reveal it.
        linear: matches our names of kernels that are dense layers in PyTorch; the others are
            convolutions.
        patches: side of the patches that a matrix product embeds, by our name of its kernel.
        spellings: other names of the same arrays. For each naming scheme, the name by which it is
            recognised and its replacements, in order; a prefix of the trunk precedes both.
        teacher: matches the prefix of the trunk to take, where a file has it beside a student.
        needs_stem: whether blocks without the stem are another kind of network.
        arrange: brings the trunk's arrays, by our names, to the network's shapes, and says in a few
            words what it changed.
        normalised: how pictures were normalised, by a pattern that the name of an array in the file
            matches in the files of one project alone, if all its published weights agree.
    """

    kind: str
    first: str
    stem: str
    layer: re.Pattern[str]
    describe: Callable[[Shapes], str]
    linear: re.Pattern[str] = re.compile(r"(?!)")  # none
    patches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    spellings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    teacher: re.Pattern[str] | None = None
    needs_stem: bool = False
    arrange: Callable[[StateDict, Shapes, MapShape, str], tuple[StateDict, str]] = as_it_is
    normalised: Mapping[str, Normalisation] = dataclasses.field(default_factory=dict)
