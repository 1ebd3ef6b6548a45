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


ALONE = {"model.pose_branches": False, "model.pooling": "gap"}
MAPS_ALONE = {"model.pose_branches": False}
# The form that the abstract describes: the main branch pools by a plain mean.
PAPER = {"model.pooling": "context"}
BOTH = {"loss.teachers": "both", "loss.feature_kd": 6.0}
TEACHERS = {"eval.embeddings": ("main", "foreground", "parts")}
OCCLUDERS = {"data.augment.erasing_fill": "image"}
LONGER = {"train.epochs": 48.0}


def _control(source: str) -> dict[str, Any]:
    return {"data.pose.source": source}


CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        "full": Cell("the defaults: predicted part maps, taught by the parts branch", TEACHERS),
        "paper": Cell("pooling by a plain mean of features with context", PAPER | TEACHERS),
        "paper_both": Cell("the same, taught by both branches", PAPER | BOTH | TEACHERS),
        "paper_gap": Cell("a plain mean of the trunk's features", {"model.pooling": "gap"}),
        "alone": Cell("the main branch alone, without poses", ALONE),
        "alone_longer": Cell("the same, twice as long", ALONE | LONGER),
        "alone_occluders": Cell("the same, obstacles pasted", ALONE | OCCLUDERS),
        "alone_occluders_longer": Cell(
            "obstacles pasted, twice as long", ALONE | OCCLUDERS | LONGER
        ),
        "alone_slower": Cell("half the learning rate", ALONE | {"optim.learning_rate": 1.5e-3}),
        "alone_slowest": Cell("a third of it", ALONE | {"optim.learning_rate": 1e-3}),
        "alone_faster": Cell(
            "two thirds more of the learning rate", ALONE | {"optim.learning_rate": 5e-3}
        ),
        "alone_context": Cell("the main branch alone, with context", ALONE | PAPER),
        "alone_attention": Cell(
            "the main branch alone, pooling by maps without a teacher",
            MAPS_ALONE,
        ),
        "alone_attention_longer": Cell("the same, twice as long", MAPS_ALONE | LONGER),
        "everywhere": Cell("control: all maps are 1", _control("everywhere")),
        "average": Cell("control: the average pose for all", _control("average")),
        "shuffled": Cell("control: poses of other images", _control("shuffled")),
        "redrawn": Cell("control: poses of other images, others each epoch", _control("redrawn")),
        "same_person": Cell(
            "control: poses of other images of the person", _control("same_person")
        ),
        "both": Cell("taught by both branches", BOTH),
        "foreground_map": Cell(
            "one predicted map, the foreground's", {"model.pooling": "foreground"}
        ),
        "no_distillation": Cell("predicted maps alone", {"loss.feature_kd": 0.0}),
        "no_maps": Cell("maps that nobody supervises", {"loss.maps": 0.0}),
        "no_alignment": Cell("without foreground alignment", {"loss.alignment": 0.0}),
        "no_semantic": Cell("without the channel-group loss", {"loss.semantic": 0.0}),
        "occluders": Cell("obstacles pasted", OCCLUDERS),
        "logits": Cell("logits distilled, too", {"loss.logit_kd": 1.0}),
        "cross_classifier": Cell(
            "interaction: the teachers' classifiers classify the main branch",
            {"loss.interaction_variant": "cross_classifier", "loss.interaction": 1.0},
        ),
        "cross_triplet": Cell(
            "interaction: triplets across branches",
            {"loss.interaction_variant": "cross_triplet", "loss.interaction": 1.0},
        ),
        "shared_classifier": Cell(
            "interaction: one classifier", {"loss.interaction_variant": "shared_classifier"}
        ),
        "noisy": Cell(
            "an estimator's poses", {"data.dataset": "synthetic_occluded_reid/demo_noisy"}
        ),
        "tiny": Cell("the tiny configuration", base="synthetic_tiny"),
        "tiny_alone": Cell("the same without poses", ALONE, base="synthetic_tiny"),
    }
)

BASELINES = (
    *("alone", "alone_longer", "alone_occluders", "alone_occluders_longer"),
    *("alone_slower", "alone_slowest", "alone_faster", "alone_context"),
    *("alone_attention", "alone_attention_longer"),
)
TERMS = (
    *("both", "foreground_map", "no_distillation", "no_maps", "no_alignment", "no_semantic"),
    *("occluders", "logits", "cross_classifier", "cross_triplet", "shared_classifier"),
)
TEST = ("synthetic_occluded_reid/demo",)

GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "baselines": Grid(BASELINES, seeds=3),
        "terms": Grid(("full", *TERMS)),
        "forms": Grid(("paper", "paper_both", "paper_gap", "full"), seeds=3),
        "poses": Grid(("full", "noisy"), seeds=3),
        # Read once, when all choices are made. Of the baselines, the ones that are best on the
        # validation set, with a plain mean and with maps: both twice as long.
        "core": Grid(
            (
                *("full", "alone_longer", "alone_attention_longer"),
                *("shuffled", "everywhere", "average", "paper"),
            ),
            TEST,
            seeds=5,
        ),
        "controls": Grid(("full", "alone", "redrawn", "same_person"), TEST, seeds=3),
        "smoke": Grid(("tiny_alone", "tiny"), datasets=("synthetic_occluded_reid/tiny",)),
    }
)
