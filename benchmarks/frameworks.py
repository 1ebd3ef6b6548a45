"""Training and embedding speed in images per second: pgfl_jax against its PyTorch twin.

    python -m benchmarks.frameworks --task=train --precision=bfloat16 --batch=256

Prints one JSON line per side. Each side runs in its own process, on its framework's default device,
with the options of ``--config``. Weights and one batch are on the device before the clock starts,
so no data loading or transfer is measured. ``--side`` picks the sides:

- jax: the compiled step of ``main.py``, or the main branch's embedding as in evaluation;
- torch: the twin in eager mode, with channels-last weights and cuDNN's fastest convolutions;
- torch_compiled: the same with ``torch.compile`` applied to the network.

``--precision``: ``float32`` multiplies in full precision; ``tf32`` rounds factors as NVIDIA's
matrix units do and as JAX does by default; ``bfloat16`` is ``--config.model.dtype=bfloat16``.
"""

import dataclasses
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from absl import flags

from pgfl_jax.command_flags import define_config
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.config import NUM_PARTS, Config, parse_config
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.retrieval.embeddings import make_embed
from pgfl_jax.train_step import make_train_step
from studies.pytorch.compare import fresh_twin
from studies.pytorch.train_step import Training, to_tensors

FLAGS = flags.FLAGS
SIDES = "jax", "torch", "torch_compiled"
TASKS = "train", "embed"
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "highest"}
STEPS_PER_EPOCH = 100  # a constant in the schedule; the figures do not depend on it

Batch = Mapping[str, np.ndarray]


class Side(NamedTuple):
    """The task in one framework.

    Attributes:
        repeat: runs the task this many times and waits for the end.
        device: the device's name and its peak memory.
    """

    repeat: Callable[[int], None]
    device: Callable[[], dict[str, Any]]


def random_batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Noise in the shapes of the input pipeline; every image has a pose."""
    data = config.data
    rng = np.random.default_rng(seed)
    size = data.batch_size
    return {
        "images": rng.standard_normal((size, data.height, data.width, 3), np.float32),
        "labels": np.repeat(
            np.arange(data.identities_per_batch, dtype=np.int32), data.images_per_identity
        ),
        "part_maps": rng.random((size, *config.map_shape, NUM_PARTS), np.float32),
        "visibility": np.ones((size, NUM_PARTS), np.float32),
    }


def jax_side(experiment: Experiment, batch: Batch, task: str) -> Side:
    """The task in pgfl_jax, on one device."""
    mesh = make_mesh(jax.devices()[:1])
    state = experiment.init_state(mesh)
    if task == "embed":
        state = dataclasses.replace(state, opt_state=(), average=None)
    placed = shard_batch(batch, mesh)
    train_step = make_train_step(experiment, mesh)
    embed = make_embed(experiment.model, mesh, ("main",))

    def repeat(times: int) -> None:
        nonlocal state
        result: Any = None
        for _ in range(times):
            if task == "train":
                state, result = train_step(state, placed)
            else:
                result = embed(state, placed)
        jax.block_until_ready(result)

    def device() -> dict[str, Any]:
        first = jax.devices()[0]
        peak = (first.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": first.device_kind, "device_peak_bytes": peak}

    return Side(repeat, device)


def torch_side(
    experiment: Experiment, batch: Batch, task: str, *, precision: str, compiled: bool
) -> Side:
    """The task in the twin, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    network = fresh_twin(experiment)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(experiment.config, network, steps_per_epoch=experiment.steps_per_epoch)
    if compiled:
        network.compile()
    placed = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}

    def repeat(times: int) -> None:
        if task == "train":
            for _ in range(times):
                training.train_step(placed)
        else:
            network.eval()
            with torch.inference_mode():
                for _ in range(times):
                    torch.nn.functional.normalize(network(placed["images"]).main.neck)
        if device == "cuda":
            torch.cuda.synchronize()

    def used() -> dict[str, Any]:
        if device == "cpu":
            return {"device": "cpu", "device_peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": peak}

    return Side(repeat, used)


def _start(name: str, experiment: Experiment, batch: Batch) -> Side:
    """Build a side, with its precision set."""
    if name == "jax":
        jax.config.update("jax_default_matmul_precision", PRECISIONS[FLAGS.precision])
        return jax_side(experiment, batch, FLAGS.task)
    compiled = name == "torch_compiled"
    return torch_side(experiment, batch, FLAGS.task, precision=FLAGS.precision, compiled=compiled)


def measure(config: Config, name: str) -> dict[str, Any]:
    """Warm up a side, then time rounds of steps; returns the line to print."""
    batch_size = config.data.batch_size
    experiment = Experiment.create(
        config, num_identities=FLAGS.identities, num_images=STEPS_PER_EPOCH * batch_size
    )
    batch = random_batch(config, config.seed)
    started = time.perf_counter()
    side = _start(name, experiment, batch)
    side.repeat(1)
    first = time.perf_counter() - started
    side.repeat(FLAGS.steps)
    gc.collect()
    milliseconds = []
    for _ in range(FLAGS.rounds):
        started = time.perf_counter()
        side.repeat(FLAGS.steps)
        milliseconds.append(1000 * (time.perf_counter() - started) / FLAGS.steps)
    median = statistics.median(milliseconds)
    return {
        "benchmark": f"frameworks, {FLAGS.task}",
        "side": name,
        "backbone": config.model.backbone,
        "image": f"{config.data.height}x{config.data.width}",
        "precision": FLAGS.precision,
        "remat": config.model.remat,
        "batch": batch_size,
        "images_per_second": round(1000 * batch_size / median, 1),
        "step_ms": {
            "min": round(min(milliseconds), 3),
            "median": round(median, 3),
            "max": round(max(milliseconds), 3),
        },
        "rounds": FLAGS.rounds,
        "steps": FLAGS.steps,
        "start_seconds": round(first, 1),
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        **side.device(),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "torch")},
    }


def define_flags() -> None:
    """Define the command-line flags."""
    define_config("configs/default.py")
    flags.DEFINE_enum("task", "train", TASKS, "What to time.")
    flags.DEFINE_enum("precision", "float32", list(PRECISIONS), "Of products and convolutions.")
    flags.DEFINE_integer("batch", 0, "Images per step; 0: as in the config.", lower_bound=0)
    flags.DEFINE_integer("identities", 702, "Number of classes.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Timed rounds; the median is reported.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Steps per round.", lower_bound=1)
    flags.DEFINE_multi_enum("side", ["jax", "torch"], SIDES, "What to measure; may be repeated.")
    flags.DEFINE_bool("here", False, "Measure the last --side in this process.")


def main(argv: list[str]) -> None:
    """Measure every side in its own process; print one line per side."""
    del argv
    values = FLAGS.config
    values.model.dtype = "bfloat16" if FLAGS.precision == "bfloat16" else "float32"
    if FLAGS.batch:
        if FLAGS.batch % values.data.images_per_identity:
            raise UserError(
                f"--batch={FLAGS.batch}: must be a multiple of config.data.images_per_identity, "
                f"{values.data.images_per_identity}"
            )
        values.data.identities_per_batch = FLAGS.batch // values.data.images_per_identity
    config = parse_config(values)
    if config.train.accumulation > 1:
        raise UserError("config.train.accumulation: the PyTorch twin does not support it")
    if FLAGS.here:
        require_devices()
        print(json.dumps(measure(config, FLAGS.side[-1])), flush=True)
        return
    for side in FLAGS.side:
        own = ["--here", f"--side={side}"]  # the last --side counts
        command = [sys.executable, "-m", "benchmarks.frameworks", *sys.argv[1:], *own]
        if subprocess.run(command).returncode:
            raise UserError(f"{side} failed; see its error above")


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
