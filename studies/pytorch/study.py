"""Both implementations train on the synthetic set, seed by seed, and their scores are compared.

``python -m studies.pytorch.study --config=configs/synthetic_demo.py --seeds=5 --out=DIR``, with any
option as ``--config.a.b=…``. For each seed both start from the same weights and read the same
batches, in float32, each in a process of its own; a run that is there already is kept.

Two correct implementations still part: float32 sums in another order differ by 1e-7, and hard
triplets and ReLUs let that grow from step to step. How far it takes the scores is measured by a
control, pgfl_jax again from weights of which every value is moved to a neighbouring float32. The
frameworks should not be further apart than pgfl_jax and its control.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from absl import flags, logging
from ml_collections import config_flags

from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.config import Config, parse_config
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import unit_length
from pgfl_jax.report.manifest import source_commit
from pgfl_jax.report.writers import write_json
from pgfl_jax.retrieval.embeddings import EmbedFn, make_embed
from pgfl_jax.retrieval.evaluate import evaluate
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import make_train_step
from studies.pytorch.compare import initial_state, make_twin, to_arrays
from studies.pytorch.random_weights import moved_by_rounding
from studies.pytorch.train_step import Training, to_tensors

FLAGS = flags.FLAGS
SIDES = "jax", "torch", "control"
NAMES = {"jax": "pgfl_jax", "torch": "PyTorch", "control": "pgfl_jax, start moved by one rounding"}
SCORES = "mAP", "Rank-1"

Variables = Mapping[str, Any]
Batch = Mapping[str, np.ndarray]
TrainStep = Callable[[Batch], Mapping[str, Any]]


def jax_side(
    experiment: Experiment, variables: Variables
) -> tuple[TrainStep, Callable[[], TrainState], EmbedFn]:
    """A step, the state so far, and what embeds with it, by pgfl_jax on one device."""
    mesh = make_mesh(jax.devices()[:1])
    state = initial_state(experiment, variables)
    train_step = make_train_step(experiment, mesh)

    def step(batch: Batch) -> Mapping[str, Any]:
        nonlocal state
        state, terms = train_step(state, dict(batch))
        return jax.device_get(terms)

    return (
        step,
        lambda: state,
        make_embed(experiment.model, mesh, experiment.config.eval.embeddings),
    )


def torch_side(
    experiment: Experiment, variables: Variables
) -> tuple[TrainStep, Callable[[], TrainState], EmbedFn]:
    """The same by PyTorch; of the state there is only the step."""
    twin = make_twin(experiment, variables)
    training = Training(experiment.config, twin, steps_per_epoch=experiment.steps_per_epoch)

    def step(batch: Batch) -> Mapping[str, Any]:
        return {
            name: value.numpy() for name, value in training.train_step(to_tensors(batch)).items()
        }

    def embed(state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        del state
        training.model.eval()
        tensors = to_tensors({name: np.asarray(value) for name, value in batch.items()})
        with torch.no_grad():
            outputs = training.model(tensors["images"])
        return {"main": unit_length(jnp.asarray(outputs.main.neck.numpy()))}

    def state() -> TrainState:
        return TrainState(jnp.asarray(training.step, jnp.int32), {}, {}, (), None)

    return step, state, embed


def measure(config: Config, side: str) -> dict[str, Any]:
    """One training from its start to its scores.

    Returns:
        ``losses`` (every term, by step), ``scores`` (by protocol), ``step_seconds``, ``seconds``
        (training, with the wait for batches), ``memory_mib`` (largest resident memory of the
        process) and ``memory_before_mib`` (that before the first step), and digests of the
        ``initial_weights`` and of the ``batches``.
    """
    from input_pipeline.from_config import evaluation_data, training_data  # TensorFlow
    from input_pipeline.progress import progress

    training, evaluation = training_data(config), evaluation_data(config)
    images = len(training.filenames)
    experiment = Experiment.create(
        config, num_identities=training.num_identities, num_images=images
    )
    fresh = jax.device_get(experiment.init_state(make_mesh(jax.devices()[:1])))
    variables: Variables = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    initial = _digest(to_arrays(variables, training.num_identities))
    if side == "torch":
        step, state, embed = torch_side(experiment, variables)
    else:
        if side == "control":
            moved = moved_by_rounding(variables["params"], config.seed)
            variables = {**variables, "params": moved}
        step, state, embed = jax_side(experiment, variables)
    before = _memory()
    losses: dict[str, list[float]] = {}
    seconds, digest = [], hashlib.sha256()
    started = time.perf_counter()
    batches = itertools.islice(training.batches(0), experiment.num_steps)
    for batch in progress(batches, NAMES[side], total=experiment.num_steps):
        batch = {name: values for name, values in batch.items() if name != "indices"}
        digest.update(_digest(batch).encode())
        begun = time.perf_counter()
        terms = step(batch)
        seconds.append(time.perf_counter() - begun)
        for name, value in terms.items():
            losses.setdefault(name, []).append(float(value))
    total = time.perf_counter() - started
    memory = _memory()
    mesh = make_mesh(jax.devices()[:1])
    results = evaluate(embed, state(), evaluation, config.eval, mesh, seed=config.seed)
    return {
        "losses": losses,
        "scores": {r["protocol"]: {"mAP": r["mAP"], "Rank-1": r["cmc"]["1"]} for r in results},
        "step_seconds": seconds,
        "seconds": total,
        "memory_mib": memory,
        "memory_before_mib": before,
        "initial_weights": initial,
        "batches": digest.hexdigest(),
    }


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collect(config: Config, out: Path, seeds: int) -> dict[int, dict[str, Any]]:
    """Measure every seed and side that is not there yet; all of them, by seed and side.

    Raises:
        UserError: a run failed, or the sides of a seed did not start or read alike.
    """
    runs: dict[int, dict[str, Any]] = {}
    commit = source_commit()
    options = config.flat_options() | {"commit": commit, "packages": packages()}
    for seed in range(seeds):
        # Each comes first in turn, since a machine may grow slower.
        for side in SIDES[seed % len(SIDES) :] + SIDES[: seed % len(SIDES)]:
            path = out / "runs" / f"{side}-{seed}.json"
            facts = json.loads(json.dumps(options | {"seed": seed}))
            # One that was interrupted before its facts were added has none.
            kept = path.exists() and json.loads(path.read_text()).get("facts") == facts
            if not kept or str(commit).endswith("+changes"):
                _say(f"seed {seed}: {NAMES[side]}")
                _measure_apart(side, seed, path)
                write_json(path, {"facts": facts} | json.loads(path.read_text()))
            runs.setdefault(seed, {})[side] = json.loads(path.read_text())
        for name in ("initial_weights", "batches"):
            if len({run[name] for run in runs[seed].values()}) > 1:
                raise UserError(f"seed {seed}: the sides differ in {name.replace('_', ' ')}")
    return runs


def _measure_apart(side: str, seed: int, path: Path) -> None:
    """Measure in a process of its own, so that memory is that of one side."""
    options = [f"--config.seed={seed}", f"--side={side}", f"--out={path}"]  # the last ones count
    command = [sys.executable, "-m", "studies.pytorch.study", *sys.argv[1:], *options]
    if subprocess.run(command).returncode:
        raise UserError(f"seed {seed}: {NAMES[side]} failed; its own error stands above")


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval, mean ± t·s / √n with Student's t for n − 1 degrees of freedom."""
    mean = statistics.fmean(values)
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def apart(found: Mapping[str, Any], expected: Mapping[str, Any]) -> np.ndarray:
    """Relative difference of the total loss of two runs, by step."""
    ours, theirs = (np.asarray(run["losses"]["total"]) for run in (found, expected))
    return np.abs(ours - theirs) / np.abs(theirs)


def summarise(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the runs say: scores, paired differences with intervals, curves apart, time, memory."""
    first = next(iter(runs.values()))
    scores = [(protocol, name) for protocol in first["jax"]["scores"] for name in SCORES]
    compared = {}
    for protocol, name in scores:
        by_side = {
            side: [100 * run[side]["scores"][protocol][name] for run in runs.values()]
            for side in SIDES
        }
        differences = {
            side: interval(np.subtract(by_side[side], by_side["jax"]).tolist())
            for side in ("torch", "control")
        }
        compared[f"{protocol} {name}"] = {"by_seed": by_side, "minus_jax": differences}
    steps = len(first["jax"]["losses"]["total"])
    shown = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step < steps] + [steps]
    curves = {
        side: {
            step: statistics.median(
                float(apart(run[side], run["jax"])[step - 1]) for run in runs.values()
            )
            for step in shown
        }
        for side in ("torch", "control")
    }
    costs = {
        side: {
            "step_ms": 1000 * statistics.median(
                s for run in runs.values() for s in run[side]["step_seconds"][1:]
            ),
            "first_step_s": statistics.median(
                run[side]["step_seconds"][0] for run in runs.values()
            ),
            "training_s": statistics.median(run[side]["seconds"] for run in runs.values()),
            "memory_mib": statistics.median(run[side]["memory_mib"] for run in runs.values()),
            "memory_before_mib": statistics.median(
                run[side]["memory_before_mib"] for run in runs.values()
            ),
        }
        for side in SIDES
    }  # fmt: skip
    return {"steps": steps, "scores": compared, "loss_apart": curves, "costs": costs}


def markdown(summary: Mapping[str, Any], seeds: int) -> str:
    """The summary in three tables."""
    lines = [
        f"{seeds} seeds, {summary['steps']} steps. Scores in percent, mean ± standard deviation "
        "over the seeds; differences paired by seed, in points, with 95 % intervals.",
        "",
        "| | pgfl_jax | PyTorch | PyTorch − pgfl_jax | control − pgfl_jax |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, score in summary["scores"].items():
        spread = [
            f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
            for values in (score["by_seed"][side] for side in ("jax", "torch"))
        ]
        differences = [
            f"{d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f})"
            for d in (score["minus_jax"][side] for side in ("torch", "control"))
        ]
        lines.append(f"| {name} | {' | '.join([*spread, *differences])} |")
    steps = list(next(iter(summary["loss_apart"].values())))
    lines += [
        "",
        "Relative difference of the total loss from that of pgfl_jax, median over the seeds:",
        "",
        f"| after step | {' | '.join(map(str, steps))} |",
        f"|---|{'---:|' * len(steps)}",
    ]
    for side, values in summary["loss_apart"].items():
        lines.append(f"| {NAMES[side]} | {' | '.join(f'{v:.0e}' for v in values.values())} |")
    lines += [
        "",
        "| | step, ms | first step, s | training, s | memory, MiB | of it before step 1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for side in ("jax", "torch"):
        cost = summary["costs"][side]
        lines.append(
            f"| {NAMES[side]} | {cost['step_ms']:.0f} | {cost['first_step_s']:.1f} | "
            f"{cost['training_s']:.0f} | {cost['memory_mib']:.0f} | "
            f"{cost['memory_before_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(runs: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Loss curves of every seed and side, and how far they are apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, differences) = pyplot.subplots(2, figsize=(9, 7), sharex=True)
    styles = {"jax": ("C0", "-"), "torch": ("C1", "--"), "control": ("C2", ":")}
    for number, run in enumerate(runs.values()):
        for side, (colour, line) in styles.items():
            label = NAMES[side] if number == 0 else None
            steps = np.arange(1, len(run[side]["losses"]["total"]) + 1)
            total = run[side]["losses"]["total"]
            losses.plot(steps, total, line, color=colour, label=label, lw=0.7)
            if side != "jax":
                # A logarithmic axis has no 0.
                values = np.maximum(apart(run[side], run["jax"]), 1e-9)
                differences.semilogy(steps, values, color=colour, label=label, lw=0.5, alpha=0.7)
    losses.set_ylabel("total loss")
    differences.set_ylabel("relative difference from pgfl_jax")
    differences.set_xlabel("step")
    for axis in (losses, differences):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def packages() -> dict[str, str]:
    """Versions of what the scores depend on."""
    names = "jax", "jaxlib", "flax", "optax", "torch", "numpy", "tensorflow-cpu"
    return {name: metadata.version(name) for name in names}


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    return {
        "packages": packages(),
        "python": platform.python_version(),
        "commit": source_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
    }


def _processor() -> str:
    """Its name, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def define_flags() -> None:
    """Flags of the command line."""
    config_flags.DEFINE_config_file("config", "configs/synthetic_demo.py", "Configuration file.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds, 0 and up.", lower_bound=2)
    flags.DEFINE_string("out", "runs/study", "Folder of the study.")
    # Given to the processes that this program starts: what to measure, into the file --out.
    flags.DEFINE_enum("side", None, SIDES, "Measure this side alone, into the file --out.")


def check(config: Config) -> None:
    """UserError for what the comparison leaves out."""
    for name, value, wanted in (
        ("model.dtype", config.model.dtype, "float32"),
        ("train.accumulation", config.train.accumulation, 1),
        ("eval.embeddings", config.eval.embeddings, ("main",)),
        ("optim.ema_decay", config.optim.ema_decay, 0.0),
    ):
        if value != wanted:
            raise UserError(f"config.{name} = {value!r}: the study compares {wanted!r} only")


def main(argv: list[str]) -> int:
    """Measure, compare, report."""
    del argv
    logging.set_verbosity(logging.FATAL)  # of every file that is read or written
    config = parse_config(FLAGS.config)
    check(config)
    if FLAGS.side:
        write_json(Path(FLAGS.out), measure(config, FLAGS.side))
        return 0
    out = writable_folder(Path(FLAGS.out), "--out")
    writable_folder(out / "runs", "--out")
    runs = collect(config, out, FLAGS.seeds)
    summary = summarise(runs)
    options = dataclasses.replace(config, seed=0).flat_options()
    write_json(
        out / "study.json",
        {"environment": environment(), "config": options, "seeds": FLAGS.seeds} | summary,
    )
    table = markdown(summary, FLAGS.seeds)
    (out / "study.md").write_text(table, encoding="utf-8")
    plot(runs, out / "study.png")
    print(table, flush=True)
    return 0


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
