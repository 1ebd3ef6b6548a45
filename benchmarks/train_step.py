"""Speed of training steps and of embedding: pgfl_jax against PyTorch at its best.

    python -m benchmarks.train_step --precision=bfloat16 --batch=256
    python -m benchmarks.train_step --config=configs/synthetic_demo.py --rounds=5

Each side runs in a process of its own, on its framework's default device, with the options of
``--config``; the sides take turns. Weights and one batch are on the device before the clock starts,
so that neither loading nor transfers are measured. The sides are

- ``jax``: the compiled step of ``main.py``, or the main branch's embedding with folded BatchNorm;
- ``torch``: :mod:`benchmarks.torch_baseline`, compiled; ``torch_eager``: the same, op by op;
- ``onnxruntime``: for embedding on CPUs, the network's ONNX file.

``--precision``: on GPUs ``float32`` means TF32, on both sides. Prints one JSON line per side, with
the ratio to the others, and for ``jax`` the least time by :mod:`benchmarks.floor`.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.floor import ceilings, floor
from benchmarks.interleaved import Program, Repeat, interleave, serve
from pgfl_jax.command_flags import define_config
from pgfl_jax.command_line import run as run_command_line
from pgfl_jax.config import NUM_PARTS, Config, parse_config
from pgfl_jax.distributed.devices import compiler_options, require_devices
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import folded, main_branch, unit_length
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import make_train_step

FLAGS = flags.FLAGS
SIDES = "jax", "torch", "torch_eager", "onnxruntime"
TASKS = "train", "embed"
STEPS_PER_EPOCH = 100  # a constant in the schedule; the figures do not depend on it

Batch = Mapping[str, np.ndarray]
Describe = Callable[[], dict[str, Any]]


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


def jax_side(experiment: Experiment, batch: Batch, task: str) -> tuple[Repeat, Describe]:
    """The task in pgfl_jax, on one device."""
    mesh = make_mesh(jax.devices()[:1])
    state = experiment.init_state(mesh)
    placed = shard_batch(batch, mesh)
    reached = ceilings(experiment.config.model.dtype)
    if task == "train":
        compiled = make_train_step(experiment, mesh).lower(state, placed).compile()

        def repeat(times: int) -> None:
            nonlocal state
            for _ in range(times):
                state, result = compiled(state, placed)
            jax.block_until_ready(result)

    else:
        variables, embed = embedding(experiment, state)
        images = placed["images"].astype(jnp.dtype(experiment.config.model.dtype))
        jitted = jax.jit(embed, compiler_options=compiler_options(mesh))
        compiled = jitted.lower(variables, images).compile()

        def repeat(times: int) -> None:
            for _ in range(times):
                result = compiled(variables, images)
            jax.block_until_ready(result)

    def describe() -> dict[str, Any]:
        first = jax.devices()[0]
        peak = (first.memory_stats() or {}).get("peak_bytes_in_use")
        least = reached | floor(compiled.as_text(), reached)
        return {
            "device": first.device_kind,
            "device_peak_bytes": peak,
            "floor": {name: round(value, 2) for name, value in least.items()},
        }

    return repeat, describe


def embedding(experiment: Experiment, state: TrainState) -> tuple[Any, Callable[..., jax.Array]]:
    """The main branch's variables with BatchNorm folded, and the function of them and images."""
    dtype = experiment.config.model.dtype
    variables = main_branch({"params": state.params, "batch_stats": state.batch_stats})

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        outputs: Any = experiment.model.apply(variables, images, train=False)
        return unit_length(outputs.main.neck)

    return jax.jit(lambda variables: folded(variables, dtype))(variables), embed


def onnxruntime_side(experiment: Experiment, batch: Batch) -> tuple[Repeat, Describe]:
    """The embedding in ONNX Runtime, on the CPU."""
    import onnxruntime

    from pgfl_jax.export.jaxpr_to_onnx import convert

    variables, embed = embedding(experiment, experiment.init_state(make_mesh(jax.devices()[:1])))
    (size,) = jax.export.symbolic_shape("batch")
    row = jax.ShapeDtypeStruct((size, *batch["images"].shape[1:]), np.float32)
    model = convert(lambda images: embed(variables, images), row)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def repeat(times: int) -> None:
        for _ in range(times):
            session.run(None, {"images": batch["images"]})

    return repeat, lambda: {"device": "cpu", "device_peak_bytes": None}


def torch_side(
    experiment: Experiment, batch: Batch, task: str, *, compiled: bool
) -> tuple[Repeat, Describe]:
    """The task in PyTorch, on the GPU if there is one."""
    import torch

    from benchmarks import torch_baseline

    make = torch_baseline.train if task == "train" else torch_baseline.embed
    repeat = make(experiment, batch, "default" if compiled else None)

    def describe() -> dict[str, Any]:
        if not torch.cuda.is_available():
            return {"device": "cpu", "device_peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": peak}

    return repeat, describe


def start(config: Config, side: str, task: str) -> tuple[Repeat, Describe]:
    """Build a side in this process."""
    experiment = Experiment.create(
        config,
        num_identities=FLAGS.identities,
        num_images=STEPS_PER_EPOCH * config.data.batch_size,
    )
    batch = random_batch(config, config.seed)
    if side == "jax":
        require_devices()
        return jax_side(experiment, batch, task)
    if side == "onnxruntime":
        return onnxruntime_side(experiment, batch)
    return torch_side(experiment, batch, task, compiled=side == "torch")


def report(programs: Mapping[str, Program], config: Config) -> None:
    """Print one line per side."""
    medians = {name: statistics.median(program.seconds) for name, program in programs.items()}
    for name, program in programs.items():
        milliseconds = [1000 * seconds for seconds in program.seconds]
        line = {
            "benchmark": FLAGS.task,
            "side": name,
            "backbone": config.model.backbone,
            "image": f"{config.data.height}x{config.data.width}",
            "pose_branches": config.model.pose_branches,
            "precision": FLAGS.precision,
            "batch": config.data.batch_size,
            "images_per_second": round(config.data.batch_size / medians[name], 1),
            "step_ms": {
                "min": round(min(milliseconds), 3),
                "median": round(1000 * medians[name], 3),
                "max": round(max(milliseconds), 3),
            },
            "rounds": FLAGS.rounds,
            "start_seconds": round(program.start_seconds, 1),
            **program.finish(),
            "versions": {each: metadata.version(each) for each in ("jax", "flax", "torch")},
        }
        for other in [each for each in medians if each != "jax"]:
            line[f"speed_to_{other}"] = round(medians[other] / medians[name], 3)
        print(json.dumps(line), flush=True)


def define_flags() -> None:
    """Define the command-line flags."""
    define_config("configs/default.py")
    flags.DEFINE_enum("task", "train", TASKS, "What to time.")
    flags.DEFINE_enum("precision", "float32", ("float32", "bfloat16"), "Of products.")
    flags.DEFINE_integer("batch", 0, "Images per step; 0: as in the config.", lower_bound=0)
    flags.DEFINE_integer("identities", 702, "Number of classes.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Timed rounds; the median is reported.", lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "Length of a round.", lower_bound=0.0)
    flags.DEFINE_multi_enum("side", ["jax", "torch"], SIDES, "What to measure; may be repeated.")
    flags.DEFINE_bool("here", False, "Serve the last --side in this process.")


def main(argv: list[str]) -> None:
    """Start every side in its own process, and let them take turns."""
    del argv
    values = FLAGS.config
    values.model.dtype = FLAGS.precision
    if FLAGS.batch:
        if FLAGS.batch % values.data.images_per_identity:
            raise UserError(
                f"--batch={FLAGS.batch}: must be a multiple of config.data.images_per_identity, "
                f"{values.data.images_per_identity}"
            )
        values.data.identities_per_batch = FLAGS.batch // values.data.images_per_identity
    config = parse_config(values)
    if "onnxruntime" in FLAGS.side and (FLAGS.task, FLAGS.precision) != ("embed", "float32"):
        raise UserError("--side=onnxruntime: only for --task=embed in float32")
    if config.train.accumulation > 1:
        raise UserError("config.train.accumulation: the yardstick does not support it")
    if config.model.pooling == "cls":
        raise UserError("config.model.pooling: the yardstick does not support cls")
    if FLAGS.here:
        serve(lambda: start(config, FLAGS.side[-1], FLAGS.task))
        return
    # Both frameworks share the device; neither may take all of its memory.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": os.getcwd()}
    programs = {}
    for side in FLAGS.side:
        own = ["--here", f"--side={side}"]  # the last --side counts
        command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], *own]
        programs[side] = Program(side, command, env=env)
        programs[side].ready()
    interleave(list(programs.values()), rounds=FLAGS.rounds, seconds=FLAGS.seconds)
    report(programs, config)


if __name__ == "__main__":
    define_flags()
    run_command_line(main, required=[])
