"""Parity with PyTorch: the same network, losses and training, to the last digits.

    make parity

Runs both implementations through the same steps, from the same weights on the same batches of the
synthetic set, and compares all results (docs/parity.md). Prints a table and writes it to ``--out``
as parity.md, with parity.json and parity.png. The exit status is 1 if any figure exceeds its bound.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import flags

from input_pipeline.progress import progress
from pgfl_jax.command_flags import define_path
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.config import Config
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.experiment import Experiment
from studies.pytorch.compare import (
    Batch,
    Step,
    cast,
    differences,
    flax_step,
    flax_training,
    real_batches,
    tiny_config,
    twin_step,
    twin_training,
    twin_updates,
)
from studies.pytorch.random_weights import draw_variables, moved_by_rounding
from studies.pytorch.report import Parity, largest, markdown, write_report

FLAGS = flags.FLAGS
IDENTITIES, STEPS_PER_EPOCH = 16, 8
STEPS = 20

# Bounds in float64. One rounding is 1.1e-16; even amplified by a deep network it stays far below.
FORWARD, GRADIENT, TRAINING = 1e-10, 1e-8, 1e-6
# In lower precisions, JAX's distance from the float64 result may be this many times PyTorch's …
RATIO = 4
# … plus this many units of the precision, in case PyTorch happens to be exact.
UNITS = 8
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}

# Every loss; distillation in its warm-up.
ALL_ON = {
    "loss.logit_kd": 1.0,
    "loss.interaction": 0.5,
    "loss.interaction_variant": "cross_classifier",
    "loss.kd_ramp": 1.7,
    "loss.teachers": "both",
    # Predicted maps are among the variants: twenty steps of them amplify rounding in float32.
    "model.pooling": "gap",
    "optim.name": "adam",
    "optim.learning_rate": 3.5e-4,
    "optim.schedule": "step",
    "optim.warmup_epochs": 1.0,
    "optim.milestones": (2.0,),
    "optim.ema_decay": 0.5,  # reached at the ninth step
    "train.epochs": 3.0,
    "data.identities_per_batch": 4,
    "data.images_per_identity": 2,
}
RESNET50 = {"data.height": 256, "data.width": 128, "model.backbone": "resnet50"}
# Four images, since twenty steps of eight take six minutes.
FEW = RESNET50 | {"data.identities_per_batch": 2, "optim.clip_norm": 10.0}
MINED, SAME_GRADIENTS = "mined triplets that differ", "the step alone, from equal gradients"
MID_RAMP = 5  # single steps are compared at this step, within distillation's ramp

# Few variants, since each takes longer to compile than to run.
VARIANTS: dict[str, dict[str, Any]] = {
    "soft margin, cross-branch triplet, no label smoothing, temperature 1, context": {
        "model.pooling": "context",
        "loss.soft_margin": True,
        "loss.interaction_variant": "cross_triplet",
        "loss.smoothing": 0.0,
        "loss.temperature": 1.0,
    },
    "hard margin, cross-branch triplet, cosine alignment, GeM": {
        "loss.interaction_variant": "cross_triplet",
        "loss.alignment_variant": "cosine",
        "model.pooling": "gem",
    },
    "predicted part maps, distilled from the parts branch": {
        "model.pooling": "parts",
        "loss.teachers": "parts",
    },
    "predicted foreground, distilled from the foreground branch": {
        "model.pooling": "foreground",
        "loss.teachers": "foreground",
    },
    "shared classifier, distillation at once": {
        "loss.interaction_variant": "shared_classifier",
        "loss.interaction": 0.0,
        "loss.kd_ramp": 0.0,
    },
    "vision transformer, predicted part maps": {
        "model.backbone": "vit_tiny",
        "model.pooling": "parts",
    },
    "vision transformer, class token": {
        "model.backbone": "vit_tiny",
        "model.pooling": "cls",
    },
    "main branch alone": {
        "model.pose_branches": False,
        "model.pooling": "gap",
        "loss.interaction_variant": "off",
        "loss.interaction": 0.0,
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw, cosine": {
        "optim.name": "adamw",
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 0.25,
    },
    "sgd, cosine, linear scaling, clipping": {
        "optim.name": "sgd",
        "optim.learning_rate": 0.05,
        "optim.schedule": "cosine",
        "optim.warmup_epochs": 0.25,
        "optim.scaling": "linear",
        "optim.clip_norm": 1.0,
    },
    "adamw, kernels alone decay, rates by layer": {
        "optim.name": "adamw",
        "optim.decayed": "kernels",
        "optim.layer_decay": 0.65,
        "optim.head_rate": 2.0,
        "optim.warmup_epochs": 0.25,
    },
    "lars, milestones without warm-up": {
        "optim.name": "lars",
        "optim.learning_rate": 1.0,
        "optim.warmup_epochs": 0.0,
        "optim.milestones": (0.25, 0.5),
    },
    "lamb, root scaling": {
        "optim.name": "lamb",
        "optim.scaling": "sqrt",
        "optim.warmup_epochs": 0.25,
    },
}


def make_config(data_dir: str, **changes: Any) -> Config:
    """The tiny configuration with every loss on and with ``changes``."""
    return tiny_config({"data.data_dir": data_dir, **ALL_ON, **changes})


def make_experiment(config: Config) -> Experiment:
    """The experiment that both sides are built from."""
    num_images = STEPS_PER_EPOCH * config.data.batch_size
    return Experiment.create(config, num_identities=IDENTITIES, num_images=num_images)


def _groups(step: Step) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The forward pass in groups, one per figure."""
    kinds = {"features": "feature map", "embedding": "embeddings", "neck": "BNNecks"}
    for kind, name in (kinds | {"logits": "logits"}).items():
        yield name, {key: value for key, value in step.outputs.items() if key.endswith(kind)}
    yield "every layer of the trunk", step.layers


def compare_steps(parity: Parity, section: str, found: Step, truth: Step) -> None:
    """Add the figures of one step in float64."""
    expected = dict(_groups(truth))
    for name, group in _groups(found):
        parity.worst(section, name, differences(group, expected[name]), FORWARD)
    parity.worst(section, "loss terms", differences(found.terms, truth.terms), FORWARD)
    parity.worst(section, MINED, _mined_otherwise(found, truth), 0)
    gradients = differences(found.gradients, truth.gradients)
    parity.worst(section, "gradients", gradients, GRADIENT)
    statistics = differences(found.statistics, truth.statistics)
    parity.worst(section, "running statistics", statistics, FORWARD)
    stepped = differences(found.parameters, truth.parameters)
    parity.worst(section, "parameters after a step of Adam", stepped, GRADIENT)
    # Where a gradient is below Adam's ε = 1e-8, the step divides its rounding error by ε.
    updates = differences(found.updates, truth.updates)
    parity.worst(section, "the step alone", updates, TRAINING)


def _mined_otherwise(found: Step, truth: Step) -> dict[str, float]:
    return {
        name: float(np.sum(found.triplets[name] != value)) for name, value in truth.triplets.items()
    }


def one_step(parity: Parity, data_dir: str) -> None:
    """Compare one step of ResNet-50 at 256x128, in float64 and in float32."""
    config = make_config(data_dir, **RESNET50)
    (batch,) = real_batches(config, 1)
    section = f"ResNet-50, 256x128, {len(batch['labels'])} images, one step, float64"
    _say(section)
    experiment = make_experiment(config)
    variables = draw_variables(experiment, 0, np.float64)
    found = flax_step(experiment, variables, batch, step=MID_RAMP)
    truth = twin_step(experiment, variables, batch, step=MID_RAMP)
    compare_steps(parity, section, found, truth)
    updates = twin_updates(experiment, variables, found.gradients)
    parity.worst(section, SAME_GRADIENTS, differences(found.updates, updates), GRADIENT)
    parity.labels = list(truth.layers)
    parity.curve("layers", "float64", _values(found.layers, truth.layers))
    parity.curve("gradients", "float64", _values(found.gradients, truth.gradients))
    del found
    section = "The same in float32: distance from float64"
    ours, theirs = compare_precisions(parity, section, "float32", config, batch, truth)
    for name, step in (("JAX", ours), ("PyTorch", theirs)):
        parity.curve("layers", f"float32, {name}", _values(step.layers, truth.layers))
        parity.curve("gradients", f"float32, {name}", _values(step.gradients, truth.gradients))


def precisions(parity: Parity, data_dir: str) -> None:
    """Compare a small network, which amplifies rounding less, in float32 and bfloat16."""
    changes = {"data.images_per_identity": 4}
    config = make_config(data_dir, **changes)
    (batch,) = real_batches(config, 1)
    experiment = make_experiment(config)
    truth = twin_step(experiment, draw_variables(experiment, 0, np.float64), batch, step=MID_RAMP)
    for dtype in UNIT:
        section = f"resnet8, 64x32, 16 images, one step, {dtype}: distance from float64"
        config = make_config(data_dir, **changes, **{"model.dtype": dtype})
        compare_precisions(parity, section, dtype, config, batch, truth)


def _values(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> list[float]:
    return list(differences(found, truth).values())


def compare_precisions(
    parity: Parity, section: str, dtype: str, config: Config, batch: Batch, truth: Step
) -> tuple[Step, Step]:
    """Add the figures of one step in a lower precision.

    Both frameworks are compared with PyTorch's float64 result. How much precision is lost depends
    on the network, so the bound is derived from PyTorch's own loss.

    Returns:
        JAX's step and PyTorch's.
    """
    _say(section)
    experiment = make_experiment(config)
    variables = draw_variables(experiment, 0, np.float32)
    single = cast(batch, np.float32)
    ours = flax_step(experiment, variables, single, step=MID_RAMP)
    theirs = twin_step(experiment, variables, single, step=MID_RAMP)
    expected, mine, other = (_all_groups(step) for step in (truth, ours, theirs))
    for name, group in expected.items():
        _, reference = largest(differences(other[name], group))
        bound = RATIO * reference + UNITS * UNIT[dtype]
        parity.worst(section, name, differences(mine[name], group), bound)
    if dtype == "float32":
        parity.worst(section, MINED, _mined_otherwise(ours, truth), 0)
    return ours, theirs


def _all_groups(step: Step) -> dict[str, dict[str, np.ndarray]]:
    """The forward pass in groups, the losses and the gradients."""
    return dict(_groups(step)) | {"loss terms": step.terms, "gradients": step.gradients}


def training(parity: Parity, data_dir: str) -> None:
    """Compare twenty steps of a small network, in float64 and in float32."""
    config, batches, section = training_float64(
        parity, data_dir, "steps", **{"optim.clip_norm": 10.0}
    )
    section = section.replace("float64", "float32: distance from float64 at the end")
    _say(section)
    experiment, singles = make_experiment(config), [cast(batch, np.float32) for batch in batches]
    variables = draw_variables(experiment, 0, np.float32)
    *_, ours = flax_training(experiment, variables, singles)
    *_, theirs = twin_training(experiment, variables, singles)
    variables = draw_variables(experiment, 0, np.float64)
    *_, truth = twin_training(experiment, variables, batches)
    for name, expected in truth._asdict().items():
        _, reference = largest(differences(getattr(theirs, name), expected))
        bound = RATIO * reference + UNITS * UNIT["float32"]
        parity.worst(section, name, differences(getattr(ours, name), expected), bound)


def training_resnet50(parity: Parity, data_dir: str) -> None:
    """Compare twenty steps at full size, at the rate where the default recipe's warm-up starts.

    At the full rate any two computations drift apart: see :func:`rounding`.
    """
    changes = FEW | {"optim.learning_rate": 3.5e-6}
    training_float64(parity, data_dir, "steps of ResNet-50", **changes)


def rounding(parity: Parity, data_dir: str) -> None:
    """Show how far one rounding of the initial weights leads at the full rate; sets no bound."""
    config = make_config(data_dir, **FEW)
    _say(f"{config.model.backbone} at the full rate, and its control: parameters after each step")
    experiment, batches = make_experiment(config), real_batches(config, STEPS)
    variables = draw_variables(experiment, 0, np.float64)
    moved = {**variables, "params": moved_by_rounding(variables["params"], seed=0)}
    truth = twin_training(experiment, variables, batches)
    sides = {
        "JAX": flax_training(experiment, variables, batches),
        "PyTorch, start moved by one rounding": twin_training(experiment, moved, batches),
    }
    curves: dict[str, list[float]] = {name: [] for name in sides}
    for step, moments in enumerate(zip(truth, *sides.values(), strict=True), 1):
        for name, found in zip(sides, moments[1:], strict=True):
            apart = differences(found.parameters, moments[0].parameters)
            curves[name].append(largest(apart)[1])
        _say(f"  {step:2}  " + ", ".join(f"{name} {x[-1]:.1e}" for name, x in curves.items()))
    for name, values in curves.items():
        parity.curve("rounding", name, values)


def training_float64(
    parity: Parity, data_dir: str, panel: str, **changes: Any
) -> tuple[Config, list[Batch], str]:
    """Compare twenty steps with L2 decay, warm-up, a milestone, clipping and averages.

    Returns:
        The configuration, the batches, and the name of the section.
    """
    config = make_config(data_dir, **changes)
    batches = real_batches(config, STEPS)
    height, width = batches[0]["images"].shape[1:3]
    images = f"{height}x{width}, {len(batches[0]['labels'])} images"
    section = f"{config.model.backbone}, {images}, {STEPS} steps, float64"
    _say(section)
    for name, values in compare_trainings(parity, section, config, batches, TRAINING).items():
        parity.curve(panel, name, values)
    return config, batches, section


def compare_trainings(
    parity: Parity,
    section: str,
    config: Config,
    batches: list[Batch],
    bound: float,
    case: str = "",
) -> dict[str, list[float]]:
    """Add the figures of a training run in float64, each the largest over all steps.

    Parameters, statistics and averages are compared by how far they moved from the start, which is
    stricter than comparing their values.

    Returns:
        For each kind, the largest difference after each step.
    """
    experiment = make_experiment(config)
    variables = draw_variables(experiment, 0, np.float64)
    curves: dict[str, list[float]] = {}
    worst: dict[str, dict[str, float]] = {}
    sides = (
        flax_training(experiment, variables, batches),
        twin_training(experiment, variables, batches),
    )
    pairs = progress(zip(*sides, strict=True), case or section, total=len(batches))
    for step, (found, truth) in enumerate(pairs, 1):
        for name, expected in truth._asdict().items():
            apart = differences(getattr(found, name), expected)
            where, value = largest(apart)
            worst.setdefault(name, {})[f"{where}, step {step}"] = value
            curves.setdefault(name, []).append(value)
    for name, found_ in worst.items():
        parity.worst(section, name, found_, bound, case)
    return curves


def variants(parity: Parity, data_dir: str) -> None:
    """Compare every variant of every loss, on a small network in float64."""
    changes = {"data.images_per_identity": 4, "loss.kd_start": 0.25}
    config = make_config(data_dir, **changes)
    (batch,) = real_batches(config, 1)
    blank = {key: np.zeros_like(batch[key]) for key in ("part_maps", "visibility")}
    section = "resnet8, 64x32, 16 images, one step, float64"
    _say(section)
    experiment = make_experiment(config)
    compare_variant(parity, section, "all losses, distillation in its warm-up", experiment, batch)
    compare_variant(parity, section, "all losses, distillation not yet", experiment, batch, step=1)
    compare_variant(parity, section, "all losses, distillation in full", experiment, batch, step=20)
    compare_variant(parity, section, "all losses, no image has a pose", experiment, batch | blank)
    for name, variant in VARIANTS.items():
        config = make_config(data_dir, **changes, **variant)
        (batch,) = real_batches(config, 1)  # with maps of the backbone's resolution
        compare_variant(parity, section, name, make_experiment(config), batch)


def compare_variant(
    parity: Parity,
    section: str,
    case: str,
    experiment: Experiment,
    batch: Batch,
    *,
    step: int = MID_RAMP,
) -> None:
    """Add the figures of one step of a variant."""
    _say(f"  {case}")
    variables = draw_variables(experiment, 1, np.float64)
    found = flax_step(experiment, variables, batch, step=step)
    truth = twin_step(experiment, variables, batch, step=step)
    forward = differences(found.outputs, truth.outputs)
    parity.worst(section, "forward", forward, FORWARD, case)
    parity.worst(section, "loss terms", differences(found.terms, truth.terms), FORWARD, case)
    parity.worst(section, "triplets", _mined_otherwise(found, truth), 0, case)
    gradients = differences(found.gradients, truth.gradients)
    parity.worst(section, "gradients", gradients, GRADIENT, case)
    statistics = differences(found.statistics, truth.statistics)
    parity.worst(section, "running statistics", statistics, FORWARD, case)


def optimizers(parity: Parity, data_dir: str) -> None:
    """Compare every optimizer and schedule, on the main branch of a small network in float64."""
    changes = {"data.images_per_identity": 4} | VARIANTS["main branch alone"]
    batches = real_batches(make_config(data_dir, **changes), 5)
    section = "resnet8, main branch, 64x32, 16 images, 5 steps, float64"
    _say(section)
    for name, variant in OPTIMIZERS.items():
        _say(f"  {name}")
        config = make_config(data_dir, **changes | variant)
        compare_trainings(parity, section, config, batches, GRADIENT, name)


PARTS: dict[str, Callable[[Parity, str], None]] = {
    "variants": variants,
    "precisions": precisions,
    "optimizers": optimizers,
    "training": training,
    "one_step": one_step,
    "training_resnet50": training_resnet50,
    "rounding": rounding,
}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def define_flags() -> None:
    """Define the command-line flags."""
    define_path("out", ".cache/parity", "Folder for the report.")
    define_path("data_dir", "data", "Folder of prepared data sets.")
    standard = [name for name in PARTS if name != "rounding"]
    flags.DEFINE_multi_enum("part", standard, list(PARTS), "What to compare; may be repeated.")


def main(argv: list[str]) -> int:
    """Compare and report; returns the exit status."""
    del argv
    require_devices()
    out = writable_folder(Path(FLAGS.out), "--out")
    # By default JAX rounds the factors of float32 products on GPUs and TPUs.
    jax.config.update("jax_default_matmul_precision", "highest")
    started = time.monotonic()
    parity = Parity()
    for name in FLAGS.part:
        before = len(parity.figures)
        PARTS[name](parity, FLAGS.data_dir)
        print(markdown(parity.figures[before:]), flush=True)
    return write_report(parity, out, time.monotonic() - started)


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
