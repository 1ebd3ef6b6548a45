"""Trains both implementations on the synthetic set with several seeds and compares their scores.

``python -m studies.pytorch.study --config=configs/synthetic_demo.py --seeds=5 --out=DIR``, with any
option as ``--config.a.b=…``. For each seed, both sides start from the same weights and read the
same batches, in float32, each in its own process. Existing runs are kept.

Even two correct implementations drift apart: float32 sums in another order differ by 1e-7, and hard
triplets and ReLUs amplify this from step to step. A control measures how much this changes the
scores: pgfl_jax again, from weights each moved to a neighbouring float32. The frameworks should not
be further apart than pgfl_jax and its control.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from absl import flags, logging
from jaxtyping import Float64

from pgfl_jax.command_flags import define_config, define_path
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.command_line import writable_folder
from pgfl_jax.config import Config, parse_config
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import unit_length
from pgfl_jax.network_input import network_input
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
Runs = Mapping[int, Mapping[str, Any]]  # by seed and side, as `measure` returns them


class Side(NamedTuple):
    """A training run of one framework.

    Attributes:
        step: trains on a batch; returns the loss terms.
        state: the current state.
        embed: embeds images with a state.
    """

    step: Callable[[Batch], Mapping[str, Any]]
    state: Callable[[], TrainState]
    embed: EmbedFn


def jax_side(experiment: Experiment, variables: Variables) -> Side:
    """A training run of pgfl_jax on one device."""
    mesh = make_mesh(jax.devices()[:1])
    state = initial_state(experiment, variables)
    train_step = make_train_step(experiment, mesh)

    def step(batch: Batch) -> Mapping[str, Any]:
        nonlocal state
        state, terms = train_step(state, dict(batch))
        return jax.device_get(terms)

    embed = make_embed(experiment, mesh, experiment.config.eval.embeddings)
    return Side(step, lambda: state, embed)


def torch_side(experiment: Experiment, variables: Variables) -> Side:
    """A training run of PyTorch; its state holds only the step."""
    twin = make_twin(experiment, variables)
    training = Training(experiment.config, twin, steps_per_epoch=experiment.steps_per_epoch)

    def step(batch: Batch) -> Mapping[str, Any]:
        terms = training.train_step(to_tensors(_normalised(batch, experiment.config)))
        return {name: value.numpy() for name, value in terms.items()}

    def embed(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        del state
        training.model.eval()
        tensors = to_tensors(_normalised(batch, experiment.config))
        with torch.no_grad():
            outputs = training.model(tensors["images"])
        rows = unit_length(jnp.asarray(outputs.main.neck.numpy()))
        return {"main": rows}, jnp.ones(len(rows), bool)

    def state() -> TrainState:
        return TrainState(jnp.asarray(training.step, jnp.int32), {}, {}, (), None)

    return Side(step, state, embed)


def _normalised(batch: Mapping[str, Any], config: Config) -> Batch:
    """A batch whose images are what PyTorch's network takes."""
    images = network_input(batch, config.data)
    return {name: np.asarray(v) for name, v in {**batch, "images": images}.items()}


def measure(config: Config, name: str) -> dict[str, Any]:
    """Train and score one side.

    Args:
        config: the training run.
        name: one of :data:`SIDES`.

    Returns:
        ``losses`` (every term, by step), ``scores`` (by protocol), ``step_seconds``, ``seconds``
        (training, including the wait for batches), ``memory_mib`` (peak resident memory of the
        process), ``memory_before_mib`` (the same before the first step), and digests of the
        ``initial_weights`` and of the ``batches``.
    """
    from input_pipeline.from_config import evaluation_data, training_data  # TensorFlow
    from input_pipeline.progress import progress

    training = training_data(config)
    evaluation = evaluation_data(config, training)
    images = len(training.filenames)
    experiment = Experiment.create(
        config, num_identities=training.num_identities, num_images=images
    )
    fresh = jax.device_get(experiment.init_state(make_mesh(jax.devices()[:1])))
    variables: Variables = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    initial = _digest(to_arrays(variables, training.num_identities))
    if name == "control":
        variables = {
            **variables,
            "params": moved_by_rounding(variables["params"], config.seed),
        }
    side = (torch_side if name == "torch" else jax_side)(experiment, variables)
    before = _memory()
    batches = itertools.islice(training.batches(0), experiment.num_steps)
    trained = _train(side.step, progress(batches, NAMES[name], total=experiment.num_steps))
    memory = _memory()
    mesh = make_mesh(jax.devices()[:1])
    found = evaluate(side.embed, side.state(), evaluation, config.eval, mesh, seed=config.seed)
    results = [result.scores for result in found]
    return trained | {
        "scores": {r["protocol"]: {"mAP": r["mAP"], "Rank-1": r["cmc"]["1"]} for r in results},
        "memory_mib": memory,
        "memory_before_mib": before,
        "initial_weights": initial,
    }


def _train(step: Callable[[Batch], Mapping[str, Any]], batches: Iterable[Batch]) -> dict[str, Any]:
    """Train on all batches; the ``losses``, ``seconds`` and digest of `measure`."""
    losses: dict[str, list[float]] = {}
    step_seconds, digest = [], hashlib.sha256()
    started = time.perf_counter()
    for batch in batches:
        batch = {name: values for name, values in batch.items() if name != "indices"}
        digest.update(_digest(batch).encode())
        step_started = time.perf_counter()
        terms = step(batch)
        step_seconds.append(time.perf_counter() - step_started)
        for name, value in terms.items():
            losses.setdefault(name, []).append(float(value))
    return {
        "losses": losses,
        "step_seconds": step_seconds,
        "seconds": time.perf_counter() - started,
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
    """Measure every seed and side that has no stored run; return all runs by seed and side.

    Raises:
        UserError: a run failed, or the sides of a seed differ in initial weights or batches.
    """
    runs: dict[int, dict[str, Any]] = {}
    commit = source_commit()
    options = config.flat_options() | {"commit": commit, "packages": packages()}
    for seed in range(seeds):
        # The sides take turns in going first, since a machine may slow down over time.
        for side in SIDES[seed % len(SIDES) :] + SIDES[: seed % len(SIDES)]:
            path = out / "runs" / f"{side}-{seed}.json"
            facts = json.loads(json.dumps(options | {"seed": seed}))
            # A run that was interrupted before its facts were added has none.
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
    """Measure in a separate process, whose memory is then that of one side."""
    options = [f"--config.seed={seed}", f"--side={side}", f"--out={path}"]  # override earlier ones
    command = [sys.executable, "-m", "studies.pytorch.study", *sys.argv[1:], *options]
    if subprocess.run(command).returncode:
        raise UserError(f"seed {seed}: {NAMES[side]} failed; see its error above")


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval, mean ± t·s / √n with Student's t for n − 1 degrees of freedom.

    >>> {name: round(x, 2) for name, x in interval([1.0, 2.0, 3.0]).items()}
    {'mean': 2.0, 'low': -0.48, 'high': 4.48}
    """
    mean = statistics.fmean(values)
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def apart(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Float64[np.ndarray, " steps"]:
    """Relative difference of the total loss of two runs, by step."""
    ours, theirs = (np.asarray(run["losses"]["total"]) for run in (found, expected))
    return np.abs(ours - theirs) / np.abs(theirs)


def summarise(runs: Runs) -> dict[str, Any]:
    """The results: scores with paired differences, drift of the losses, time and memory."""
    first = next(iter(runs.values()))["jax"]
    scores = {
        f"{protocol} {name}": _compare_scores(runs, protocol, name)
        for protocol in first["scores"]
        for name in SCORES
    }
    steps = len(first["losses"]["total"])
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
    costs = {side: _costs([run[side] for run in runs.values()]) for side in SIDES}
    return {"steps": steps, "scores": scores, "loss_apart": curves, "costs": costs}


def _compare_scores(runs: Runs, protocol: str, name: str) -> dict[str, Any]:
    """One score of every side, in percent, and its differences paired by seed."""
    by_side = {
        side: [100 * run[side]["scores"][protocol][name] for run in runs.values()] for side in SIDES
    }
    differences = {
        side: interval(np.subtract(by_side[side], by_side["jax"]).tolist())
        for side in ("torch", "control")
    }
    return {"by_seed": by_side, "minus_jax": differences}


def _costs(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians of time and memory; the first step, which compiles, is reported separately."""
    median = statistics.median
    return {
        "step_ms": 1000 * median(s for run in runs for s in run["step_seconds"][1:]),
        "first_step_s": median(run["step_seconds"][0] for run in runs),
        "training_s": median(run["seconds"] for run in runs),
        "memory_mib": median(run["memory_mib"] for run in runs),
        "memory_before_mib": median(run["memory_before_mib"] for run in runs),
    }


def markdown(summary: Mapping[str, Any], seeds: int) -> str:
    """The summary as three tables."""
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
        "Relative difference of the total loss from pgfl_jax's, median over the seeds:",
        "",
        f"| after step | {' | '.join(map(str, steps))} |",
        f"|---|{'---:|' * len(steps)}",
    ]
    for side, values in summary["loss_apart"].items():
        lines.append(f"| {NAMES[side]} | {' | '.join(f'{v:.0e}' for v in values.values())} |")
    lines += [
        "",
        "| | step, ms | first step, s | training, s | memory, MiB | of which before step 1 |",
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


def plot(runs: Runs, path: Path) -> None:
    """Plot the loss curves of every seed and side, and their differences."""
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
                # A logarithmic axis cannot show 0.
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
    """Versions of the packages that the scores depend on."""
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
    """The processor's name, from Linux where possible."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def define_flags() -> None:
    """Define the command-line flags."""
    define_config("configs/synthetic_demo.py")
    flags.DEFINE_integer("seeds", 5, "Number of seeds, counted from 0.", lower_bound=2)
    define_path("out", "runs/study", "Folder for the study.")
    # Set for the processes that this program starts.
    flags.DEFINE_enum("side", None, SIDES, "Measure only this side, into the file --out.")


def check(config: Config) -> None:
    """UserError for options that the comparison does not cover."""
    for name, value, wanted in (
        ("model.dtype", config.model.dtype, "float32"),
        ("train.accumulation", config.train.accumulation, 1),
        ("eval.embeddings", config.eval.embeddings, ("main",)),
        ("optim.ema_decay", config.optim.ema_decay, 0.0),
    ):
        if value != wanted:
            raise UserError(f"config.{name} = {value!r}: the study only compares {wanted!r}")


def main(argv: list[str]) -> int:
    """Measure, compare and report; returns the exit status."""
    del argv
    logging.set_verbosity(logging.FATAL)  # libraries log every file they read or write
    config = parse_config(FLAGS.config)
    check(config)
    if FLAGS.side:
        require_devices()
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
