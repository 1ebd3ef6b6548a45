"""The cells of the study: what each changes in a configuration, and the grids that they form."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to train.

    Attributes:
        about: what it shows, in a few words.
        changes: options by their dotted names, and the values that they get.
        base: the file of ``configs/`` that is changed.
    """

    about: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str = "synthetic_demo"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells that are compared.

    Attributes:
        cells: their names; the others are compared with the first.
        datasets: what is scored, as ``eval.datasets``; the choices are made on people who are
            neither in the training split nor in the test split.
        seeds: how many, unless the command says otherwise.
    """

    cells: tuple[str, ...]
    datasets: tuple[str, ...] = ("synthetic_occluded_reid/demo_validation",)
    seeds: int = 1


ALONE = {"model.pose_branches": False}
PARTS = {"model.pooling": "parts", "loss.teachers": "parts", "loss.feature_kd": 6.0}

CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        "tiny": Cell("the tiny configuration", base="synthetic_tiny"),
        "tiny_alone": Cell("the same without poses", ALONE, base="synthetic_tiny"),
    }
)

GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "smoke": Grid(("tiny_alone", "tiny"), datasets=("synthetic_occluded_reid/tiny",)),
    }
)
