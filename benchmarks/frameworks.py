"""Training step and embedding, in images per second: pgfl_jax beside its PyTorch twin.

    python -m benchmarks.frameworks --task=train --precision=bfloat16 --batch=256

One JSON line per side, each measured in a process of its own, on the default device of its
framework, with the options of ``--config``. Weights and one batch lie on the device before the
clock starts: of data and their transfer nothing is measured. ``--side`` picks the sides:

- jax: the compiled step of ``main.py``, or the main branch's embedding as it evaluates;
- torch: the twin, op by op, its weights channels-last, with the convolutions that cuDNN finds
  fastest;
- torch_compiled: the same with its network by ``torch.compile``.

``--precision``: ``float32`` multiplies in full; ``tf32`` rounds factors as NVIDIA's matrix units do
and JAX by default has them do; ``bfloat16`` is ``--config.model.dtype=bfloat16``.
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
from typing import Any

import jax
import numpy as np
import torch
from absl import flags
from ml_collections import config_flags

from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.config import NUM_PARTS, Config, parse_config
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
STEPS_PER_EPOCH = 100  # a constant of the schedule, on which nothing depends

Batch = Mapping[str, np.ndarray]
Repeat = Callable[[int], None]


def random_batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Noise in the shapes that the pipeline makes; every image has a pose."""
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


def jax_side(
    experiment: Experiment, batch: Batch, task: str
) -> tuple[Repeat, Callable[[], dict[str, Any]]]:
    """What repeats the task and waits for its end; and what tells the device and its memory."""
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

    def told() -> dict[str, Any]:
        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "device_peak_bytes": peak}

    return repeat, told


def torch_side(
    experiment: Experiment, batch: Batch, task: str, *, precision: str, compiled: bool
) -> tuple[Repeat, Callable[[], dict[str, Any]]]:
    """The same by the twin."""
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

    def told() -> dict[str, Any]:
        if device == "cpu":
            return {"device": "cpu", "device_peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": peak}

    return repeat, told


def measure(config: Config, side: str) -> dict[str, Any]:
    """Warm up, then time rounds of steps; see the module's docstring."""
    batch_size = config.data.batch_size
    experiment = Experiment.create(
        config, num_identities=FLAGS.identities, num_images=STEPS_PER_EPOCH * batch_size
    )
    batch = random_batch(config, config.seed)
    started = time.perf_counter()
    if side == "jax":
        jax.config.update("jax_default_matmul_precision", PRECISIONS[FLAGS.precision])
        repeat, told = jax_side(experiment, batch, FLAGS.task)
    else:
        compiled = side == "torch_compiled"
        repeat, told = torch_side(
            experiment, batch, FLAGS.task, precision=FLAGS.precision, compiled=compiled
        )
    repeat(1)
    first = time.perf_counter() - started
    repeat(FLAGS.steps)
    gc.collect()
    milliseconds = []
    for _ in range(FLAGS.rounds):
        started = time.perf_counter()
        repeat(FLAGS.steps)
        milliseconds.append(1000 * (time.perf_counter() - started) / FLAGS.steps)
    median = statistics.median(milliseconds)
    return {
        "benchmark": f"frameworks, {FLAGS.task}",
        "side": side,
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
        **told(),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "torch")},
    }


def define_flags() -> None:
    """Flags of the command line."""
    config_flags.DEFINE_config_file("config", "configs/default.py", "Configuration file.")
    flags.DEFINE_enum("task", "train", TASKS, "What to time.")
    flags.DEFINE_enum("precision", "float32", list(PRECISIONS), "Of products and convolutions.")
    flags.DEFINE_integer("batch", 0, "Images a step; 0: as in the config.", lower_bound=0)
    flags.DEFINE_integer("identities", 702, "Classes.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Timed rounds, of which the median is told.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Steps a round.", lower_bound=1)
    flags.DEFINE_multi_enum("side", ["jax", "torch"], SIDES, "What to measure; may be repeated.")
    flags.DEFINE_bool("here", False, "Measure the one side in this process.")


def main(argv: list[str]) -> None:
    """Print one line per side."""
    del argv
    values = FLAGS.config
    values.model.dtype = "bfloat16" if FLAGS.precision == "bfloat16" else "float32"
    if FLAGS.batch:
        if FLAGS.batch % values.data.images_per_identity:
            raise UserError(
                f"--batch={FLAGS.batch}: no multiple of the {values.data.images_per_identity} "
                "images a person"
            )
        values.data.identities_per_batch = FLAGS.batch // values.data.images_per_identity
    config = parse_config(values)
    if config.train.accumulation > 1:
        raise UserError("config.train.accumulation: the twin has none")
    if FLAGS.here:
        print(json.dumps(measure(config, FLAGS.side[-1])), flush=True)
        return
    for side in FLAGS.side:
        own = ["--here", f"--side={side}"]  # the last one counts
        command = [sys.executable, "-m", "benchmarks.frameworks", *sys.argv[1:], *own]
        if subprocess.run(command).returncode:
            raise UserError(f"{side} failed; its own error stands above")


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
