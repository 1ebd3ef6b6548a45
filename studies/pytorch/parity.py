"""Parity with PyTorch: the same network, losses and training, to the last digits.

    make parity

Takes both implementations through the same steps, from the same weights on the same batches of the
synthetic set, and compares all that comes out (docs/parity.md). Prints a table; writes it to
``--out`` as parity.md, with parity.json and parity.png. The exit status is 1 if any figure exceeds
its bound.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import flags

from configs import synthetic_tiny
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.config import Config, parse_config
from pgfl_jax.run import Run
from studies.pytorch.compare import (
    Batch,
    Step,
    cast,
    differences,
    draw_variables,
    flax_step,
    flax_training,
    real_batches,
    twin_step,
    twin_training,
)

FLAGS = flags.FLAGS
IDENTITIES, IMAGES = 16, 64  # the classifier, and what makes an epoch: 8 steps of 8 images
STEPS = 20

# Float64. Rounding is 1.1e-16 a time; what a deep network makes of it stays far below these.
FORWARD, GRADIENT, TRAINING = 1e-10, 1e-8, 1e-6
# Lower precisions: JAX's distance from the float64 result may be this many times PyTorch's …
RATIO = 4
# … plus this many units of the precision, for where PyTorch happens to be exact.
UNITS = 8
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-9}

# Every loss and both kinds of interaction that are losses; distillation in its warm-up.
ALL_ON = {
    "loss.logit_kd": 1.0,
    "loss.interaction": 0.5,
    "loss.interaction_variant": "cross_classifier",
    "loss.kd_ramp": 1.7,
    "optim.name": "adam",
    "optim.learning_rate": 3.5e-4,
    "optim.schedule": "step",
    "optim.warmup_epochs": 1.0,
    "optim.milestones": (2.0,),
    "optim.ema_decay": 0.9,
    "train.epochs": 3.0,
    "data.identities_per_batch": 4,
    "data.images_per_identity": 2,
}
MID_RAMP = 5  # the step that single steps are taken for: of distillation's ramp about a third

VARIANTS: dict[str, dict[str, Any]] = {
    "all losses": {},
    "soft margin": {"loss.soft_margin": True},
    "cosine alignment": {"loss.alignment_variant": "cosine"},
    "cross-branch triplet": {"loss.interaction_variant": "cross_triplet"},
    "cross-branch triplet, soft margin": {
        "loss.interaction_variant": "cross_triplet",
        "loss.soft_margin": True,
    },
    "shared classifier": {
        "loss.interaction_variant": "shared_classifier",
        "loss.interaction": 0.0,
    },
    "GeM pooling": {"model.pooling": "gem"},
    "no label smoothing, temperature 1": {"loss.smoothing": 0.0, "loss.temperature": 1.0},
    "distillation at once": {"loss.kd_ramp": 0.0},
    "distillation not yet": {"loss.kd_start": 1.0},
    "main branch alone": {
        "model.pose_branches": False,
        "loss.interaction_variant": "off",
        "loss.interaction": 0.0,
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam, step schedule, clipping": {"optim.clip_norm": 1.0},
    "adamw, cosine schedule": {"optim.name": "adamw", "optim.schedule": "cosine"},
    "sgd, cosine schedule, linear scaling": {
        "optim.name": "sgd",
        "optim.learning_rate": 0.05,
        "optim.schedule": "cosine",
        "optim.scaling": "linear",
    },
    "lars, no warm-up": {
        "optim.name": "lars",
        "optim.learning_rate": 1.0,
        "optim.warmup_epochs": 0.0,
    },
    "lamb, root scaling": {"optim.name": "lamb", "optim.scaling": "sqrt"},
}


class Figure(NamedTuple):
    """One line of the table.

    Attributes:
        section: what was run.
        name: what was compared.
        value: the largest difference found.
        bound: what it may be at most.
        where: at which tensor, term or step it was found.
    """

    section: str
    name: str
    value: float
    bound: float
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bound is kept; NaN does not keep it."""
        return self.value <= self.bound


@dataclasses.dataclass
class Parity:
    """The figures so far, and the curves of the plot by panel and name."""

    figures: list[Figure] = dataclasses.field(default_factory=list)
    curves: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    labels: list[str] = dataclasses.field(default_factory=list)

    def worst(self, section: str, name: str, found: dict[str, float], bound: float) -> None:
        """Add the largest of some differences."""
        # NaN counts as the largest of all.
        where = max(found, key=lambda key: math.inf if math.isnan(found[key]) else found[key])
        self.figures.append(Figure(section, name, found[where], bound, where))

    def curve(self, panel: str, name: str, values: list[float]) -> None:
        """Add a curve to the plot."""
        self.curves.setdefault(panel, {})[name] = values


def make_config(data_dir: str, **changes: Any) -> Config:
    """The tiny configuration with every loss on, and with ``changes``."""
    values = synthetic_tiny.get_config()
    values.update_from_flattened_dict({"data.data_dir": data_dir, **ALL_ON, **changes})
    return parse_config(values)


def make_run(config: Config) -> Run:
    """What both sides are built from."""
    return Run.create(config, num_identities=IDENTITIES, num_images=IMAGES)


def _groups(step: Step) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The forward pass in groups, one figure each."""
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
    parity.worst(section, "mined triplets that differ", _mined_otherwise(found, truth), 0)
    gradients = differences(found.gradients, truth.gradients)
    parity.worst(section, "gradients", gradients, GRADIENT)
    statistics = differences(found.statistics, truth.statistics)
    parity.worst(section, "running statistics", statistics, FORWARD)
    updates = differences(found.updates, truth.updates)
    parity.worst(section, "step of the optimizer", updates, GRADIENT)


def _mined_otherwise(found: Step, truth: Step) -> dict[str, float]:
    return {
        name: float(np.sum(found.triplets[name] != value)) for name, value in truth.triplets.items()
    }


def one_step(parity: Parity, data_dir: str) -> None:
    """ResNet-50 at 256x128: one step in float64, float32 and bfloat16."""
    changes = {"data.height": 256, "data.width": 128, "model.backbone": "resnet50"}
    config = make_config(data_dir, **changes)
    (batch,) = real_batches(config, 1)
    run = make_run(config)
    section = f"ResNet-50, 256x128, {len(batch['labels'])} images, one step, float64"
    _say(section)
    variables = draw_variables(run, 0, np.float64)
    found = flax_step(run, variables, batch, step=MID_RAMP)
    truth = twin_step(run, variables, batch, step=MID_RAMP)
    compare_steps(parity, section, found, truth)
    parity.labels = list(truth.layers)
    parity.curve("layers", "float64", _values(found.layers, truth.layers))
    parity.curve("gradients", "float64", _values(found.gradients, truth.gradients))
    del found
    variables = draw_variables(run, 0, np.float32)
    for dtype in UNIT:
        section = f"the same in {dtype}: distance from float64"
        _say(section)
        run = make_run(make_config(data_dir, **changes, **{"model.dtype": dtype}))
        single = cast(batch, np.float32)
        ours = flax_step(run, variables, single, step=MID_RAMP)
        theirs = twin_step(run, variables, single, step=MID_RAMP)
        compare_precisions(parity, section, dtype, ours, theirs, truth)
        parity.curve("layers", f"{dtype}, JAX", _values(ours.layers, truth.layers))
        parity.curve("layers", f"{dtype}, PyTorch", _values(theirs.layers, truth.layers))
        if dtype == "float32":
            parity.curve("gradients", "float32, JAX", _values(ours.gradients, truth.gradients))
            theirs_ = _values(theirs.gradients, truth.gradients)
            parity.curve("gradients", "float32, PyTorch", theirs_)
        del ours, theirs


def _values(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> list[float]:
    return list(differences(found, truth).values())


def compare_precisions(
    parity: Parity, section: str, dtype: str, ours: Step, theirs: Step, truth: Step
) -> None:
    """Add the figures of a lower precision.

    Each framework is compared with the float64 result, which is PyTorch's. How far a network is
    from it depends on the network, so that PyTorch itself, whose operations round as often, gives
    the measure of what may be lost.
    """
    groups = {name: group for name, group in _groups(truth)} | {"loss terms": truth.terms}
    mine, other = (dict(_groups(step)) | {"loss terms": step.terms} for step in (ours, theirs))
    if dtype == "float32":
        groups |= {"gradients": truth.gradients, "step of the optimizer": truth.updates}
        mine |= {"gradients": ours.gradients, "step of the optimizer": ours.updates}
        other |= {"gradients": theirs.gradients, "step of the optimizer": theirs.updates}
    for name, expected in groups.items():
        reference = max(differences(other[name], expected).values())
        bound = RATIO * reference + UNITS * UNIT[dtype]
        parity.worst(section, name, differences(mine[name], expected), bound)
    if dtype == "float32":
        name = "mined triplets that differ"
        parity.worst(section, name, _mined_otherwise(ours, truth), 0)


def training(parity: Parity, data_dir: str) -> None:
    """Twenty steps with L2 decay, warm-up and milestone, running statistics and averages."""
    config = make_config(data_dir, **{"model.backbone": "resnet50"})
    batches = real_batches(config, STEPS)
    section = f"ResNet-50, 64x32, {len(batches[0]['labels'])} images, {STEPS} steps, float64"
    _say(section)
    curves = compare_trainings(parity, section, config, batches, TRAINING)
    for name, values in curves.items():
        parity.curve("steps", name, values)


def compare_trainings(
    parity: Parity, section: str, config: Config, batches: list[Batch], bound: float
) -> dict[str, list[float]]:
    """Add the figures of a training in float64, which count after every step.

    Parameters, statistics and averages are compared by their way from the start, which is a harder
    measure than where they are.

    Returns:
        The largest difference after each step, of each kind.
    """
    run = make_run(config)
    variables = draw_variables(run, 0, np.float64)
    curves: dict[str, list[float]] = {}
    worst: dict[str, dict[str, float]] = {}
    sides = (
        flax_training(run, variables, batches),
        twin_training(run, variables, batches, num_images=IMAGES),
    )
    for step, (found, truth) in enumerate(zip(*sides, strict=True), 1):
        for name, expected in truth._asdict().items():
            if expected:
                apart = differences(getattr(found, name), expected)
                where = max(apart, key=lambda key: apart[key])
                worst.setdefault(name, {})[f"{where}, step {step}"] = apart[where]
                curves.setdefault(name, []).append(apart[where])
        _progress(f"step {step} of {len(batches)}")
    for name, found_ in worst.items():
        parity.worst(section, name, found_, bound)
    return curves


def variants(parity: Parity, data_dir: str) -> None:
    """Every variant of every loss, and every optimizer, on a small network in float64."""
    changes = {"data.images_per_identity": 4}
    batches = real_batches(make_config(data_dir, **changes), 5)
    section = "ResNet-8, 64x32, 16 images, one step, float64"
    _say(section)
    for name, variant in VARIANTS.items():
        _progress(name)
        config = make_config(data_dir, **changes, **variant)
        compare_variant(parity, f"{section}: {name}", config, batches[0])
    name = "no image has a pose"
    _progress(name)
    blank = {key: np.zeros_like(batches[0][key]) for key in ("part_maps", "visibility")}
    config = make_config(data_dir, **changes)
    compare_variant(parity, f"{section}: {name}", config, batches[0] | blank)
    section = "ResNet-8, 64x32, 16 images, 5 steps, float64"
    _say(section)
    for name, variant in OPTIMIZERS.items():
        config = make_config(data_dir, **changes, **variant)
        compare_trainings(parity, f"{section}: {name}", config, batches, GRADIENT)


def compare_variant(parity: Parity, section: str, config: Config, batch: Batch) -> None:
    """Add the figures of one step of a variant."""
    run = make_run(config)
    variables = draw_variables(run, 1, np.float64)
    found = flax_step(run, variables, batch, step=MID_RAMP)
    truth = twin_step(run, variables, batch, step=MID_RAMP)
    parity.worst(section, "forward", differences(found.outputs, truth.outputs), FORWARD)
    parity.worst(section, "loss terms", differences(found.terms, truth.terms), FORWARD)
    parity.worst(section, "mined triplets that differ", _mined_otherwise(found, truth), 0)
    parity.worst(section, "gradients", differences(found.gradients, truth.gradients), GRADIENT)


PARTS: dict[str, Callable[[Parity, str], None]] = {
    "variants": variants,
    "one_step": one_step,
    "training": training,
}


def write_report(parity: Parity, out: Path, seconds: float) -> int:
    """Print the table, write the files; 1 if a bound is exceeded, else 0."""
    names = ("torch", "jax", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    table = markdown(parity.figures)
    failed = [figure for figure in parity.figures if not figure.ok]
    verdict = f"{len(parity.figures)} figures, {len(failed)} above their bound"
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    summary = f"{verdict}; {seconds:.0f} s on {os.cpu_count()} CPU cores, {told}."
    (out / "parity.md").write_text(f"{table}\n{summary}\n", encoding="utf-8")
    content = {
        "versions": versions | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "cpu_cores": os.cpu_count()},
        "seconds": round(seconds, 1),
        "figures": [figure._asdict() | {"ok": figure.ok} for figure in parity.figures],
        "layers": parity.labels,
        "curves": parity.curves,
    }
    (out / "parity.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if parity.curves:
        plot(parity, out / "parity.png")
    print(f"{table}\n{summary}", flush=True)
    return int(bool(failed))


def markdown(figures: list[Figure]) -> str:
    """The table, a heading for each section."""
    lines: list[str] = []
    section = None
    for figure in figures:
        if figure.section != section:
            section = figure.section
            lines += ["", f"**{section}**", ""]
            lines += ["| compared | largest difference | bound | | at |", "|---|---:|---:|---|---|"]
        value, bound = (f"{x:.1e}" if x else "0" for x in (figure.value, figure.bound))
        verdict = "ok" if figure.ok else "FAILED"
        lines.append(f"| {figure.name} | {value} | {bound} | {verdict} | {figure.where} |")
    return "\n".join(lines)


def plot(parity: Parity, path: Path) -> None:
    """Differences by layer, by parameter and by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "layers": "Outputs of BatchNorms and blocks, from input to output",
        "gradients": "Gradients, from input to output",
        "steps": "After each step, float64",
    }
    figure, axes = pyplot.subplots(len(parity.curves), figsize=(9, 3.2 * len(parity.curves)))
    for axis, (panel, curves) in zip(np.atleast_1d(axes), parity.curves.items(), strict=True):
        for name, values in curves.items():
            first = 1 if panel == "steps" else 0
            # A logarithmic axis has no 0.
            positive = np.where(np.asarray(values) > 0, values, np.nan)
            axis.semilogy(np.arange(len(values)) + first, positive, ".-", label=name, linewidth=0.8)
        axis.set_title(titles[panel], fontsize=10)
        axis.set_ylabel("relative difference")
        axis.set_xlabel({"layers": "layer", "gradients": "parameter", "steps": "step"}[panel])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _progress(message: str) -> None:
    _say(f"  {message}")


def define_flags() -> None:
    """Flags of the command line."""
    flags.DEFINE_string("out", ".cache/parity", "Folder of the report.")
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets are kept.")
    flags.DEFINE_multi_enum("part", list(PARTS), list(PARTS), "What to compare; may be repeated.")


def main(argv: list[str]) -> int:
    """Compare, report; the exit status."""
    del argv
    out = writable_folder(Path(FLAGS.out), "--out")
    started = time.monotonic()
    parity = Parity()
    for name in FLAGS.part:
        PARTS[name](parity, FLAGS.data_dir)
    return write_report(parity, out, time.monotonic() - started)


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
